"""The charts of a report, each as markup for a given width; empty where there is nothing to show."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from markupsafe import Markup

from tenth.core.format import bits_text, megabytes, number
from tenth.core.ggml import STORAGE_TYPES
from tenth.core.metrics import MEMORY
from tenth.core.records import MB, MemoryParts, Plan, Scorecard, Structure, Trade
from tenth.report import svg
from tenth.report.svg import Axis, Drawing, Label, Plot, element

# ColorBrewer YlGnBu, few bits to many; safe for colour-blind readers.
RAMP = ("ffffd9", "edf8b1", "c7e9b4", "7fcdbb", "41b6c4", "1d91c0", "225ea8", "253494", "081d58")
FEWEST_BITS, MOST_BITS = 1.5, 16.0
CELL_LETTERS = 11.0  # size of the type in a cell
CURVES = ("kv", "weights", "compute", "output")  # colours of report.css


# ---- where the memory goes


class Bar(NamedTuple):
    """One stacked bar of the picture of memory: a label, and parts in bytes."""

    label: str
    total: int
    parts: list[tuple[str, str, int]]  # colour, name, bytes


def memory(plan: Plan, card: Scorecard, width: int) -> Markup:
    """Stacked bars: ours predicted and measured, the others predicted, and the budget as a line."""
    bars, budget = _bars(plan, card), card.proof.budget
    top, pitch, thick = 30, 58, 26
    drawing = Drawing(width, top + pitch * len(bars), "Where the memory goes, against the budget")
    scale = (width - 2) / (1.03 * max(budget, 1, *(bar.total for bar in bars)))
    for row, bar in enumerate(bars):
        y = top + pitch * row
        total = element("tspan", f"{megabytes(bar.total)} MB", class_="strong", dx=8)
        drawing.text(0, y + 16, bar.label, total, size=13)
        x = 0.0
        for colour, name, size in bar.parts:
            wide = size * scale
            box = (x, y + 24, x + max(wide, 0.4), y + 24 + thick)
            drawing.rect(box, f"area {colour}", title=f"{name}: {megabytes(size)} MB")
            if wide > svg.width_of(name, 12) + 14:
                css = "on" if colour in ("weights", "anonymous") else "on dark"
                drawing.text(x + 7, y + 41.5, name, css=css)
            x += wide
    x = budget * scale
    drawing.path(svg.way("M", x, 0, "V", drawing.height), "budget")
    words = f"budget {megabytes(budget)} MB"
    if x > width / 2:
        drawing.text(x - 6, 13, words, size=13, css="strong", anchor="end")
    else:
        drawing.text(x + 6, 13, words, size=13, css="strong")
    return drawing.markup()


def _bars(plan: Plan, card: Scorecard) -> list[Bar]:
    proof = card.proof
    ours = card.candidates[0].name if card.candidates else "tenth"
    backed = min(proof.peak_file_backed, proof.peak)
    measured = [("weights", "file-backed", backed), ("anonymous", "anonymous", proof.peak - backed)]
    return [
        Bar(f"{ours}, predicted", plan.memory.total, _parts(plan.memory)),
        Bar(f"{ours}, measured peak", proof.peak, measured),
        *(Bar(f"{c.name}, predicted", c.memory.total, _parts(c.memory)) for c in card.candidates[1:]),
    ]


def _parts(memory: MemoryParts) -> list[tuple[str, str, int]]:
    sizes = memory.model_dump()
    return [(name, "KV" if name == "kv" else name, sizes[name]) for name in MEMORY if sizes[name]]


# ---- bits by layer


def bits_of(type_name: str) -> float | None:
    """Bits per weight of a ggml type, scales included; None for a name that ggml does not know."""
    kind = STORAGE_TYPES.get(type_name.upper())
    return kind.bits_per_weight if kind else None


def cell_colour(bits: float | None) -> tuple[str, bool]:
    """Colour of a number of bits on a logarithmic ramp, and whether dark text is legible on it."""
    if bits is None:
        return "#8a94a0", True
    span = math.log(MOST_BITS / FEWEST_BITS)
    place = min(max(math.log(bits / FEWEST_BITS) / span, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    share = place - low
    mixed = [
        round(int(RAMP[low][i : i + 2], 16) * (1 - share) + int(RAMP[low + 1][i : i + 2], 16) * share)
        for i in (0, 2, 4)
    ]
    light = 0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2] > 140
    return "#" + "".join(f"{value:02x}" for value in mixed), light


def split_name(name: str) -> tuple[int | None, str]:
    """("blk.3.attn_q.weight") -> (3, "attn_q"); tensors outside the blocks have no layer."""
    match = re.fullmatch(r"blk\.(\d{1,6})\.(.+)", name)
    layer, rest = (int(match[1]), match[2]) if match else (None, name)
    return layer, rest.removesuffix(".weight")


class Matrices:
    """The storage types of a plan by layer and role, and of what lies outside the layers."""

    def __init__(self, types: Mapping[str, str]) -> None:
        self.cells: dict[tuple[str, str], str] = {}  # (layer, role) -> type
        self.outside: dict[str, str] = {}  # the embedding and the output matrix
        for name, kind in types.items():
            layer, role = split_name(name)
            if layer is None:
                self.outside[role] = kind
            else:
                self.cells[str(layer), role] = kind
        self.layers = sorted({layer for layer, _ in self.cells}, key=int)
        self.roles = list(dict.fromkeys(role for _, role in self.cells))

    def labels(self, side: float) -> dict[str, str]:
        """What to write into every cell: types where all of them fit, else bits, else nothing anywhere."""
        kinds = set(self.cells.values())
        for labels in ({kind: kind for kind in kinds}, {kind: bits_text(bits_of(kind)) for kind in kinds}):
            if max((svg.width_of(label, CELL_LETTERS) for label in labels.values()), default=0) <= side - 4:
                return labels
        return dict.fromkeys(kinds, "")


def bits(types: Mapping[str, str], width: int, *, layers_down: bool) -> Markup:
    """Heat map: one cell for each matrix, coloured by bits per weight; layers across, or down on a phone."""
    matrices = Matrices(types)
    across, down = (matrices.roles, matrices.layers) if layers_down else (matrices.layers, matrices.roles)
    widest = max((svg.width_of(name, 12) for name in (*matrices.roles, *matrices.outside)), default=0.0)
    left = 26.0 if layers_down else max(60.0, widest + 12)
    side = min((width - left) / max(len(across), 1), 72.0)
    tall = 22.0 if layers_down else 30.0
    above = 25 if layers_down else 8  # what a cell outside the layers takes beside its height
    names = (36 if layers_down else 24) if matrices.cells else 0
    head = len(matrices.outside) * (tall + above) + names
    drawing = Drawing(width, head + len(down) * tall + 4, "Bits per weight of every matrix")
    right = left + max(side * len(across), min(width - left, 320))
    for i, (role, kind) in enumerate(matrices.outside.items()):
        y = i * (tall + above)
        if layers_down:
            drawing.text(left, y + 12, role)
            y += 17
        else:
            drawing.text(left - 10, y + 20, role, anchor="end")
        _cell(drawing, (left, y, right, y + tall), role, kind, f"{kind}, {bits_text(bits_of(kind))} bits")
    if layers_down:
        _roles_above(drawing, across, left, head - 25, side)
    else:
        _layers_above(drawing, across, left, head - 7, side)
    for i, name in enumerate(down):
        y = head + (i + 0.5) * tall + 4
        if layers_down:
            drawing.text(left - 7, y, name, size=11, css="soft", anchor="end")
        else:
            drawing.text(left - 10, y, name, anchor="end")
    labels = matrices.labels(side)
    for (layer, role), kind in matrices.cells.items():
        column, row = (role, layer) if layers_down else (layer, role)
        x, y = left + across.index(column) * side, head + down.index(row) * tall
        _cell(drawing, (x, y, x + side, y + tall), f"layer {layer}, {role}", kind, labels[kind])
    return drawing.markup()


def _roles_above(drawing: Drawing, roles: Sequence[str], left: float, y: float, side: float) -> None:
    """Each in one or two lines."""
    for i, role in enumerate(roles):
        for line, word in enumerate(role.split("_", 1)):
            x = left + (i + 0.5) * side
            drawing.text(x, y + 6 + 12 * line, word, size=10.5, css="soft", anchor="middle")


def _layers_above(drawing: Drawing, layers: Sequence[str], left: float, y: float, side: float) -> None:
    """As many of them as have room."""
    if layers:
        drawing.text(left - 10, y, "layer", size=11, css="soft", anchor="end")
    every = max(1, math.ceil(22 / side))
    for i in range(0, len(layers), every):
        drawing.text(left + (i + 0.5) * side, y, layers[i], size=11, css="soft", anchor="middle")


def _cell(drawing: Drawing, box: svg.Box, title: str, kind: str, label: str) -> None:
    """A coloured cell with a label that can be read on it."""
    left, top, right, bottom = box
    per_weight = bits_of(kind)
    colour, dark = cell_colour(per_weight)
    inner = (left + 1, top + 1, max(right - 1, left + 2), bottom - 1)
    words = f"{title}: {kind}, {bits_text(per_weight)} bits per weight"
    drawing.rect(inner, title=words, rx=3, fill=colour)
    if label:
        x, y = (left + right) / 2, (top + bottom) / 2 + 4
        css = "on dark" if dark else "on"
        drawing.text(x, y, label, size=CELL_LETTERS, css=css, anchor="middle")


# ---- what was removed


def removed(structure: Structure, width: int) -> Markup:
    """A column a block: the share of its channels, and a dot for every KV head, filled where it stays."""
    shape, bar = structure.shape, 130
    if shape is None:
        return Markup("")
    blocks = len(shape.ffn)
    pitch = width / blocks
    inner = max(2.0, min(pitch - 4, 46))
    rows = structure.kv_heads if structure.kv_heads <= 8 else 0
    top = 14 * rows + (18 if rows else 0) + 6
    floor = top + bar
    drawing = Drawing(width, floor + 46, "What is left of every block")
    for index, (channels, heads) in enumerate(zip(shape.ffn, shape.kv_heads, strict=True)):
        left = index * pitch + (pitch - inner) / 2
        middle = left + inner / 2
        gone = not channels and not heads
        kept = f"{channels} of {structure.channels} channels, {heads} of {structure.kv_heads} KV heads"
        with drawing.within("g"):
            drawing.add(element("title", f"block {index}: {'removed' if gone else kept}"))
            for head in range(rows):
                css = "mark kv" if head < heads else "mark kv missing"
                drawing.mark("circle", middle, 10.0 + 14 * head, min(3.5, inner / 2 - 0.5), css)
            drawing.rect((left, top, left + inner, floor), "axis", rx=3)
            full = floor - bar * channels / structure.channels
            drawing.rect((left, full, left + inner, floor), "area weights", rx=3)
            if blocks <= width / 24:
                name = "–" if gone else str(index)
                drawing.text(middle, floor + 16, name, size=11, css="soft", anchor="middle")
    dots = "dots: KV heads; " if rows else ""
    drawing.text(
        0, floor + 36, f"{dots}bars: feed-forward channels; filled is what stays, block by block", css="soft"
    )
    return drawing.markup()


# ---- plots


@dataclass(frozen=True)
class FilePoint:
    """One file in the picture of quality against size."""

    name: str
    file_bytes: int
    distance: float  # to the original: KL, or bits per byte
    spread: float | None = None
    kind: Literal["ours", "rival", "other"] = "other"
    fits: bool = True

    @property
    def drawable(self) -> bool:
        """Whether a logarithmic axis has a place for it."""
        return 0 < self.distance < math.inf


MARKS: dict[str, tuple[svg.MarkShape, float]] = {
    "other": ("circle", 4.0),
    "rival": ("diamond", 6.4),
    "ours": ("circle", 8.0),
}  # from back to front


AXES = {
    "kl": ("KL", "KL to the original, nats per token; lower is better"),
    "bits_per_byte": ("bits per byte", "bits per byte of held-out text; lower is better"),
}  # of the distance to the original: in a tooltip, and along the axis


def quality(points: Sequence[FilePoint], width: int, height: int, measure: str = "kl") -> Markup:
    """Distance on a logarithmic axis over the file's megabytes, of the points that have a place there.

    measure: which of `AXES` the points' distances are.
    A label of an "other" point that finds no free place is left to its tooltip; ours and the rivals' show.
    """
    shown = sorted(
        (point for point in points if point.drawable), key=lambda point: list(MARKS).index(point.kind)
    )
    if not shown:
        return Markup("")
    plot = Plot(
        (width, height),
        "Quality against size",
        Axis(svg.linear([point.file_bytes / MB for point in shown]), "file, MB; smaller is better"),
        Axis(svg.logarithmic([point.distance for point in shown]), AXES[measure][1]),
    )
    for point in shown:
        size = point.file_bytes / MB
        if point.spread:
            plot.errors(size, point.distance, point.spread, point.kind)
        title = f"{point.name}: {megabytes(point.file_bytes)} MB, {AXES[measure][0]} {point.distance:.4g}"
        title += "" if point.fits else ", does not fit"
        css = f"mark {point.kind}" + ("" if point.fits else " hollow")
        shape, radius = MARKS[point.kind]
        plot.mark(shape, plot.x_of(size), plot.y_of(point.distance), radius, css, title)
        plot.keep_clear(size, point.distance)
    for point in reversed(shown):
        plot.label(point.file_bytes / MB, point.distance, _label(point))
    return plot.markup()


def _label(point: FilePoint) -> Label:
    if point.kind == "other":
        return Label(point.name, size=10.5, css="soft")
    css = "strong" if point.kind == "ours" else ""
    return Label(point.name, f" {point.distance:.3g}", 13.0, css, (13.0, 24.0, 40.0, 60.0, 84.0), must=True)


def tradeoff(plan: Plan, width: int, height: int) -> Markup:
    """What the plan could give up for what: predicted KL over decoding speed, one curve for each memory.

    The axis above is energy: on a device whose power is known, joules per token follow from the speed.
    """
    forecast = plan.forecast
    curves = [c for c in forecast.curves if all(p.predicted_kl > 0 for p in c)] if forecast else []
    speed = forecast.estimate("decode") if forecast else None
    if not curves or speed is None or plan.predicted_kl <= 0:
        return Markup("")
    points = [point for curve in curves for point in curve]
    speeds = svg.logarithmic([*(point.speed for point in points), speed.value], 1.25, dense=True)
    kls = svg.logarithmic([*(point.predicted_kl for point in points), plan.predicted_kl])
    plot = Plot(
        (width, height),
        "Quality against speed, energy and memory",
        Axis(speeds, "writing speed, tokens/s; further right is faster"),
        Axis(kls, "predicted KL, nats per token; lower is better"),
        margin=(58.0, 64.0),
    )
    _energy_axis(plot, points, speeds.ticks)
    for i, curve in enumerate(curves):
        plot.curve([(point.speed, point.predicted_kl) for point in curve], stroke(i))
        for point in curve:
            title = (
                f"{megabytes(point.memory)} MB: predicted KL {point.predicted_kl:.3g}, {number(point.speed)}"
                f" tokens/s, {number(point.joules)} J per token"
            )
            x, y = plot.x_of(point.speed), plot.y_of(point.predicted_kl)
            plot.mark("circle", x, y, 4.0, f"mark hollow {CURVES[i % len(CURVES)]}", title)
    x, y = plot.x_of(speed.value), plot.y_of(plan.predicted_kl)
    title = f"this plan: {megabytes(plan.memory.total)} MB, predicted KL {plan.predicted_kl:.3g}"
    plot.mark("circle", x, y, 8.0, "mark edged ours", f"{title}, {number(speed.value)} tokens/s")
    if x > plot.left + 80:
        plot.text(x - 12, y + 20, "this plan", css="strong", anchor="end")
    else:
        plot.text(x + 12, y + 20, "this plan", css="strong")
    return plot.markup()


def stroke(i: int) -> str:
    """The look of a curve: another colour and other dashes for each."""
    return f"stroke {CURVES[i % len(CURVES)]} dashes-{i % len(CURVES)}"


def _energy_axis(plot: Plot, points: Sequence[Trade], speeds: Sequence[float]) -> None:
    """The upper axis, where energy follows from the speed."""
    powers = [point.joules * point.speed for point in points]
    if max(powers) > 1.01 * min(powers):
        return
    y = plot.top - 8
    plot.path(svg.way("M", plot.left, y, "H", plot.right), "axis")
    plot.text(plot.right, y - 24, "J per token", css="soft", anchor="end")
    last = -math.inf
    for speed in speeds:
        x, text = plot.x_of(speed), number(powers[0] / speed)
        if x - last > svg.width_of(text, 11) + 8:
            plot.path(svg.way("M", x, y, "v", -5), "axis")
            plot.text(x, y - 9, text, size=11, css="soft tick", anchor="middle")
            last = x


@dataclass(frozen=True)
class Curve:
    """One quantity over depth of context or over time, from zero."""

    title: str  # what goes up, with its unit
    below: str  # what goes right
    colour: str
    spots: Sequence[tuple[float, float, float]]  # x, y, spread; joined in order
    dots: bool = True


def curve(what: Curve, width: int, height: int) -> Markup:
    """The curve with whiskers."""
    if not what.spots:
        return Markup("")
    right = max(x for x, *_ in what.spots) or 1.0
    top = 1.1 * max(y + spread for _, y, spread in what.spots) or 1.0
    across, up = svg.from_zero(right, 5 if width > 300 else 3), svg.from_zero(top)
    margin = (46.0, 30.0)
    plot = Plot((width, height), what.title, Axis(across, what.below), Axis(up, what.title), margin)
    plot.curve([(x, y) for x, y, _ in what.spots], f"stroke {what.colour}")
    for x, y, spread in what.spots if what.dots else ():
        if spread:
            plot.errors(x, y, spread, what.colour)
        title = f"{x:g}: {y:.4g}" + (f" ± {spread:.2g}" if spread else "")
        plot.mark("circle", plot.x_of(x), plot.y_of(y), 4.5, f"mark {what.colour}", title)
    return plot.markup()
