"""The templates of the leaderboard, its style and its script."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tenth.leaderboard.site import chart
from tenth.report.html import Templates

GENERATOR = "tenth leaderboard"
FOLDER = "s/"  # folder of the submissions' pages


@cache
def templates() -> Templates:
    """Read the page templates, once a process."""
    return Templates(Path(__file__).parent, dot=chart.dot, generator=GENERATOR)
