"""The report's section on how the bundle ran on one device (measure.json, measure-<device>.json)."""

from __future__ import annotations

from html import escape

from tenth.core.metrics import metric
from tenth.core.records import Bench, Depth, Measurement, Plan, Reading
from tenth.report import tables
from tenth.report.curves import Spot, curve

WIDE, HALF, NARROW, TALL = 836, 408, 350, 230


def section(device: str, measured: Measurement | Bench, plan: Plan) -> str:
    """Pictures of speed over depth and time, the readings, and how they were checked.

    device: its name on the page, such as "this device".
    """
    decode = [_spot(depth, depth.decode) for depth in measured.depths]
    prefill = [_spot(depth, depth.prefill) for depth in measured.depths if depth.prefill]
    pictures = _pictures(decode, "writing speed (decode), tokens/s", "ours") + _pictures(
        prefill, "reading speed (prefill), tokens/s", "rival"
    )
    series = measured.over_time if isinstance(measured, Measurement) else []
    time = [(x, y, 0.0) for x, y in series]
    below, title = "seconds without a pause", "writing speed over time, tokens/s"
    over_time = (
        _figure(
            curve(time, WIDE, TALL, title=title, below=below, colour="ours", dots=False),
            curve(time, NARROW, TALL, title=title, below=below, colour="ours", dots=False),
        )
        if len(time) > 1
        else ""
    )
    rows = "".join(
        tables.reading_row(reading, f"{metric(reading.name).title}, {depth.depth:,} deep")
        for depth in measured.depths
        for reading in (depth.decode, depth.prefill)
        if reading
    )
    rows += "".join(tables.reading_row(reading) for reading in measured.readings)
    return (
        f'<section class="long"><h2>On {escape(device)}</h2>'
        f'<p class="why">{escape(_where(measured))}. Decoding is one token at a time; the deeper the '
        "context, the more of the KV cache is read for each.</p>"
        f'<div class="pair">{pictures}</div><div class="below">{over_time}</div>{_details(measured, plan)}'
        f"{tables.reading_table(rows)}</section>"
    )


def _spot(depth: Depth, reading: Reading) -> Spot:
    return depth.depth, reading.value, reading.spread or 0.0


def _pictures(spots: list[Spot], title: str, colour: str) -> str:
    return _figure(
        *(
            curve(spots, width, TALL, title=title, below="tokens in the context", colour=colour)
            for width in (HALF, NARROW)
        )
    )


def _figure(wide: str, narrow: str) -> str:
    return f'<div><div class="wide">{wide}</div><div class="narrow">{narrow}</div></div>'


def _where(measured: Measurement | Bench) -> str:
    if isinstance(measured, Bench):
        return f"{measured.device}, {measured.runtime}"
    machine = measured.machine
    parts = [
        machine.processor,
        f"{machine.threads} threads on {machine.cores} cores",
        machine.system,
        f"{machine.date[:16].replace('T', ' ')} UTC",
    ]
    return ", ".join(part for part in parts if part)


def _details(measured: Measurement | Bench, plan: Plan) -> str:
    rows = [("Energy", measured.energy), ("Notes", "; ".join(measured.notes))]
    if isinstance(measured, Measurement):
        rows = _conditions(measured, plan) + rows
    items = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in rows if text)
    return f'<dl style="margin:16px 0 18px">{items}</dl>'


def _conditions(measured: Measurement, plan: Plan) -> list[tuple[str, str]]:
    """What only tenth itself sees."""
    machine, offline = measured.machine, measured.offline
    peak = measured.reading("peak")
    off = f"{peak.value / plan.memory.total - 1:+.2%} against the prediction" if peak else ""
    load = [f"{value:.2f}" for value in (machine.load_before, machine.load_after) if value is not None]
    heat = [
        f"{value:.0f} °C" for value in (machine.celsius_before, machine.celsius_after) if value is not None
    ]
    state = [
        f"load average {' before, '.join(load)} after" if len(load) == 2 else "",
        f"{' before, '.join(heat)} after" if len(heat) == 2 else "",
        f"governor {machine.governor}" if machine.governor else "",
    ]
    files = (
        f"{len(offline.inside)} of the bundle's files ({', '.join(offline.inside)}), {offline.libraries} of "
    )
    files += f"Python and the system, {offline.kernel} of the kernel; elsewhere: "
    files += ", ".join(offline.outside) or "none"
    tried = f"{offline.connections} attempted connections ({offline.network}; {offline.method})"
    blind = f". Not seen: {offline.blind}" if offline.blind else ""
    return [
        ("Machine", "; ".join(part for part in state if part)),
        ("Peak memory", off),
        ("Answers", "; ".join(measured.checks)),
        ("Offline", f"{tried}. Files opened: {files}{blind}."),
        ("Counters not used", measured.without),
    ]
