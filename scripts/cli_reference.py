"""Write docs/reference.md from the commands' own help; with --check, fail if it is stale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tenth.cli import commands

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"


def text(*command: str) -> str:
    """One command's help, at a fixed width."""
    environment = {**os.environ, "COLUMNS": "110", "TERM": "dumb", "NO_COLOR": "1"}
    line = [sys.executable, "-c", "from tenth.cli.app import main; main()", *command, "--help"]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=True)
    return "\n".join(row.rstrip() for row in done.stdout.strip().splitlines()).replace(
        "Usage: -c", "Usage: tenth"
    )


def page() -> str:
    """The whole page."""
    parts = ["# Commands\n\nMade by `scripts/cli_reference.py` from the commands' own help; do not edit.\n"]
    parts += [f"## tenth {name}\n\n```\n{text(name)}\n```\n" for name in commands.known()]
    return "\n".join(parts)


def main() -> None:
    """Write or check."""
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/reference.md is stale: run python scripts/cli_reference.py")


if __name__ == "__main__":
    main()
