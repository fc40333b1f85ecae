"""Two pictures of a report as inline SVG, memory and bits by layer, and what all of them share.

Each is drawn for a given width, because text in a scaled-down picture cannot be read on a phone: the page
holds a wide and a narrow drawing and shows one. Colours are CSS variables of report.css (Okabe-Ito hues) and
the YlGnBu ramp, safe for colour-blind readers; nothing is told by colour alone, but by shapes and labels too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from tenth.core.format import bits_text, megabytes
from tenth.core.ggml import STORAGE_TYPES
from tenth.core.records import Plan, Scorecard

PARTS = ("weights", "repacked", "kv", "compute", "output", "base")
# ColorBrewer YlGnBu, few bits to many.
RAMP = ("ffffd9", "edf8b1", "c7e9b4", "7fcdbb", "41b6c4", "1d91c0", "225ea8", "253494", "081d58")
FEWEST_BITS, MOST_BITS = 1.5, 16.0
CELL_LETTERS = 11.0
LETTER = 0.56  # mean width of a letter in units of the font size, for deciding whether a label fits


@dataclass(frozen=True)
class Point:
    """One file in the picture of quality against size."""

    name: str
    file_bytes: int
    kl: float
    spread: float | None = None
    kind: str = "other"  # "ours" | "rival" | "other"
    fits: bool = True


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


def memory(plan: Plan, card: Scorecard, width: int) -> str:
    """Stacked bars: ours predicted and measured, the others predicted, and the budget as a line."""
    proof = card.proof
    ours = card.candidates[0].name if card.candidates else "tenth"
    bars: list[tuple[str, int, list[tuple[str, str, int]]]] = [
        (f"{ours}, predicted", plan.memory.total, _stack(plan.memory.model_dump())),
        (
            f"{ours}, measured peak",
            proof.peak,
            [
                ("weights", "file-backed", min(proof.peak_file_backed, proof.peak)),
                ("anonymous", "anonymous", max(proof.peak - proof.peak_file_backed, 0)),
            ],
        ),
    ]
    bars += [
        (f"{other.name}, predicted", other.memory.total, _stack(other.memory.model_dump()))
        for other in card.candidates[1:]
    ]
    top, pitch, thick = 30, 58, 26
    height = top + pitch * len(bars)
    scale = (width - 2) / (1.03 * max([proof.budget, *(total for _, total, _ in bars), 1]))
    out: list[str] = []
    for row, (label, total, stack) in enumerate(bars):
        y = top + pitch * row
        out.append(
            f'<text x="0" y="{y + 16}" font-size="13">{escape(label)}'
            f'<tspan class="strong" dx="8">{megabytes(total)} MB</tspan></text>'
        )
        x = 0.0
        for colour, name, size in stack:
            wide = size * scale
            said = f"<title>{escape(name)}: {megabytes(size)} MB</title>"
            out.append(
                f'<rect x="{x:.1f}" y="{y + 24}" width="{max(wide, 0.4):.1f}" height="{thick}" '
                f'style="fill:var(--{colour})">{said}</rect>'
            )
            if wide > len(name) * LETTER * 12 + 14:
                dark = "" if colour in ("weights", "anonymous") else " dark"
                out.append(
                    f'<text class="on{dark}" x="{x + 7:.1f}" y="{y + 41.5}" font-size="12">'
                    f"{escape(name)}</text>"
                )
            x += wide
    x = proof.budget * scale
    side, shift = ("end", -6) if x > width / 2 else ("start", 6)
    out.append(f'<path class="budget" d="M{x:.1f} 0V{height}"/>')
    out.append(
        f'<text class="strong" x="{x + shift:.1f}" y="13" font-size="13" text-anchor="{side}">'
        f"budget {megabytes(proof.budget)} MB</text>"
    )
    return svg(width, height, "Where the memory goes, against the budget", out)


def _stack(parts: Mapping[str, int]) -> list[tuple[str, str, int]]:
    return [(name, "KV" if name == "kv" else name, parts[name]) for name in PARTS if parts[name]]


def bits(types: Mapping[str, str], width: int, *, layers_down: bool) -> str:
    """Heat map: one cell for each matrix, coloured by bits per weight; layers across, or down on a phone."""
    cells: dict[tuple[int, str], str] = {}
    outside: list[tuple[str, str]] = []
    for name, kind in types.items():
        layer, role = split_name(name)
        if layer is None:
            outside.append((role, kind))
        else:
            cells[layer, role] = kind
    layers = sorted({layer for layer, _ in cells})
    roles = list(dict.fromkeys(role for _, role in cells))
    columns, rows = (len(roles), len(layers)) if layers_down else (len(layers), len(roles))
    left = (
        26
        if layers_down
        else max([60, *(round(len(name) * 12 * LETTER) + 12 for name in [*roles, *(n for n, _ in outside)])])
    )
    side = min((width - left) / max(columns, 1), 72.0)
    tall = 22.0 if layers_down else 30.0
    span = max(side * columns, min(width - left, 320))
    out: list[str] = []
    y = 0.0
    for role, kind in outside:  # the embedding and the output matrix: one long cell each
        if layers_down:
            out.append(f'<text x="{left}" y="{y + 12}" font-size="12">{escape(role)}</text>')
            y += 17
        else:
            out.append(
                f'<text x="{left - 10}" y="{y + 20}" font-size="12" text-anchor="end">{escape(role)}</text>'
            )
        out += _cell(left, y, span, tall, role, kind, f"{kind}, {bits_text(bits_of(kind))} bits")
        y += tall + 8
    if cells:
        y = _grid_names(out, layers, roles, left, y + 6, side, tall, layers_down)
    labels = _labels(set(cells.values()), side)
    for (layer, role), kind in cells.items():
        across, down = (
            (roles.index(role), layers.index(layer))
            if layers_down
            else (layers.index(layer), roles.index(role))
        )
        title = f"layer {layer}, {role}"
        out += _cell(left + across * side, y + down * tall, side, tall, title, kind, labels[kind])
    return svg(width, y + rows * tall + 4, "Bits per weight of every matrix", out)


def _grid_names(
    out: list[str],
    layers: Sequence[int],
    roles: Sequence[str],
    left: float,
    y: float,
    side: float,
    tall: float,
    layers_down: bool,
) -> float:
    """Write the names along two sides of the grid; returns the y of its first row."""
    if layers_down:
        for i, role in enumerate(roles):
            for line, word in enumerate(role.split("_", 1)):
                x = left + (i + 0.5) * side
                out.append(
                    f'<text class="soft" x="{x:.1f}" y="{y + 11 + 12 * line:.1f}" font-size="10.5" '
                    f'text-anchor="middle">{escape(word)}</text>'
                )
        y += 30
        for i, layer in enumerate(layers):
            out.append(
                f'<text class="soft" x="{left - 7}" y="{y + (i + 0.5) * tall + 4:.1f}" font-size="11" '
                f'text-anchor="end">{layer}</text>'
            )
        return y
    every = max(1, math.ceil(22 / side))
    out.append(
        f'<text class="soft" x="{left - 10}" y="{y + 11:.1f}" font-size="11" text-anchor="end">layer</text>'
    )
    for i, layer in enumerate(layers):
        if i % every == 0:
            x = left + (i + 0.5) * side
            out.append(
                f'<text class="soft" x="{x:.1f}" y="{y + 11:.1f}" font-size="11" '
                f'text-anchor="middle">{layer}</text>'
            )
    y += 18
    for i, role in enumerate(roles):
        out.append(
            f'<text x="{left - 10}" y="{y + (i + 0.5) * tall + 4:.1f}" font-size="12" '
            f'text-anchor="end">{escape(role)}</text>'
        )
    return y


def _labels(kinds: set[str], side: float) -> dict[str, str]:
    """What to write into every cell: type names where all of them fit, else bits, else nothing anywhere."""
    for labels in ({kind: kind for kind in kinds}, {kind: bits_text(bits_of(kind)) for kind in kinds}):
        if max((len(label) for label in labels.values()), default=0) * LETTER * CELL_LETTERS <= side - 4:
            return labels
    return dict.fromkeys(kinds, "")


def _cell(x: float, y: float, wide: float, tall: float, title: str, kind: str, label: str) -> list[str]:
    width = bits_of(kind)
    colour, dark = cell_colour(width)
    said = f"{title}: {kind}, {bits_text(width)} bits per weight"
    out = [
        f'<rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{max(wide - 2, 1):.1f}" '
        f'height="{tall - 2:.1f}" rx="3" fill="{colour}">'
        f"<title>{escape(said)}</title></rect>"
    ]
    if label:
        ink = "on dark" if dark else "on"
        out.append(
            f'<text class="{ink}" x="{x + wide / 2:.1f}" y="{y + tall / 2 + 4:.1f}" '
            f'font-size="{CELL_LETTERS:g}" text-anchor="middle">{escape(label)}</text>'
        )
    return out


def svg(width: float, height: float, label: str, body: Sequence[str]) -> str:
    """One picture of that size in CSS pixels; `label` is read to those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:.0f}" role="img" aria-label="{escape(label)}">'
        + "".join(body)
        + "</svg>"
    )
