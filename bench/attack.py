"""Attack this package, on loopback and in temporary folders only: python bench/attack.py [serve child ...].

A JSON line for each attack: what was tried, held and lost, and which was lost; the last line is their sum.
The exit status is 1 where something was lost. docs/security.md says what is promised.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
import time
from pathlib import Path

import attacks

HELPERS = {"report"}


def main() -> int:
    known = [m.name for m in pkgutil.iter_modules(attacks.__path__) if m.name not in HELPERS]
    chosen = sys.argv[1:] or known
    if wrong := set(chosen) - set(known):
        print(f"{', '.join(sorted(wrong))}: not among {', '.join(known)}", file=sys.stderr)
        return 2
    tried = held = lost = 0
    began = time.monotonic()
    for name in chosen:
        for line in importlib.import_module(f"attacks.{name}").attacks():
            print(json.dumps(line), flush=True)
            tried, held, lost = tried + line["tried"], held + line["held"], lost + line["lost"]
    seconds = round(time.monotonic() - began)
    print(json.dumps({"name": "all", "tried": tried, "held": held, "lost": lost, "seconds": seconds}))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    raise SystemExit(main())
