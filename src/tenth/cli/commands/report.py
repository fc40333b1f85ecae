"""tenth report."""

from __future__ import annotations

from tenth.cli.commands._options import Json, Out

PLACE = 80


def report(out: Out, /, *, as_json: Json = False) -> None:
    """Draw OUT/report.html again from OUT/plan.json and OUT/scorecard.json."""
    from tenth.cli.console import print_json, print_line
    from tenth.report import page as drawing

    page = drawing.write(out)
    if as_json:
        print_json({"report": str(page)})
    else:
        print_line(page)
