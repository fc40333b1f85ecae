"""Joules per token, from a counter of the machine: phases of the running child, bracketed by its events.

gross = what the counter rose by, over tokens; net = the same without what the machine takes at rest (measured
just before, with nothing loaded). A phase lasts at least PERIODS periods of the counter, so that its steps do
not matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tenth.core import jobs, metrics
from tenth.core.format import written_estimate
from tenth.core.records import Plan, Reading
from tenth.measurement.counters import Meter, Source

PERIODS = 20
_LEAST = 2.0  # seconds
_STEP = 0.25


def least_seconds(source: Source) -> float:
    """How long a phase must last for this counter."""
    return max(PERIODS * source.period, _LEAST)


@dataclass(frozen=True)
class Span:
    """What one phase took: tokens, joules and seconds."""

    tokens: int
    joules: float
    seconds: float


class Ledger:
    """What a running meter said of every phase; feed it the child's events."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.idle = Span(0, 0.0, 0.0)
        self.spans: dict[str, list[Span]] = {}
        self._begin = 0.0, 0.0  # joules, seconds

    def rest(self, seconds: float, advance: Callable[[float], None]) -> None:
        """Do nothing for that long (at least a phase), to know what the machine takes at rest."""
        begin, first = time.monotonic(), self.meter.joules()
        seconds = max(seconds, least_seconds(self.meter.source))
        while (spent := time.monotonic() - begin) < seconds:
            advance(spent / seconds)
            time.sleep(min(_STEP, seconds - spent))
        self.idle = Span(0, self.meter.joules() - first, time.monotonic() - begin)

    def on_event(self, event: jobs.Event) -> None:
        """Take note of {"begin": name} and {"end": name, "tokens": n}. InputError where the counter fails."""
        if "begin" in event:
            self._begin = self.meter.joules(), time.monotonic()
        elif "end" in event:
            joules, now = self.meter.joules(), time.monotonic()
            span = Span(event["tokens"], joules - self._begin[0], now - self._begin[1])
            self.spans.setdefault(event["end"], []).append(span)

    def readings(self) -> list[Reading]:
        """power_idle (W); for every phase power_* (W), energy_* and energy_*_net (J/token)."""
        source, rest = self.meter.source, self.idle.joules / self.idle.seconds
        state = f"counter {source.name}: {source.scope}; one value in {source.period:g} s"
        lasted = f"{state}; {self.idle.seconds:.0f} s with nothing loaded"
        readings = [metrics.reading("power_idle", rest, lasted)]
        for name, spans in self.spans.items():
            long = sum(span.seconds for span in spans)
            detail = (
                f"{sum(span.tokens for span in spans)} tokens in {long:.0f} s; {state}; median, half range"
            )
            for reading, values in (
                (f"power_{name}", [s.joules / s.seconds for s in spans]),
                (f"energy_{name}", [s.joules / s.tokens for s in spans]),
                (f"energy_{name}_net", [(s.joules - rest * s.seconds) / s.tokens for s in spans]),
            ):
                readings.append(metrics.repeated(reading, values, detail))
        return readings


def planned(plan: Plan) -> list[Reading]:
    """energy_decode and energy_prefill (J/token), "estimated", as the plan expects them of its device; none
    where it was made for no device.
    """
    names = {"energy_decode": "joules", "energy_prefill": "joules_prefill"}
    forecast = plan.forecast
    estimates = {name: forecast.estimate(of) for name, of in names.items()} if forecast else {}
    return [
        metrics.reading(
            name,
            each.value,
            f"for {forecast.device}, not measured: {each.conditions}; {written_estimate(each).range} J/token",
            kind="estimated",
        )
        for name, each in estimates.items()
        if forecast and each
    ]
