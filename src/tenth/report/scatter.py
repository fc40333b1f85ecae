"""The picture of quality against size: KL on a logarithmic axis over the file's megabytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from tenth.core.format import megabytes
from tenth.core.records import MB
from tenth.report.pictures import LETTER, Point, svg

Box = tuple[float, float, float, float]  # left, top, right, bottom
DENSE = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)  # factors of ticks
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 34.0, 46.0


def quality(points: Sequence[Point], width: int, height: int) -> str:
    """Scatter of the points with a positive KL; labels are moved so that none covers another or a mark.

    A label of an "other" point that finds no free place is left to its tooltip; ours and the rivals' show.
    """
    shown = [point for point in points if drawable(point.kl)]
    if not shown:
        return ""
    x_ticks, x_low, x_high = linear_axis([point.file_bytes / MB for point in shown])
    y_ticks, y_low, y_high = log_axis([point.kl for point in shown])

    def x_of(size: float) -> float:
        return LEFT + (size / MB - x_low) / (x_high - x_low) * (width - LEFT - RIGHT)

    def y_of(kl: float) -> float:
        share = (math.log(kl) - math.log(y_low)) / (math.log(y_high) - math.log(y_low))
        return height - BOTTOM - share * (height - TOP - BOTTOM)

    out = [
        '<text class="soft" x="0" y="14" font-size="12">'
        "KL to the original, nats per token; lower is better</text>"
    ]
    for value in y_ticks:
        y = y_of(value)
        out.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{width - RIGHT}"/>')
        out.append(
            f'<text class="soft tick" x="{LEFT - 8}" y="{y + 4:.1f}" font-size="11" '
            f'text-anchor="end">{value:g}</text>'
        )
    floor = height - BOTTOM
    for value in x_ticks:
        x = x_of(value * MB)
        out.append(f'<path class="axis" d="M{x:.1f} {floor}v5"/>')
        out.append(
            f'<text class="soft tick" x="{x:.1f}" y="{floor + 19}" font-size="11" '
            f'text-anchor="middle">{value:g}</text>'
        )
    out.append(f'<path class="axis" d="M{LEFT} {floor}H{width - RIGHT}"/>')
    out.append(
        f'<text class="soft" x="{width - RIGHT}" y="{height - 6}" font-size="12" '
        f'text-anchor="end">file, MB; smaller is better</text>'
    )
    places = [(point, x_of(point.file_bytes), y_of(point.kl)) for point in shown]
    order = {"other": 0, "rival": 1, "ours": 2}
    for point, x, y in sorted(places, key=lambda place: order[place[0].kind]):
        low = y_of(max(point.kl - point.spread, y_low)) if point.spread else y
        high = y_of(min(point.kl + point.spread, y_high)) if point.spread else y
        out += _mark(point, x, y, low, high)
    taken: list[Box] = [(x - 9, y - 9, x + 9, y + 9) for _, x, y in places]
    for point, x, y in sorted(places, key=lambda place: -order[place[0].kind]):
        out += _label(point, x, y, taken, (LEFT, 20.0, width - 2.0, floor))
    return svg(width, height, "Quality against size", out)


def drawable(kl: float) -> bool:
    """Whether a logarithmic axis has a place for the value."""
    return 0 < kl < math.inf


def _mark(point: Point, x: float, y: float, low: float, high: float) -> list[str]:
    colour = f"var(--{ {'ours': 'ours', 'rival': 'rival'}.get(point.kind, 'point') })"
    fill = colour if point.fits else "var(--card)"
    style = f'style="fill:{fill};stroke:{colour};stroke-width:2"'
    said = f"{point.name}: {megabytes(point.file_bytes)} MB, KL {point.kl:.4g}"
    said += "" if point.fits else ", does not fit"
    shape = {
        "ours": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" {style}>',
        "rival": f'<path d="M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8 -8z" {style}>',
    }.get(point.kind, f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {style}>')
    tag = "path" if shape.startswith("<path") else "circle"
    ends = f"M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"
    whisker = f'<path class="whisker" style="stroke:{colour}" d="M{x:.1f} {low:.1f}V{high:.1f}{ends}"/>'
    return ([whisker] if point.spread else []) + [f"{shape}<title>{escape(said)}</title></{tag}>"]


def _label(point: Point, x: float, y: float, taken: list[Box], inside: Box) -> list[str]:
    """The label at the first free place around the mark; a far place gets a line to the mark."""
    main = point.kind != "other"
    size = 13.0 if main else 10.5
    value = f" {point.kl:.3g}" if main else ""
    wide, tall = (len(point.name) + len(value) + 0.5) * LETTER * size + 4, size + 3
    found = free_box(x, y, wide, tall, (13.0, 24.0, 40.0, 60.0, 84.0) if main else (13.0,), taken, inside)
    if found:
        box, gap = found
        return _written(point, value, size, x, y, box, leader=gap > 13)
    if not main:
        return []
    # Nowhere is free: a label over a mark is better than a rival without a name.
    left = min(max(x + 13, inside[0]), inside[2] - wide)
    return _written(point, value, size, x, y, (left, y - tall / 2, left + wide, y + tall / 2), leader=False)


def free_box(
    x: float, y: float, wide: float, tall: float, gaps: Sequence[float], taken: list[Box], inside: Box
) -> tuple[Box, float] | None:
    """(a box near a mark, its gap), within `inside` and over none of `taken`, to which it is then added."""
    for gap in gaps:
        for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
            left = x + dx * gap - (wide / 2 if dx == 0 else wide if dx < 0 else 0)
            middle = y + dy * gap * (1.0 if dx == 0 else 0.8)
            box = (left, middle - tall / 2, left + wide, middle + tall / 2)
            if _within(box, inside) and not any(overlap(box, other) for other in taken):
                taken.append(box)
                return box, gap
    return None


def _written(
    point: Point, value: str, size: float, x: float, y: float, box: Box, *, leader: bool
) -> list[str]:
    main, middle = point.kind != "other", (box[1] + box[3]) / 2
    strong = ' class="strong"' if point.kind == "ours" else "" if main else ' class="soft"'
    out = [
        f'<text{strong} x="{box[0] + 2:.1f}" y="{middle + size * 0.35:.1f}" font-size="{size}">'
        f'{escape(point.name)}<tspan class="soft" font-weight="400">{value}</tspan></text>'
    ]
    if leader:
        edge = min(max(x, box[0]), box[2]), box[1] if middle > y else box[3]
        out.append(f'<path class="leader" d="M{x:.1f} {y:.1f}L{edge[0]:.1f} {edge[1]:.1f}"/>')
    return out


def _within(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes share more than an edge."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def linear_axis(values: Sequence[float], parts: int = 5) -> tuple[list[float], float, float]:
    """Round ticks, at most about `parts`, and the ends of an axis with room for labels on both sides."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.22, high * 0.06, 0.01)
    low, high = max(low - room, 0.0), high + room
    step = round_step((high - low) / parts)
    first = math.ceil(low / step)
    return [round(i * step, 9) for i in range(first, math.floor(high / step) + 1)], low, high


def round_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten: a distance between ticks."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def log_axis(
    values: Sequence[float], room: float = 1.8, dense: bool = False
) -> tuple[list[float], float, float]:
    """Round ticks, and the ends of a logarithmic axis with room for labels on both sides.

    dense: more ticks where the axis spans little.
    """
    low, high = min(values) / room, max(values) * room
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in (*((DENSE,) if dense else ()), (1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{factor}e{power}") for power in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 8:
            break
    return ticks, low, high
