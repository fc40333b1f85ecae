"""The report's section on what was removed: every block of the original as what is left of it."""

from __future__ import annotations

from html import escape

from tenth.core.records import Plan, Shape, Structure
from tenth.report.pictures import svg

BAR, LETTERS, HEAD = 130, 11, 46  # heights, in CSS pixels


def section(plan: Plan, wide: int, narrow: int) -> str:
    """HTML, empty where nothing was removed; drawn for two widths of the page."""
    found = plan.structure
    if found is None:
        return ""
    share = 1 - plan.parameters / found.parameters
    words = [f"{plan.parameters:,} of {found.parameters:,} weights are left, {share:.1%} went."]
    if found.vocabulary is not None:
        words.append(f"{found.vocabulary[1]:,} of {found.vocabulary[0]:,} tokens were kept.")
    if found.kl is not None:
        words.append(
            f"With what stays refitted, that cost a KL of {found.kl:.3g} nats per token before any"
            " quantisation" + (" and healing." if found.healed else ".")
        )
    if found.healed:
        words.append(f"Healed, {escape(found.healed)}.")
    pictures = ""
    if found.shape is not None:
        drawn = [_picture(found, found.shape, width) for width in (wide, narrow)]
        pictures = f'<div class="wide">{drawn[0]}</div><div class="narrow">{drawn[1]}</div>'
    return (
        '<section><h2>What was removed</h2><p class="why">Bits alone were too few for this budget, or fewer'
        f" parts were better. {' '.join(words)}</p>{pictures}</section>"
    )


def _picture(found: Structure, shape: Shape, width: int) -> str:
    """A column a block: the share of its channels, and a dot for every KV head, filled where it stays."""
    blocks = len(shape.ffn)
    pitch = width / blocks
    inner = max(2.0, min(pitch - 4, 46))
    radius = min(4.0, inner / 2 - 0.5)
    rows = found.kv_heads if found.kv_heads <= 8 else 0
    top = 14 * rows + (18 if rows else 0) + 6
    out: list[str] = []
    for index, (channels, heads) in enumerate(zip(shape.ffn, shape.kv_heads, strict=True)):
        x = index * pitch + (pitch - inner) / 2
        gone = not channels and not heads
        tall = BAR * channels / found.channels
        kept = f"{channels} of {found.channels} channels, {heads} of {found.kv_heads} KV heads"
        said = f"block {index}: {'removed' if gone else kept}"
        out.append(f"<g><title>{said}</title>")
        for head in range(rows):
            fill = "var(--kv)" if head < heads else "none"
            out.append(
                f'<circle cx="{x + inner / 2:.1f}" cy="{10 + 14 * head}" r="{radius:.1f}"'
                f' style="fill:{fill};stroke:var(--kv);stroke-opacity:{1 if head < heads else 0.45}"/>'
            )
        out.append(
            f'<rect x="{x:.1f}" y="{top}" width="{inner:.1f}" height="{BAR}" rx="3"'
            ' style="fill:none;stroke:var(--line)"/>'
        )
        out.append(
            f'<rect x="{x:.1f}" y="{top + BAR - tall:.1f}" width="{inner:.1f}" height="{tall:.1f}" rx="3"'
            ' style="fill:var(--weights)"/>'
        )
        if blocks <= width / 24:
            out.append(
                f'<text class="soft" x="{x + inner / 2:.1f}" y="{top + BAR + 16}" font-size="{LETTERS}"'
                f' text-anchor="middle">{"–" if gone else index}</text>'
            )
        out.append("</g>")
    dots = "dots: KV heads; " if rows else ""
    out.append(
        f'<text class="soft" x="0" y="{top + BAR + 36}" font-size="{LETTERS + 1}">'
        f"{dots}bars: feed-forward channels; filled is what stays, block by block</text>"
    )
    return svg(width, top + BAR + HEAD, "What is left of every block", out)
