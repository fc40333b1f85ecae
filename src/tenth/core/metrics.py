"""One row a metric: everything that a screen, a page or a table says about a reading beside its number.

A new metric is a row here and a `reading` where it is measured; nothing else names it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tenth.core.format import shown_unit
from tenth.core.records import Estimate, Interval, Kind, Reading


@dataclass(frozen=True)
class Metric:
    """What is known of a reading by its name."""

    name: str  # as it stands in the files
    title: str  # what people call it, on every screen and page
    unit: str  # of the value in the files: "B", "share", "tokens/s"
    better: int  # -1: less is better, 1: more is better, 0: neither
    short: str = ""  # heading of a narrow column; the title where it is empty
    in_title: bool = False  # the title says the unit already
    meaning: str = ""  # a sentence, as it stands in the glossary of docs/guide.md

    @property
    def heading(self) -> str:
        """A heading short enough for a narrow column: "KL"."""
        return self.short or self.title

    @property
    def shown_unit(self) -> str:
        """The unit that is to stand beside the title: "MB"; empty where the title says it."""
        return "" if self.in_title else shown_unit(self.unit)


def _energy(phase: str, power: str, energy: str) -> tuple[Metric, ...]:
    """Power and energy of a phase of a measurement; the words are titles."""
    return (
        Metric(f"power_{phase}", power, "W", -1),
        Metric(f"energy_{phase}", energy, "J/token", -1),
        Metric(f"energy_{phase}_net", f"{energy}, above rest", "J/token", -1),
    )


_ROWS = (
    # How far the answers are from the original's.
    Metric(
        "kl",
        "KL to the original, mean",
        "nats/token",
        -1,
        short="KL",
        meaning="How differently the original and this file predict the next token (Kullback-Leibler"
        " divergence): 0 is the same, 0.01 is hard to notice, 0.1 is noticed, 0.5 is another model.",
    ),
    Metric("kl_median", "KL to the original, median", "nats/token", -1),
    Metric("kl_p99", "KL to the original, 99th percentile", "nats/token", -1),
    Metric(
        "top1",
        "same most likely token as the original",
        "share",
        1,
        short="same top token",
        meaning="How often the original and this file find the same next token most likely.",
    ),
    Metric(
        "perplexity",
        "perplexity",
        "per token",
        -1,
        in_title=True,
        meaning="Between how many equally likely next tokens the model hesitates, on average; only models"
        " with the same tokens can be compared by it.",
    ),
    Metric(
        "bits_per_byte",
        "bits per byte",
        "bits/byte",
        -1,
        in_title=True,
        meaning="How many bits it takes to store a byte of text with the help of the model's predictions;"
        " models with different tokens can be compared by it.",
    ),
    Metric("bits_per_byte_original", "bits per byte of the original", "bits/byte", 0, in_title=True),
    Metric("bits_lost", "bits per byte more than the original", "bits/byte", -1, in_title=True),
    # Memory and files.
    Metric(
        "size",
        "size of all files",
        "B",
        -1,
        short="files",
        meaning="All files that are needed to run the model.",
    ),
    Metric(
        "peak",
        "peak memory",
        "B",
        -1,
        short="memory",
        meaning="The most memory that the process held while it filled its whole context.",
    ),
    Metric("peak_file_backed", "of it file-backed", "B", -1),
    Metric("peak_anonymous", "of it anonymous", "B", -1),
    Metric("major_faults", "major faults", "pages", -1),
    # Time.
    Metric("load", "load time", "s", -1, meaning="From opening the file to a context that can be used."),
    Metric("load_cold", "load time, file not in memory", "s", -1),
    Metric(
        "ttft",
        "time to first token (TTFT)",
        "s",
        -1,
        meaning="From a prompt's text to the first token of the answer.",
    ),
    Metric("ttft_cold", "time to first token, file not in memory", "s", -1),
    Metric(
        "prefill",
        "reading speed (prefill)",
        "tokens/s",
        1,
        meaning="How fast a prompt is read, many tokens at a time.",
    ),
    Metric(
        "decode",
        "writing speed (decode)",
        "tokens/s",
        1,
        short="speed",
        meaning="How fast an answer is written, one token at a time.",
    ),
    Metric("decode_first", "writing speed, first minute", "tokens/s", 1),
    Metric("decode_last", "writing speed, last minute", "tokens/s", 1),
    Metric("decode_sustained", "writing speed (decoding, sustained)", "tokens/s", 1),
    *(
        Metric(f"decode_{backend}", f"writing speed (decoding on {backend})", "tokens/s", 1)
        for backend in ("cpu", "opencl", "hexagon", "metal", "cuda")
    ),
    Metric("device_decode", "writing speed on the device", "tokens/s", 1, short="speed"),
    Metric("kept", "speed kept", "share", 1, meaning="Writing speed of the last minute over the first."),
    # Energy. Measured here by a counter, or expected of a device.
    Metric("power_idle", "power at rest", "W", 0),
    *_energy("decode", "power while writing", "energy to write a token"),
    *_energy("prefill", "power while reading", "energy to read a token"),
    *_energy("sustained", "power, long run", "energy to write a token, long run"),
    Metric("device_joules", "energy to write a token on the device", "J/token", -1, short="energy"),
    Metric("joules", "energy to write a token", "J/token", -1),
    Metric("joules_prefill", "energy to read a token", "J/token", -1),
    Metric("joules_floor", "least energy that any chip needs for it", "J/token", -1),
    Metric("battery", "battery", "h", 1),
    Metric(
        "answer",
        "charge that an answer takes",
        "share",
        -1,
        meaning="How much of a phone's full charge (50 kJ) goes into an answer of 500 tokens.",
    ),
    Metric("co2", "CO2 of an answer", "g", -1),
    Metric("co2_cloud", "CO2 of a prompt in the cloud", "g", -1),
    # What a bundle does beside answering.
    Metric("connections", "attempted connections", "attempts", -1),
)
METRICS = {metric.name: metric for metric in _ROWS}

# Parts of the memory of a process, as `MemoryParts` names them -> what people call them.
MEMORY = {
    "weights": "weights",
    "repacked": "repacked copy",
    "kv": "KV cache",
    "compute": "compute buffers",
    "output": "output",
    "base": "base (code, vocabulary)",
    "margin": "margin",
}


def metric(name: str) -> Metric:
    """The row of that name; for a name that has none, in a file from elsewhere, one that says just that."""
    return METRICS.get(name) or Metric(name, name.replace("_", " "), "", 0)


def reading(
    name: str,
    value: float,
    conditions: str = "",
    *,
    spread: float | None = None,
    count: int = 1,
    kind: Kind = "measured",
) -> Reading:
    """A reading of a metric that has a row, in the row's unit."""
    return Reading(
        name=name,
        value=value,
        unit=METRICS[name].unit,
        kind=kind,
        spread=spread,
        count=count,
        conditions=conditions,
    )


def repeated(name: str, values: Sequence[float], conditions: str) -> Reading:
    """The median of repeated runs, with half their range where there are several."""
    spread = (max(values) - min(values)) / 2 if len(values) > 1 else None
    return reading(name, statistics.median(values), conditions, spread=spread, count=len(values))


def estimate(name: str, interval: Interval, conditions: str, *, known: bool) -> Estimate:
    """An estimate of a metric that has a row. known: it is from figures of this very device."""
    return Estimate(
        name=name,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        unit=METRICS[name].unit,
        kind="predicted" if known else "estimated",
        conditions=conditions,
    )
