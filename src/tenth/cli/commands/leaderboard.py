"""tenth leaderboard."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tenth.cli.commands._options import Json

PLACE = 95


def leaderboard(
    results: Annotated[Path, Parameter(help="The folder of verdicts that tenth judge wrote.")],
    /,
    *,
    output: Annotated[
        Path, Parameter(alias="-o", help="Folder for the site; an earlier one there is replaced.")
    ],
    submissions: Annotated[
        Path | None, Parameter(help="Folder of submissions: those without a verdict are listed as well.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw the verdicts of tenth judge as a web site that needs no server: open SITE/index.html."""
    from tenth.cli.console import ConsoleReporter, print_json, print_line
    from tenth.leaderboard.site import site

    drawn = site.write(results, output, submissions)
    if as_json:
        states = Counter(row.state for row in drawn.rows)
        body = {"site": str(drawn.page), "rows": len(drawn.rows), "states": states}
        print_json(body | {"waiting": drawn.waiting, "without_log": drawn.without_log})
        return
    for name in drawn.without_log:
        ConsoleReporter().say(f"{name}: no log that can be shown")
    print_line(drawn.page)
