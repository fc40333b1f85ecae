"""How the figures of an outlook are written for people: in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenth.core.records import Estimate, Forecast

WORDS = {
    "decode": "decoding",
    "decode_sustained": "decoding, sustained",
    "prefill": "prefill",
    "load": "loading",
    "joules": "energy, decoding",
    "joules_floor": "no device can do with less",
    "joules_prefill": "energy, prefill",
    "battery": "battery",
    "answer": "an answer",
    "co2": "an answer's CO2",
    "co2_cloud": "in the cloud",
}


def figures(forecast: Forecast) -> Iterator[tuple[str, str, str, str, str, str]]:
    """(name, value, low, high, unit, how it is known) of every estimate; no range where it is exact."""
    for each in forecast.estimates:
        name = WORDS.get(each.name) or f"decoding on {each.name.removeprefix('decode_')}"
        scale, unit = (100.0, "%") if each.unit == "share" else (1.0, each.unit)
        ends = ("", "") if each.low == each.high else (number(each.low * scale), number(each.high * scale))
        yield name, number(each.value * scale), *ends, unit, f"{each.kind}: {each.conditions}"


def number(value: float) -> str:
    """Two figures, or all before the point: "0.23", "3.4", "217"."""
    return f"{value:,.0f}" if abs(value) >= 99.5 else f"{value:#.2g}".rstrip(".")


def brief(found: Estimate | None) -> str:
    """ "3.4 (2.6 to 4.3)"; empty where there is none."""
    if found is None:
        return ""
    return f"{number(found.value)} ({number(found.low)} to {number(found.high)})"
