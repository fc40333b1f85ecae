"""The tables of a report: readings side by side, and each reading with everything that travels with it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tenth.core import metrics
from tenth.core.format import megabytes, written
from tenth.core.records import Reading, Scorecard, reading_of

MARKS = '<span class="mark {0}">{0}</span>'


def comparison(card: Scorecard) -> str:
    """One row a reading, one column for the original and each candidate; the best candidate is bold."""
    columns: list[tuple[str, Sequence[Reading]]] = [("original", card.original)]
    columns += [(candidate.name, candidate.readings) for candidate in card.candidates]
    head = "".join(f'<th class="n">{escape(name)}</th>' for name, _ in columns)
    rows = [_fixed_row("fits the budget", ["", *("yes" if c.fits else "no" for c in card.candidates)])]
    sizes = ["", *(megabytes(c.file_bytes) for c in card.candidates)]
    rows.append(_fixed_row(_with_unit("file,", "MB"), sizes))
    names = dict.fromkeys(reading.name for _, readings in columns for reading in readings)
    for name in names:
        cells = [reading_of(readings, name) for _, readings in columns]
        metric = metrics.metric(name)
        best = _best(metric.better, cells[1:])
        units = {written(cell).unit for cell in cells if cell is not None and not metric.in_title}
        title = escape(metric.title)
        heading = _with_unit(f"{title},", units.pop()) if any(units) else title
        rows.append(f'<tr><th scope="row">{heading}</th>' + "".join(_value(c, best) for c in cells) + "</tr>")
    totals = ["", *(megabytes(c.memory.total) for c in card.candidates)]
    rows.append(_fixed_row(_with_unit("memory, predicted,", "MB"), totals))
    for part, said in metrics.MEMORY.items():
        sizes = ["", *(megabytes(getattr(c.memory, part)) for c in card.candidates)]
        if any(getattr(c.memory, part) for c in card.candidates):
            rows.append(_fixed_row(said, sizes, indent=True))
    return (
        '<section><h2>Side by side</h2><p class="why">Bold is the best figure '
        "of the compressed files; below a figure stands its spread.</p>"
        f'<div class="scroll"><table class="side"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def all_readings(card: Scorecard) -> str:
    """Every reading with unit, spread, count, kind, conditions and version."""
    groups = [("the original", card.original)] + [(c.name, c.readings) for c in card.candidates]
    body = ""
    for owner, readings in groups:
        if readings:
            body += f'<tr class="group"><th colspan="6" scope="rowgroup">{escape(owner)}</th></tr>'
        body += "".join(reading_row(reading) for reading in readings)
    if not body:
        return ""
    return f'<section class="long"><h2>All readings</h2>{reading_table(body)}</section>'


def reading_table(body: str) -> str:
    """The frame around rows of `reading_row`."""
    return (
        '<div class="scroll"><table><thead><tr><th></th>'
        '<th class="n">value</th><th class="n">spread</th><th class="n">count</th><th>how known</th>'
        f"<th>conditions</th></tr></thead><tbody>{body}</tbody></table></div>"
    )


def reading_row(reading: Reading, name: str = "") -> str:
    """A reading with all that travels with it; `name` instead of its own."""
    value, unit, spread = written(reading)
    return (
        f'<tr><th scope="row">{escape(name or metrics.metric(reading.name).title)}</th>'
        f'<td class="n">{value} <span class="unit">{escape(unit)}</span></td>'
        f'<td class="n spread">{spread}</td><td class="n">{reading.count}</td>'
        f"<td>{MARKS.format(reading.kind)}</td>"
        f'<td class="conditions">{escape(reading.conditions)}{_version(reading)}</td></tr>'
    )


def _version(reading: Reading) -> str:
    return "" if reading.version == 1 else f" (metric version {reading.version})"


def _fixed_row(name: str, cells: Sequence[str], *, indent: bool = False) -> str:
    style = ' style="padding-left:1.2em;color:var(--soft)"' if indent else ""
    return (
        f'<tr><th scope="row"{style}>{name}</th>'
        + "".join(f'<td class="n">{c}</td>' for c in cells)
        + "</tr>"
    )


def _with_unit(value: str, unit: str) -> str:
    return f'{value} <span class="unit">{escape(unit)}</span>' if unit else value


def _best(direction: int, cells: Sequence[Reading | None]) -> float | None:
    """The value to print bold: the best of at least two different ones."""
    values = [cell.value for cell in cells if cell is not None]
    if not direction or len(set(values)) < 2:
        return None
    return max(values) if direction > 0 else min(values)


def _value(reading: Reading | None, best: float | None) -> str:
    if reading is None:
        return '<td class="n"></td>'
    kind = "n best" if reading.value == best else "n"
    mark = "" if reading.kind == "measured" else f" {MARKS.format(reading.kind)}"
    value, _, spread = written(reading)
    error = f'<span class="spread">{spread}</span>' if spread else ""
    return f'<td class="{kind}">{value}{error}{mark}</td>'
