"""tenth report."""

from __future__ import annotations

import json

from tenth.cli.commands._options import Json, Out

PLACE = 80


def report(out: Out, /, *, as_json: Json = False) -> None:
    """Draw OUT/report.html again from OUT/plan.json and OUT/scorecard.json."""
    from tenth.report import page as drawing

    page = drawing.write(out)
    print(json.dumps({"report": str(page)}) if as_json else page)
