"""The picture of what a plan could give up for what: predicted KL over decoding speed, one curve for each
memory.

The axis above is energy: on a device whose power is known, joules per token follow from the speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from tenth.core.format import megabytes, number
from tenth.core.records import Forecast, Plan, Trade
from tenth.report.pictures import LETTER, svg
from tenth.report.scatter import log_axis

Place = Callable[[float], float]  # of a value on an axis
LEFT, RIGHT, TOP, BOTTOM = 58.0, 18.0, 64.0, 46.0
COLOURS = ("kv", "weights", "compute", "output")  # variables of report.css
DASHES = ("", "7 4", "2 4", "9 3 2 3")


def picture(plan: Plan, width: int, height: int) -> str:
    """The curves and the plan among them; nothing where there is no outlook to draw."""
    found = plan.forecast
    curves = [curve for curve in found.curves if all(p.predicted_kl > 0 for p in curve)] if found else []
    speed = found.estimate("decode") if found else None
    if not found or not curves or speed is None or plan.predicted_kl <= 0:
        return ""
    points = [point for curve in curves for point in curve]
    x_ticks, x_low, x_high = log_axis(
        [*(point.speed for point in points), speed.value], room=1.25, dense=True
    )
    y_ticks, y_low, y_high = log_axis([*(point.predicted_kl for point in points), plan.predicted_kl])

    def x_of(value: float) -> float:
        return LEFT + math.log(value / x_low) / math.log(x_high / x_low) * (width - LEFT - RIGHT)

    def y_of(value: float) -> float:
        share = math.log(value / y_low) / math.log(y_high / y_low)
        return height - BOTTOM - share * (height - TOP - BOTTOM)

    floor = height - BOTTOM
    out = [
        '<text class="soft" x="0" y="14" font-size="12">predicted KL, nats per token; lower is better</text>'
    ]
    for value in y_ticks:
        y = y_of(value)
        out.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{width - RIGHT}"/>')
        out.append(
            f'<text class="soft tick" x="{LEFT - 8}" y="{y + 4:.1f}" font-size="11" '
            f'text-anchor="end">{value:g}</text>'
        )
    for value in x_ticks:
        x = x_of(value)
        out.append(f'<path class="axis" d="M{x:.1f} {floor}v5"/>')
        out.append(
            f'<text class="soft tick" x="{x:.1f}" y="{floor + 19}" font-size="11" '
            f'text-anchor="middle">{value:g}</text>'
        )
    out.append(f'<path class="axis" d="M{LEFT} {floor}H{width - RIGHT}"/>')
    out.append(
        f'<text class="soft" x="{width - RIGHT}" y="{height - 6}" font-size="12" text-anchor="end">'
        "decoding, tokens/s; further right is faster</text>"
    )
    out += _energy(points, x_ticks, x_of, width)
    for i, curve in enumerate(curves):
        out += _curve(curve, i, x_of, y_of)
    x, y = x_of(speed.value), y_of(plan.predicted_kl)
    said = f"this plan: {megabytes(plan.memory.total)} MB, predicted KL {plan.predicted_kl:.3g}"
    said += f", {number(speed.value)} tokens/s"
    out.append(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" style="fill:var(--ours);stroke:var(--card);'
        f'stroke-width:2"><title>{escape(said)}</title></circle>'
    )
    side, gap = ("end", -12) if x > LEFT + 80 else ("start", 12)
    out.append(
        f'<text class="strong" x="{x + gap:.1f}" y="{y + 20:.1f}" font-size="12" '
        f'text-anchor="{side}">this plan</text>'
    )
    return svg(width, height, "Quality against speed, energy and memory", out)


def legend(forecast: Forecast) -> str:
    """The memory of each curve, as an HTML list."""
    items = []
    for i, curve in enumerate(forecast.curves):
        most = max(point.memory for point in curve)
        line = (
            f'<svg viewBox="0 0 30 10" style="display:inline-block;width:30px;vertical-align:middle" '
            f'aria-hidden="true"><path d="M0 5H30" style="{_stroke(i)}"/></svg>'
        )
        items.append(f"<li>{line} <b>{megabytes(most)}</b> <span>MB</span></li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _stroke(i: int) -> str:
    return (
        f"fill:none;stroke:var(--{COLOURS[i % len(COLOURS)]});stroke-width:2.5;"
        f"stroke-dasharray:{DASHES[i % len(DASHES)] or 'none'}"
    )


def _curve(curve: Sequence[Trade], i: int, x_of: Place, y_of: Place) -> list[str]:
    places = [(x_of(point.speed), y_of(point.predicted_kl), point) for point in curve]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)
    out = [f'<path d="M{path}" style="{_stroke(i)}"/>']
    for x, y, point in places:
        said = (
            f"{megabytes(point.memory)} MB: predicted KL {point.predicted_kl:.3g}, {number(point.speed)}"
            f" tokens/s, {number(point.joules)} J per token"
        )
        ink = f"fill:var(--card);stroke-width:2;stroke:var(--{COLOURS[i % len(COLOURS)]})"
        out.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" style="{ink}"><title>{escape(said)}</title></circle>'
        )
    return out


def _energy(points: Sequence[Trade], ticks: Sequence[float], x_of: Place, width: int) -> list[str]:
    """The upper axis, where energy follows from the speed."""
    powers = [point.joules * point.speed for point in points]
    if max(powers) > 1.01 * min(powers):
        return []
    out = [f'<path class="axis" d="M{LEFT} {TOP - 8}H{width - RIGHT}"/>']
    out.append(
        f'<text class="soft" x="{width - RIGHT}" y="{TOP - 32}" font-size="12" text-anchor="end">'
        "J per token</text>"
    )
    last = -math.inf
    for value in ticks:
        x, text = x_of(value), number(powers[0] / value)
        if x - last > len(text) * 11 * LETTER + 8:
            out.append(f'<path class="axis" d="M{x:.1f} {TOP - 8}v-5"/>')
            out.append(
                f'<text class="soft tick" x="{x:.1f}" y="{TOP - 17}" font-size="11" '
                f'text-anchor="middle">{text}</text>'
            )
            last = x
    return out
