"""s/<id>.html: all that is known of one submission, how it is known, and the command that shows it again.

templates/entry.html says what stands where; this file prepares what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tenth.core.format import figure, megabytes, written
from tenth.core.metrics import METRICS
from tenth.core.records import Reading
from tenth.leaderboard.ranking import Row
from tenth.leaderboard.records import DIVISIONS, QUALITY
from tenth.leaderboard.site import chart
from tenth.leaderboard.site.index import STATES, figure_of
from tenth.leaderboard.site.pages import templates
from tenth.report.page import Tile

WIDE, NARROW = 880, 350
TONES = {"better": "good", "worse": "bad", "tie": "even", "not informative": "none"}


def render(row: Row, rows: Mapping[str, Row], files: Sequence[tuple[str, str]], tenth: str) -> str:
    """The page; rows: all by id. files: (what it is, address) of what can be downloaded."""
    tasks = row.verdict.tasks
    return templates().render(
        "entry.html",
        tenth=tenth,
        row=row,
        rows=rows,
        files=files,
        readings=[("", reading) for reading in row.verdict.readings],
        tiles=_tiles(row),
        scores=[chart.scores(tasks, width) for width in (WIDE, NARROW)],
        secret=any(task.hidden or task.gap for task in tasks),
        attempts=_attempts(row, rows),
        divisions=DIVISIONS,
        states=STATES,
        tones=TONES,
    )


def _tiles(row: Row) -> list[Tile]:
    """The four figures of the table, with what they are to be held against."""
    quality, original, peak = (row.reading(name) for name in (QUALITY, QUALITY + "_original", "peak"))
    speed, energy = row.reading("device_decode") or row.reading("decode"), row.reading("device_joules")
    tiles = []
    if quality:
        tiles.append(_tile(quality, f"the original {figure(original.value)}" if original else ""))
    if peak:
        tiles.append(_tile(peak, f"of {megabytes(row.setting.budget)} MB allowed"))
    on_device = [reading for reading in (speed, energy) if reading]
    return tiles + [_tile(each, f"{METRICS[each.name].title}, {each.kind}") for each in on_device]


def _tile(reading: Reading, than: str) -> Tile:
    metric, cell = METRICS[reading.name], figure_of(reading)
    beside = ", ".join(filter(None, (cell.spread, than)))
    return Tile(metric.heading, cell.value, "" if metric.in_title else written(reading).unit, beside)


def _attempts(row: Row, rows: Mapping[str, Row]) -> list[Row]:
    """All attempts of this submission, the first one first."""
    mine = (row.verdict.submission, row.setting)
    line = [other for other in rows.values() if (other.verdict.submission, other.setting) == mine]
    return sorted(line, key=lambda other: other.attempt)
