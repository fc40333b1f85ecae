"""What is known of a device. Every number is a `Fact`: it carries its source and date, and says where it is a
guess.

dram         B, decimal gigabytes as sold
memory       the platform's own rule beside the tenth: what it charges an app with, and its limit in B
bandwidth    B/s of the memory by specification (or, for this machine, measured by reading)
backends     cpu, opencl, hexagon, metal, cuda: B/s that decoding really gets out of each storage type,
             weights/s of prefill, seconds that each token costs beside its bytes, and the share of the speed
             that is left after ten minutes; what was not measured comes from the backend's class of kernels
             (devices/speed.py)
power        W of the whole device while decoding and idle
battery      J of a full charge; absent where the device hangs on the mains
storage      B/s of sequential reading
"""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from tenth.core.ggml import WEIGHT_TYPES
from tenth.core.records import MemoryParts, Record

Charge = Literal["anonymous", "all"]
# platform -> (parts of memory that it charges an app with, in words)
RULES: dict[str, tuple[Charge, str]] = {
    "ios": ("anonymous", "iOS charges phys_footprint: anonymous and GPU memory, not the mapped file"),
    "macos": ("anonymous", "macOS charges phys_footprint: anonymous and GPU memory, not the mapped file"),
    "android": ("all", "Android 17 meters a cgroup: all of it, dropping pages of the file first"),
    "linux": ("all", "a cgroup charges all of it; what is over is read again from storage for every token"),
}


class Fact(Record):
    """A number above zero with where it comes from."""

    value: float = Field(gt=0, allow_inf_nan=False)
    source: str = Field(min_length=8)
    date: str
    estimated: bool = False  # no public source for the value

    @field_validator("date")
    @classmethod
    def _is_a_date(cls, value: str) -> str:
        datetime.date.fromisoformat(value)
        return value


class Words(Record):
    """Names with where they come from."""

    value: list[str] = Field(min_length=1)
    source: str = Field(min_length=8)
    date: str
    estimated: bool = False


def _between(low: float, high: float, unit: str) -> AfterValidator:
    def check(fact: Fact) -> Fact:
        if not low <= fact.value <= high:
            raise ValueError(f"{fact.value:g} {unit} is impossible; it should be {low:g} to {high:g} {unit}")
        return fact

    return AfterValidator(check)


Memory = Annotated[Fact, _between(64e6, 4e12, "B")]
Rate = Annotated[Fact, _between(1e8, 2e13, "B/s")]
Pace = Annotated[Fact, _between(1e7, 1e16, "weights/s")]
Watts = Annotated[Fact, _between(0.01, 5000, "W")]
Joules = Annotated[Fact, _between(100, 1e8, "J")]
Share = Annotated[Fact, _between(0.01, 1, "of the first speed")]
Pause = Annotated[Fact, _between(1e-6, 1, "s")]
Storage = Annotated[Fact, _between(1e6, 1e11, "B/s")]


class MemoryRule(Record):
    """What the platform counts against an app, and how much of it one app may have."""

    rule: Literal["ios", "macos", "android", "linux"]
    limit: Memory | None = None  # B; none where the platform sets none

    def charged(self, parts: MemoryParts) -> int:
        """Bytes of a model's memory that the platform counts against an app."""
        return parts.anonymous if RULES[self.rule][0] == "anonymous" else parts.total


class Backend(Record):
    """One way to compute on the device."""

    kernels: str  # name of a class in data/kernels.json, for types without a measurement
    decode: dict[str, Rate] = Field(default_factory=dict)  # ggml type -> B/s of weights read
    prefill: dict[str, Pace] = Field(default_factory=dict)  # ggml type -> weights/s
    overhead: Pause | None = None  # s per token beside the reading
    sustained: Share | None = None  # of the decode speed, after ten minutes

    @model_validator(mode="after")
    def _known_types(self) -> Backend:
        for name in (*self.decode, *self.prefill):
            if name not in WEIGHT_TYPES:
                raise ValueError(f"{name} is not a storage type; known: {', '.join(WEIGHT_TYPES)}")
        return self


class Bandwidth(Record):
    """How fast the memory can be read, whatever computes."""

    spec: Rate
    kind: Literal["LPDDR4X", "LPDDR5", "LPDDR5X", "DDR4"] | None = None
    measured: bool = False  # `spec` was measured by reading


class Power(Record):
    """What the whole device draws, screen and all."""

    decode: Watts
    idle: Watts

    @model_validator(mode="after")
    def _more_when_busy(self) -> Power:
        if self.idle.value >= self.decode.value:
            raise ValueError(
                f"{self.idle.value:g} W idle is not below {self.decode.value:g} W while decoding"
            )
        return self


class Device(Record):
    """A device's memory, speeds, power and rules, each figure with its source."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    title: str = Field(min_length=1, max_length=120)
    kind: Literal["phone", "board", "car", "computer"]
    dram: Memory
    memory: MemoryRule
    bandwidth: Bandwidth
    backends: dict[Literal["cpu", "opencl", "hexagon", "metal", "cuda"], Backend]
    isa: Words
    storage: Storage
    cores: Fact | None = None
    power: Power | None = None
    battery: Joules | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Device:
        if "cpu" not in self.backends:
            raise ValueError("backends.cpu is missing; tenth plans for the CPU")
        if self.memory.limit and self.memory.limit.value > self.dram.value:
            raise ValueError("memory.limit is above dram")
        for name, backend in self.backends.items():
            for kind, rate in backend.decode.items():
                if not self.bandwidth.measured and rate.value > self.bandwidth.spec.value:
                    raise ValueError(
                        f"backends.{name}.decode.{kind} is {rate.value:g} B/s, above bandwidth.spec"
                    )
        return self

    @property
    def bytes(self) -> int:
        """Bytes of DRAM."""
        return int(self.dram.value)

    @property
    def estimated(self) -> bool:
        """Whether the DRAM is a guess."""
        return self.dram.estimated
