"""The charts of a leaderboard: quality against memory, speed or energy, and the scores of tasks.

In the first each point is a link to its submission's page. A division has its own colour, shape and front:
the line of those that nothing of their division beats in both. Colours are classes of board.css.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tenth.core.format import figure, scaled, spelled, written
from tenth.core.metrics import METRICS, Metric
from tenth.core.records import MB
from tenth.core.scores import ScoreInterval
from tenth.leaderboard.ranking import Row, whiskers
from tenth.leaderboard.records import QUALITY, Division, TaskScore
from tenth.report import svg
from tenth.report.html import clean
from tenth.report.svg import Axis, Drawing, Label, Plot, element

LABEL, LETTERS = 12.5, 24  # size and most letters of a label
HIT = 13.0  # radius that answers to a finger
LARGEST = 1e15  # of what is drawn
BESIDE = 600  # pixels of width from which a task's name stands beside its scores
SHAPES: dict[Division, svg.MarkShape] = {
    "bits": "circle",
    "structure": "square",
    "open": "diamond",
    "scratch": "triangle",
}


@dataclass(frozen=True)
class Against:
    """A cost that quality is set against in a picture: memory, speed or energy."""

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
    """Where a submission stands in the picture."""

    row: Row
    x: float  # as people read it: MB, tokens/s, J
    quality: float
    whisker: float  # half of the interval
    division: Division


def picture(rows: Sequence[Row], against: Against, size: tuple[int, int], pages: str) -> Markup:
    """The ranked rows of one setting; nothing where no row has both figures.

    pages: folder of the submissions' pages, seen from this one.
    """
    metric = against.pick(rows)
    spots = _spots(rows, metric) if metric else []
    if metric is None or not spots:
        return Markup("")
    originals = {
        (spot.row.verdict.conditions.original, value)
        for spot in spots
        if (value := _value(spot.row, QUALITY + "_original")) is not None
    }
    budget = rows[0].setting.budget / MB
    limit = [budget] if metric.name == "peak" and budget < 1.6 * max(spot.x for spot in spots) else []
    x = svg.around([*(spot.x for spot in spots), *limit], size[0] - 60)
    y = svg.around([*(spot.quality for spot in spots), *(value for _, value in originals)], size[1] - 80)
    label = f"Quality against {against.name}: every point is a link"
    words = f"{METRICS[QUALITY].title} of text; less is better"
    plot = Plot(size, label, Axis(x, _words(metric, rows)), Axis(y, words), (46.0, 34.0), role="group")
    if limit:
        plot.limit(budget, f"budget {figure(budget)} MB")
    for division in dict.fromkeys(spot.division for spot in spots):
        _front(plot, [spot for spot in spots if spot.division == division], metric.better)
    for spot in spots:
        plot.keep_clear(spot.x, spot.quality)
    if len(originals) == 1:
        _original(plot, *originals.pop())
    for spot in spots:
        _point(plot, spot, metric, pages)
    return plot.markup()


def absent(rows: Sequence[Row], against: Against) -> list[Row]:
    """Rows that the picture has no place for: they lack a figure, or it is none that can be drawn."""
    metric = against.pick(rows)
    drawn = [spot.row for spot in _spots(rows, metric)] if metric else []
    return [row for row in rows if row not in drawn]


def front(places: Sequence[tuple[float, float]], better: int) -> list[int]:
    """Indices of those that none beats in both: x towards `better`, y towards less; by x ascending."""
    order = sorted(range(len(places)), key=lambda i: (-better * places[i][0], places[i][1]))
    kept: list[int] = []
    for i in order:
        if not kept or places[i][1] < places[kept[-1]][1]:
            kept.append(i)
    return sorted(kept, key=lambda i: places[i][0])


def dot(division: Division) -> Markup:
    """The mark of a division in a line of text."""
    return svg.key(svg.mark(SHAPES[division], 7.0, 7.0, 5.0, "dot"), css=division)


def _spots(rows: Sequence[Row], metric: Metric) -> list[Spot]:
    half = whiskers(rows)
    spots = [
        Spot(row, scaled(x, metric.unit), quality, half[row.verdict.id], row.division)
        for row in rows
        if row.division
        and (quality := _value(row, QUALITY)) is not None
        and (x := _value(row, metric.name)) is not None
    ]
    return sorted(spots, key=lambda spot: (spot.x, -spot.quality, spot.row.verdict.id))


def _value(row: Row, name: str) -> float | None:
    """A figure that can be drawn."""
    reading = row.reading(name)
    return reading.value if reading and 1 / LARGEST < reading.value < LARGEST else None


def _words(metric: Metric, rows: Sequence[Row]) -> str:
    """Of the axis: what, its unit, how it is known where no row has it measured, and where to look."""
    kinds = {reading.kind for row in rows if (reading := row.reading(metric.name))}
    how = "" if "measured" in kinds else f", {' or '.join(sorted(kinds))}"
    better = "more" if metric.better > 0 else "less"
    return f"{metric.title}, {spelled(metric.shown_unit)}{how}; {better} is better"


def _original(plot: Plot, name: str, value: float) -> None:
    """A line across, named at its emptier end."""
    words = f"the original, {clean(name, LETTERS)}" if name else "the original"
    y, wide, right = plot.y_of(value), svg.width_of(words, 11.5) + 8, plot.width - 2
    ends = [(x, y + 3, x + wide, y + 18) for x in (right - wide, plot.left)]
    plot.path(svg.way("M", plot.left, y, "H", right), "reference")
    plot.text(plot.emptiest(*ends)[0] + 4, y + 15, words, size=11.5, css="soft")


def _front(plot: Plot, spots: Sequence[Spot], better: int) -> None:
    """The staircase of the best; nothing for a single one."""
    kept = [spots[i] for i in front([(spot.x, spot.quality) for spot in spots], better)]
    if len(kept) < 2:
        return
    steps: list[str | float] = ["M", plot.x_of(kept[0].x), plot.y_of(kept[0].quality)]
    for spot in kept[1:]:
        across, down = ("H", plot.x_of(spot.x)), ("V", plot.y_of(spot.quality))
        steps += (*across, *down) if better < 0 else (*down, *across)
    plot.path(svg.way(*steps), f"front {kept[0].division}")


def _point(plot: Plot, spot: Spot, metric: Metric, pages: str) -> None:
    row, reading = spot.row, spot.row.reading(metric.name)
    assert reading is not None
    title = f"{clean(row.name, 80)}: {figure(spot.quality)} bits per byte, {written(reading).with_unit}"
    title += f", place {row.span}" if row.place else ""
    page, x, y = f"{pages}{row.verdict.id}.html", plot.x_of(spot.x), plot.y_of(spot.quality)
    with plot.within("a", class_=f"point {spot.division}", href=page, data_id=row.verdict.id):
        plot.add(element("title", title))
        plot.mark("circle", x, y, HIT, "hit")
        if 0 < spot.whisker < LARGEST:
            plot.errors(spot.x, spot.quality, spot.whisker, spot.division)
        plot.mark(SHAPES[spot.division], x, y, 7.0, "dot")
        label = Label(clean(row.name, LETTERS), size=LABEL, gaps=(12.0, 22.0, 36.0, 54.0))
        plot.label(spot.x, spot.quality, label)


def scores(tasks: Sequence[TaskScore], width: int) -> Markup:
    """Score and original with their intervals, and chance, on one scale of 0 to 100 %."""
    beside = width >= BESIDE
    left, right, pitch = (250.0, width - 20.0, 34.0) if beside else (4.0, width - 12.0, 52.0)
    drawing = Drawing(width, pitch * len(tasks) + 26, "Scores; the table below has them")

    def x_of(share: float) -> float:
        return left + min(max(share, 0.0), 1.0) * (right - left)

    def interval(found: ScoreInterval, y: float, radius: float, css: str) -> None:
        drawing.path(svg.way("M", x_of(found.low), y, "H", x_of(found.high)), f"whisker {css}")
        drawing.mark("circle", x_of(found.value), y, radius, f"mark {css}")

    for per_cent in range(0, 101, 25):
        x, sign = x_of(per_cent / 100), " %" if per_cent == 100 else ""
        drawing.path(svg.way("M", x, 0, "V", drawing.height - 22), "grid")
        drawing.text(x, drawing.height - 6, f"{per_cent}{sign}", size=11, css="soft tick", anchor="middle")
    for i, task in enumerate(tasks):
        y, name = pitch * i + (pitch / 2 if beside else 36), clean(task.title or task.task, 34)
        if beside:
            drawing.text(left - 14, y + 4, name, size=13, anchor="end")
        else:
            drawing.text(0, y - 17, name, size=13)
        drawing.path(svg.way("M", x_of(task.chance), y - 9, "v", 18), "chance")
        if task.against:
            interval(task.against.original, y + 6, 4.5, "hollow original")
        interval(task.score, y - (6 if task.against else 0), 6.0, "edged rival")
    return drawing.markup()
