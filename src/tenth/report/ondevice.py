"""The report's section on how the bundle ran on one device (measure.json, measure-<device>.json)."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from tenth.core.metrics import METRICS, metric
from tenth.core.records import Bench, Depth, Measurement, Plan, Reading
from tenth.report import charts
from tenth.report.charts import Curve

WIDE, HALF, NARROW, TALL = 836, 408, 350, 230


@dataclass(frozen=True)
class DeviceRun:
    """What the section shows. Drawings come in pairs, for a wide page and a narrow one."""

    device: str  # its name on the page, such as "this device"
    where: str
    by_depth: list[list[Markup]]  # writing speed, reading speed
    over_time: list[Markup]
    facts: list[tuple[str, str]]  # what, text; how it was checked among them
    readings: list[tuple[str, Reading]]  # name on the page, or nothing for the metric's own

    @classmethod
    def of(cls, device: str, measured: Measurement | Bench, plan: Plan) -> DeviceRun:
        """Prepare what was measured on a device for its page."""
        decode = [_spot(depth, depth.decode) for depth in measured.depths]
        prefill = [_spot(depth, depth.prefill) for depth in measured.depths if depth.prefill]
        below = "tokens in the context"
        curves = [
            Curve(f"{METRICS['decode'].title}, tokens/s", below, "ours", decode),
            Curve(f"{METRICS['prefill'].title}, tokens/s", below, "rival", prefill),
        ]
        series = measured.over_time if isinstance(measured, Measurement) else []
        spots = [(x, y, 0.0) for x, y in series] if len(series) > 1 else []
        steady = Curve(
            "writing speed over time, tokens/s", "seconds without a pause", "ours", spots, dots=False
        )
        facts = _conditions(measured, plan) if isinstance(measured, Measurement) else []
        by_depth = [
            (f"{metric(reading.name).title}, {depth.depth:,} deep", reading)
            for depth in measured.depths
            for reading in (depth.decode, depth.prefill)
            if reading
        ]
        return cls(
            device,
            _where(measured),
            [[charts.curve(each, width, TALL) for width in (HALF, NARROW)] for each in curves],
            [charts.curve(steady, width, TALL) for width in (WIDE, NARROW)],
            [*facts, ("Energy", measured.energy), ("Notes", "; ".join(measured.notes))],
            [*by_depth, *(("", reading) for reading in measured.readings)],
        )


def _spot(depth: Depth, reading: Reading) -> tuple[float, float, float]:
    return depth.depth, reading.value, reading.spread or 0.0


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


def _conditions(measured: Measurement, plan: Plan) -> list[tuple[str, str]]:
    """What only tenth itself sees."""
    machine, offline = measured.machine, measured.offline
    peak = measured.reading("peak")
    off = f"{peak.value / plan.memory.held - 1:+.2%} against the prediction" if peak else ""
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
