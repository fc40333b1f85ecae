"""Write docs/reference.md from the commands' own help; with --check, fail if it is stale."""

from __future__ import annotations

import sys
from pathlib import Path

from tenth.cli.app import app

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
NOTE = "<!-- Made by scripts/cli_reference.py from the commands' own help; do not edit. -->\n\n"


def main() -> None:
    """Write or check."""
    page = NOTE + app.generate_docs()
    if "--check" not in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page:
        sys.exit("docs/reference.md is stale: run python scripts/cli_reference.py")


if __name__ == "__main__":
    main()
