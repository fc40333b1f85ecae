"""The tables of a report: readings side by side, and each reading with everything that travels with it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tenth.core.records import Candidate, Reading, Scorecard
from tenth.report.pictures import megabytes

# name -> (what a person calls it, which direction is better: -1 lower, +1 higher, 0 neither)
WORDS: dict[str, tuple[str, int]] = {
    "kl": ("KL to the original, mean", -1),
    "kl_median": ("KL to the original, median", -1),
    "kl_p99": ("KL to the original, 99th percentile", -1),
    "top1": ("same most likely token as the original", 1),
    "perplexity": ("perplexity", -1),
    "bits_per_byte": ("bits per byte", -1),
    "bits_per_byte_original": ("bits per byte of the original", 0),
    "bits_lost": ("bits per byte more than the original", -1),
    "size": ("size of all files", -1),
    "load": ("load time", -1),
    "prefill": ("reading speed (prefill)", 1),
    "decode": ("writing speed (decode)", 1),
    "load_cold": ("load time, file not in memory", -1),
    "ttft": ("time to first token (TTFT)", -1),
    "ttft_cold": ("time to first token, file not in memory", -1),
    "peak": ("peak memory", -1),
    "peak_file_backed": ("of it file-backed", -1),
    "peak_anonymous": ("of it anonymous", -1),
    "major_faults": ("major faults", -1),
    "decode_first": ("writing speed, first minute", 1),
    "decode_last": ("writing speed, last minute", 1),
    "kept": ("speed kept", 1),
    "power_idle": ("power at rest", 0),
    "power_decode": ("power while writing", -1),
    "power_prefill": ("power while reading", -1),
    "power_sustained": ("power, long run", -1),
    "energy_decode": ("energy to write a token", -1),
    "energy_decode_net": ("energy to write a token, above rest", -1),
    "energy_prefill": ("energy to read a token", -1),
    "energy_prefill_net": ("energy to read a token, above rest", -1),
    "energy_sustained": ("energy to write a token, long run", -1),
    "energy_sustained_net": ("energy to write a token, long run, above rest", -1),
    "device_decode": ("decoding on the device", 1),
    "device_joules": ("energy of a token on the device", -1),
    "connections": ("attempted connections", -1),
}
PART_WORDS = {
    "weights": "weights",
    "repacked": "repacked copy",
    "kv": "KV cache",
    "compute": "compute buffers",
    "output": "output",
    "base": "base (code, vocabulary)",
}
MARKS = '<span class="mark {0}">{0}</span>'


def figure(value: float) -> str:
    """A number with four significant figures: "0.01213", "1,204", "3.2e-06"."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def shown(reading: Reading) -> tuple[str, str]:
    """(value, unit) of a reading for people: shares as per cent, bytes as MB, the rest as it is."""
    if reading.name == "top1" or reading.unit in ("share", "fraction"):
        return f"{100 * reading.value:.2f}", "%"
    if reading.unit in ("B", "bytes"):
        return megabytes(reading.value), "MB"
    return figure(reading.value), reading.unit


def spread(reading: Reading) -> str:
    """The spread in the unit of `shown`, or nothing."""
    if reading.spread is None:
        return ""
    scale = 100.0 if shown(reading)[1] == "%" and reading.unit != "%" else 1.0
    if reading.unit in ("B", "bytes"):
        return f"± {megabytes(reading.spread)}"
    return f"± {rough(scale * reading.spread)}"


def rough(value: float) -> str:
    """A spread with two significant figures, without a power of ten for large ones: "0.0021", "126"."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def reading_of(candidate: Candidate, name: str) -> Reading | None:
    """The reading of that name, or None."""
    return next((r for r in candidate.readings if r.name == name), None)


def word(name: str) -> str:
    """What a person calls a reading."""
    return WORDS[name][0] if name in WORDS else name.replace("_", " ")


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
        cells = [next((r for r in readings if r.name == name), None) for _, readings in columns]
        best = _best(name, cells[1:])
        units = {shown(cell)[1] for cell in cells if cell is not None}
        heading = _with_unit(f"{escape(word(name))},", units.pop()) if any(units) else escape(word(name))
        rows.append(f'<tr><th scope="row">{heading}</th>' + "".join(_value(c, best) for c in cells) + "</tr>")
    totals = ["", *(megabytes(c.memory.total) for c in card.candidates)]
    rows.append(_fixed_row(_with_unit("memory, predicted,", "MB"), totals))
    for part, said in PART_WORDS.items():
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
    value, unit = shown(reading)
    return (
        f'<tr><th scope="row">{escape(name or word(reading.name))}</th>'
        f'<td class="n">{value} <span class="unit">{escape(unit)}</span></td>'
        f'<td class="n spread">{spread(reading)}</td><td class="n">{reading.count}</td>'
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


def _best(name: str, cells: Sequence[Reading | None]) -> float | None:
    """The value to print bold: the best of at least two different ones."""
    direction = WORDS.get(name, ("", 0))[1]
    values = [cell.value for cell in cells if cell is not None]
    if not direction or len(set(values)) < 2:
        return None
    return max(values) if direction > 0 else min(values)


def _value(reading: Reading | None, best: float | None) -> str:
    if reading is None:
        return '<td class="n"></td>'
    kind = "n best" if reading.value == best else "n"
    mark = "" if reading.kind == "measured" else f" {MARKS.format(reading.kind)}"
    error = f'<span class="spread">{spread(reading)}</span>' if reading.spread is not None else ""
    return f'<td class="{kind}">{shown(reading)[0]}{error}{mark}</td>'
