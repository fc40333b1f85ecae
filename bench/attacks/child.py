"""Attacks from the folder that a verb is called in: files named like all that Python may look for."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import traps

from attacks.report import attack
from tenth.core import children


def _verbs(folder: Path) -> dict[str, bool]:
    """Each verb that ends by itself; a verb whose work did not succeed has not been tried."""
    outcomes = {}
    for verb, words in traps.VERBS.items():
        done = subprocess.run(
            [*children.python("from tenth.__main__ import main; main()"), *words.split()],
            cwd=folder,
            env=traps.environment(folder),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        tried = done.returncode == 0 or verb in traps.FAILING
        outcomes[verb] = tried and not traps.marks(folder)
        for mark in (folder / "marks").iterdir():
            mark.unlink()
    return outcomes


def attacks() -> Iterator[Mapping[str, object]]:
    """Some minute."""
    with tempfile.TemporaryDirectory() as place:
        folder = traps.lay(Path(place) / "traps")
        line = attack("verbs in a folder of traps", _verbs(folder))
        yield line | {"traps": len(list(folder.iterdir()))}


if __name__ == "__main__":
    for each in attacks():
        print(json.dumps(each), flush=True)
