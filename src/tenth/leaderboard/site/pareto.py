"""The picture of quality against memory, speed or energy; each point is a link to its submission's page.

A division has its own colour, shape and front: the line of those that nothing of their division beats in
both. Colours are classes of board.css, because the pages forbid themselves inline styles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tenth.core.format import figure, scaled, spelled, written
from tenth.core.metrics import METRICS, Metric
from tenth.core.records import MB
from tenth.leaderboard.ranking import Row, whiskers
from tenth.leaderboard.records import QUALITY, Division
from tenth.leaderboard.site.frame import clean, span
from tenth.report.pictures import LETTER
from tenth.report.scatter import Box, free_box, linear_axis, log_axis, overlap

LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 34.0, 46.0
LABEL, LETTERS = 12.5, 24  # size and most letters of a label
HIT = 13.0  # radius that answers to a finger
LARGEST = 1e15  # of what is drawn


@dataclass(frozen=True)
class Against:
    """What quality is set against."""

    name: str
    readings: tuple[str, ...]

    def pick(self, rows: Sequence[Row]) -> Metric | None:
        """Which of the readings to draw: the one that most rows have; None where none has one."""
        counts = [sum(_value(row, name) is not None for row in rows) for name in self.readings]
        return METRICS[self.readings[counts.index(max(counts))]] if any(counts) else None


AGAINST = (
    Against("memory", ("peak",)),
    Against("speed", ("device_decode", "decode")),
    Against("energy", ("device_joules",)),
)


@dataclass(frozen=True)
class Spot:
    """A submission in the picture."""

    row: Row
    quality: float
    whisker: float  # half of the interval
    x: float
    y: float


class Axis:
    """Values to pixels; logarithmic where they span more than a factor of four."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.log = max(values) > 4 * min(values)
        parts = round(abs(end - start) / 70) + 2
        self.ticks, self.low, self.high = log_axis(values, 1.4) if self.log else linear_axis(values, parts)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        """Pixel of a value; what is beyond the axis stands at its end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)


def picture(rows: Sequence[Row], against: Against, budget: int, width: int, height: int, pages: str) -> str:
    """The ranked rows of one setting as inline SVG; nothing where no row has both figures.

    pages: folder of the submissions' pages, seen from this one.
    """
    metric = against.pick(rows)
    if metric is None:
        return ""
    name, floor = metric.name, height - BOTTOM
    found = [
        (r, q, x)
        for r in rows
        if (q := _value(r, QUALITY)) is not None and (x := _value(r, name)) is not None
    ]
    if not found:
        return ""
    originals = {
        (r.verdict.conditions.original, o.value)
        for r, _, _ in found
        if (o := r.reading(QUALITY + "_original")) and _drawable(o.value)
    }
    across = [scaled(x, metric.unit) for _, _, x in found]
    limit = budget / MB if against.name == "memory" and budget / MB < 1.6 * max(across) else None
    x_of = Axis([*across, *([limit] if limit else [])], LEFT, width - RIGHT)
    y_of = Axis([*(q for _, q, _ in found), *(v for _, v in originals)], floor, TOP)
    words = f"{metric.title}, {spelled(metric.shown_unit)}{_how_known(rows, name)}"
    words += f"; {'more' if metric.better > 0 else 'less'} is better"
    out = _frame(x_of, y_of, words, width, height)
    if limit:
        out += _budget(limit, x_of(limit), floor)
    half = whiskers(rows)
    spots = [Spot(r, q, half[r.verdict.id], x_of(scaled(x, metric.unit)), y_of(q)) for r, q, x in found]
    spots.sort(key=lambda spot: (spot.x, spot.y, spot.row.verdict.id))
    divisions = dict.fromkeys(spot.row.division for spot in spots if spot.row.division)
    for division in divisions:
        out.append(_front([s for s in spots if s.row.division == division], division, metric.better))
    taken: list[Box] = [(s.x - 9, s.y - 9, s.x + 9, s.y + 9) for s in spots]
    inside = (LEFT, 18.0, width - 2.0, floor)
    if len(originals) == 1:
        out += _original(*originals.pop(), y_of, taken, inside)
    out += [_point(spot, y_of, shown_at(spot.row, name), pages, taken, inside) for spot in spots]
    return (
        f'<svg viewBox="0 0 {width} {height}" role="group" '
        f'aria-label="Quality against {against.name}: every point is a link">{"".join(out)}</svg>'
    )


def absent(rows: Sequence[Row], against: Against) -> list[Row]:
    """Rows that the picture has no place for: they lack a figure, or it is none that can be drawn."""
    metric = against.pick(rows)
    return [
        row
        for row in rows
        if metric is None or _value(row, QUALITY) is None or _value(row, metric.name) is None
    ]


def front(places: Sequence[tuple[float, float]], better: int) -> list[int]:
    """Indices of those that none beats in both: x towards `better`, y towards less; by x ascending."""
    order = sorted(range(len(places)), key=lambda i: (-better * places[i][0], places[i][1]))
    kept: list[int] = []
    for i in order:
        if not kept or places[i][1] < places[kept[-1]][1]:
            kept.append(i)
    return sorted(kept, key=lambda i: places[i][0])


def shape(division: Division, x: float, y: float, size: float = 7.0) -> str:
    """The mark of a division."""
    s = size
    if division == "bits":
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{s:g}"/>'
    drawn = {
        "structure": f"M{x - s * 0.88:.1f} {y - s * 0.88:.1f}h{1.76 * s:g}v{1.76 * s:g}h{-1.76 * s:g}z",
        "open": f"M{x:.1f} {y - 1.25 * s:.1f}l{1.25 * s:g} {1.25 * s:g}l{-1.25 * s:g} {1.25 * s:g}"
        f"l{-1.25 * s:g} {-1.25 * s:g}z",
        "scratch": f"M{x:.1f} {y - 1.2 * s:.1f}l{1.2 * s:g} {2.1 * s:g}h{-2.4 * s:g}z",
    }[division]
    return f'<path class="dot" d="{drawn}"/>'


def shown_at(row: Row, name: str) -> str:
    """A reading in words: "33.4 MB"."""
    reading = row.reading(name)
    return written(reading).with_unit if reading else ""


def _how_known(rows: Sequence[Row], name: str) -> str:
    """ ", estimated" where no row has it measured."""
    kinds = {reading.kind for row in rows if (reading := row.reading(name))}
    return f", {' or '.join(sorted(kinds))}" if "measured" not in kinds else ""


def _value(row: Row, name: str) -> float | None:
    reading = row.reading(name)
    return reading.value if reading and _drawable(reading.value) else None


def _drawable(value: float) -> bool:
    return 1 / LARGEST < value < LARGEST


def _frame(x_of: Axis, y_of: Axis, words: str, width: int, height: int) -> list[str]:
    floor = height - BOTTOM
    out = ['<text class="soft" x="0" y="14" font-size="12">bits per byte of text; less is better</text>']
    for value in y_of.ticks:
        y = y_of(value)
        out.append(
            f'<path class="grid" d="M{LEFT} {y:.1f}H{width - RIGHT}"/>'
            f'<text class="soft tick" x="{LEFT - 8}" y="{y + 4:.1f}" font-size="11" '
            f'text-anchor="end">{value:g}</text>'
        )
    for value in x_of.ticks:
        x = x_of(value)
        out.append(
            f'<path class="axis" d="M{x:.1f} {floor}v5"/>'
            f'<text class="soft tick" x="{x:.1f}" y="{floor + 19}" font-size="11" '
            f'text-anchor="middle">{value:g}</text>'
        )
    out.append(f'<path class="axis" d="M{LEFT} {floor}H{width - RIGHT}"/>')
    out.append(
        f'<text class="soft" x="{width - RIGHT}" y="{height - 6}" font-size="12" '
        f'text-anchor="end">{words}</text>'
    )
    return out


def _original(name: str, value: float, y_of: Axis, taken: list[Box], inside: Box) -> list[str]:
    """A line across, named at its emptier end."""
    left, _, right, _ = inside
    y = y_of(value)
    said = f"the original, {clean(name, LETTERS)}" if name else "the original"
    wide = len(said) * LETTER * 11.5 + 8
    ends = [(at, (at, y + 3, at + wide, y + 18)) for at in (right - wide, left)]
    crowds = [sum(overlap(box, other) for other in taken) for _, box in ends]
    at, box = ends[crowds.index(min(crowds))]
    taken.append(box)
    return [
        f'<path class="original" d="M{left} {y:.1f}H{right:g}"/>'
        f'<text class="soft" x="{at + 4:.1f}" y="{y + 15:.1f}" font-size="11.5">{escape(said)}</text>'
    ]


def _budget(budget: float, x: float, floor: float) -> list[str]:
    return [
        f'<path class="budget" d="M{x:.1f} {TOP - 8}V{floor}"/>'
        f'<text class="strong" x="{x - 6:.1f}" y="{TOP + 2}" font-size="12" '
        f'text-anchor="end">budget {figure(budget)} MB</text>'
    ]


def _front(spots: Sequence[Spot], division: Division, better: int) -> str:
    """The staircase of the best; nothing for a single one."""
    kept = [spots[i] for i in front([(s.x, -s.y) for s in spots], better)]
    if len(kept) < 2:
        return ""
    path = f"M{kept[0].x:.1f} {kept[0].y:.1f}"
    for spot in kept[1:]:
        path += f"H{spot.x:.1f}V{spot.y:.1f}" if better < 0 else f"V{spot.y:.1f}H{spot.x:.1f}"
    return f'<path class="front {division}" d="{path}"/>'


def _point(spot: Spot, y_of: Axis, against: str, pages: str, taken: list[Box], inside: Box) -> str:
    row = spot.row
    assert row.division is not None
    label = clean(row.name, LETTERS)
    place = f", place {span(row.place)}" if row.place else ""
    said = f"{clean(row.name, 80)}: {figure(spot.quality)} bits per byte, {against}{place}"
    whisker = ""
    if 0 < spot.whisker < LARGEST:
        low, high = (y_of(spot.quality + sign * spot.whisker) for sign in (1, -1))
        whisker = f'<path class="whisker" d="M{spot.x:.1f} {low:.1f}V{high:.1f}"/>'
    wide, tall = (len(label) + 0.5) * LETTER * LABEL + 4, LABEL + 3
    found = free_box(spot.x, spot.y, wide, tall, (12.0, 22.0, 36.0, 54.0), taken, inside)
    text = ""
    if found:
        (left, top, right, bottom), gap = found
        text = (
            f'<text x="{left + 2:.1f}" y="{(top + bottom) / 2 + LABEL * 0.35:.1f}" '
            f'font-size="{LABEL}">{escape(label)}</text>'
        )
        if gap > 12:
            edge = min(max(spot.x, left), right), top if top > spot.y else bottom
            text += f'<path class="leader" d="M{spot.x:.1f} {spot.y:.1f}L{edge[0]:.1f} {edge[1]:.1f}"/>'
    page = f"{pages}{row.verdict.id}.html"
    return (
        f'<a class="point {row.division}" href="{escape(page)}" data-id="{escape(row.verdict.id)}">'
        f'<title>{escape(said)}</title><circle class="hit" cx="{spot.x:.1f}" cy="{spot.y:.1f}" r="{HIT}"/>'
        f"{whisker}{shape(row.division, spot.x, spot.y)}{text}</a>"
    )
