"""A small curve with whiskers: one quantity over depth of context or over time, the axis from zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from tenth.report.pictures import svg
from tenth.report.scatter import round_step

LEFT, RIGHT, TOP, BOTTOM = 46.0, 16.0, 30.0, 40.0
Spot = tuple[float, float, float]  # x, y, spread


def curve(
    spots: Sequence[Spot], width: int, height: int, *, title: str, below: str, colour: str, dots: bool = True
) -> str:
    """Spots joined in order; nothing for none. title: what goes up, with its unit; below: what goes right."""
    if not spots:
        return ""
    right = max(x for x, *_ in spots) or 1.0
    top = 1.1 * max(y + spread for _, y, spread in spots) or 1.0
    floor = height - BOTTOM

    def x_of(value: float) -> float:
        return LEFT + value / right * (width - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return floor - value / top * (floor - TOP)

    out = [f'<text class="soft" x="0" y="14" font-size="12">{escape(title)}</text>']
    for value in _ticks(top, 5):
        out.append(f'<path class="grid" d="M{LEFT} {y_of(value):.1f}H{width - RIGHT}"/>')
        out.append(
            f'<text class="soft tick" x="{LEFT - 8}" y="{y_of(value) + 4:.1f}" font-size="11" '
            f'text-anchor="end">{value:g}</text>'
        )
    for value in _ticks(right, 5 if width > 300 else 3):
        out.append(f'<path class="axis" d="M{x_of(value):.1f} {floor}v5"/>')
        out.append(
            f'<text class="soft tick" x="{x_of(value):.1f}" y="{floor + 18}" font-size="11" '
            f'text-anchor="middle">{value:g}</text>'
        )
    out.append(f'<path class="axis" d="M{LEFT} {floor}H{width - RIGHT}"/>')
    out.append(
        f'<text class="soft" x="{width - RIGHT}" y="{height - 5}" font-size="12" '
        f'text-anchor="end">{escape(below)}</text>'
    )
    line = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y, _ in spots)
    out.append(f'<path style="fill:none;stroke:var(--{colour});stroke-width:2" d="M{line}"/>')
    for x, y, spread in spots if dots else ():
        across, low, high = x_of(x), y_of(max(y - spread, 0.0)), y_of(y + spread)
        if spread:
            ends = f"M{across - 4:.1f} {low:.1f}h8M{across - 4:.1f} {high:.1f}h8"
            out.append(
                f'<path class="whisker" style="stroke:var(--{colour})" '
                f'd="M{across:.1f} {low:.1f}V{high:.1f}{ends}"/>'
            )
        said = escape(f"{x:g}: {y:.4g}" + (f" ± {spread:.2g}" if spread else ""))
        out.append(
            f'<circle cx="{across:.1f}" cy="{y_of(y):.1f}" r="4.5" style="fill:var(--{colour})">'
            f"<title>{said}</title></circle>"
        )
    return svg(width, height, title, out)


def _ticks(end: float, about: int) -> list[float]:
    """Round values from zero to the end."""
    step = round_step(end / about)
    return [round(i * step, 9) for i in range(math.floor(end / step + 1e-9) + 1)]
