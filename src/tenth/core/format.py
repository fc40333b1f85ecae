"""How a number is written for people, once: in the terminal, on every page and in every message.

megabytes   "30", "29.87", "123.5", "1,204"   decimal; two decimals below 100, one below 1,000, none above,
and
                                              none for a whole number such as a budget
figure      "0.01213", "38.47", "1,204"       what was measured: four significant figures
number      "0.23", "3.4", "217"              what is estimated: two figures
rough       "0.003", "4", "126"               a spread: two figures
per_cent    "93.12"                           a share
bits_text   "4.5", "6.56"                     bits per weight
duration    "8 s", "3 min 20 s", "2 h 5 min"

Only `duration` writes a unit, so that a table can set it apart.
"""

from __future__ import annotations

from typing import NamedTuple

from tenth.core.records import MB, Estimate, Reading

# unit of a reading -> (factor, unit that people read)
SCALES = {"B": (1 / MB, "MB"), "bytes": (1 / MB, "MB"), "share": (100.0, "%"), "fraction": (100.0, "%")}


def megabytes(size: float) -> str:
    """Bytes as decimal megabytes: "30", "29.87", "123.5", "1,204"."""
    value = size / MB
    decimals = 0 if value.is_integer() or value >= 1000 else 1 if value >= 100 else 2
    return f"{value:,.{decimals}f}"


def figure(value: float) -> str:
    """Four significant figures, or all before the point: "0.01213", "1,204", "3.2e-06"."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def number(value: float) -> str:
    """Two significant figures, or all before the point: "0.23", "3.0", "217"."""
    return f"{value:,.0f}" if abs(value) >= 99.5 else f"{value:#.2g}".rstrip(".")


def rough(value: float) -> str:
    """As `number`, without a zero at the end: "0.003", "4", "126". For spreads."""
    return f"{value:,.0f}" if abs(value) >= 99.5 else f"{value:.2g}"


def per_cent(share: float) -> str:
    """A share as per cent with two decimals: "93.12"."""
    return f"{100 * share:.2f}"


def bits_text(per_weight: float | None) -> str:
    """Bits with at most two decimals: "4.5", "6.56"; "?" where they are not known."""
    return "?" if per_weight is None else f"{per_weight:.2f}".rstrip("0").rstrip(".")


def duration(seconds: float) -> str:
    """A time span: "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def scaled(value: float, unit: str) -> float:
    """A value in the unit that people read: megabytes for "B", per cent for "share"."""
    return value * SCALES.get(unit, (1.0, unit))[0]


def shown_unit(unit: str) -> str:
    """The unit that people read: "MB" for "B", "%" for "share"."""
    return SCALES.get(unit, (1.0, unit))[1]


def spelled(unit: str) -> str:
    """A unit for the axis of a chart: "nats per token" for "nats/token"."""
    return unit.replace("/token", " per token")


class Written(NamedTuple):
    """A reading as people read it: value, spread and unit as text."""

    value: str
    unit: str  # "MB", "%", "tokens/s"; empty where there is none
    spread: str  # "± 0.21", in the same unit; empty where there is none

    @property
    def with_spread(self) -> str:
        """Value and spread: "121.7 ± 4.2"."""
        return f"{self.value} {self.spread}".rstrip()

    @property
    def with_unit(self) -> str:
        """The value followed by its unit: "121.7 tokens/s"."""
        return f"{self.value} {self.unit}".rstrip()


def written(reading: Reading) -> Written:
    """Bytes as MB, shares as per cent, all else in its own unit; a spread has two significant figures."""
    factor, unit = SCALES.get(reading.unit, (1.0, reading.unit))
    if unit == "MB":
        value, spread = megabytes(reading.value), megabytes(reading.spread or 0.0)
    else:
        value = per_cent(reading.value) if factor == 100 else figure(reading.value)
        spread = rough(factor * (reading.spread or 0.0))
    return Written(value, unit, "" if reading.spread is None else f"± {spread}")


class WrittenEstimate(NamedTuple):
    """An estimate as people read it: value, interval and unit as text."""

    value: str
    range: str  # "2.6 to 4.3"; empty where the value is exact
    unit: str

    @property
    def brief(self) -> str:
        """Value and range: "3.4 (2.6 to 4.3)"."""
        return f"{self.value} ({self.range})" if self.range else self.value


def written_estimate(estimate: Estimate) -> WrittenEstimate:
    """An estimate and its range with two significant figures each."""
    factor, unit = SCALES.get(estimate.unit, (1.0, estimate.unit))
    value, low, high = (number(end * factor) for end in (estimate.value, estimate.low, estimate.high))
    return WrittenEstimate(value, "" if estimate.low == estimate.high else f"{low} to {high}", unit)
