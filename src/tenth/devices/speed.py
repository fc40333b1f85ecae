"""How fast a device will decode and prefill, from what a token reads and what the device was seen to do.

    seconds of a token   = overhead + sum over storage types of bytes read / effective bandwidth
    bytes read           = every tensor but the looked-up embedding (a tied one is read as the head), and the
                           KV cache up to the depth
    seconds of a prompt's token = sum over storage types of weights / (weights/s), the head left out

The effective bandwidth of a (device, backend, storage type) is measured, or else it is
  1. the backend's class of kernels (data/kernels.json, ratios between types that were measured on other
     devices), scaled to the types that this device was measured with, or else to `fraction` of its specified
     bandwidth;
  2. for a type that its class was not measured with either: the time per weight of the type nearest in bits
     whose codes are of the same sort (numbers, or places in a codebook); plain floats are read at the speed
     of Q8_0. A codebook type takes the slowest time per weight up to 4.5 bits where no codebook was measured.
Fewer bits are not taken for faster: below 4 bits most kernels compute more for every byte.

Intervals come from leaving one model out (bench/devices.py), the class's from devices that were left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from pydantic import Field, TypeAdapter

from tenth.core.errors import InputError
from tenth.core.ggml import WEIGHT_TYPES, storage_type
from tenth.core.records import Interval, Record, TensorSpec
from tenth.devices.profile import Device
from tenth.models.formats.gguf import storage, tensor_bytes

# Low and high end as factors of the prediction: a device measured with this type, and one known by its class
# only.
KNOWN = {"cpu": (0.75, 1.25), "hexagon": (0.7, 1.3)}
KNOWN_GPU = (0.6, 1.6)
CLASS = (1 / 1.7, 1.7)
PREFILL_KNOWN, PREFILL_CLASS = (1 / 1.4, 1.4), (1 / 2.5, 2.5)


class Kernels(Record):
    """What a class of kernels was seen to do, relative to its base type."""

    source: str
    date: str
    base: str
    fraction: float = Field(gt=0, le=1)  # of the specified bandwidth that decoding the base type reaches
    measured_fraction: float | None = Field(default=None, gt=0, le=1)  # the same of a measured bandwidth
    decode: dict[str, float]  # type -> bandwidth over that of the base
    # type -> weights/s over those of the base, and weights/s of the base for each B/s of specified bandwidth
    prefill: dict[str, float] = Field(default_factory=dict)
    prefill_rate: float | None = Field(default=None, gt=0)  # None: not measured, and not predicted


@dataclass(frozen=True)
class Rates:
    """Times of one backend of one device."""

    device: str
    backend: str
    decode: Mapping[str, float]  # ggml type -> seconds per byte
    prefill: Mapping[str, float]  # ggml type -> seconds per weight
    overhead: float  # s per token
    sustained: float | None  # share of the decode speed after ten minutes
    measured: frozenset[str]  # types with a decode figure of this very device
    prefill_measured: frozenset[str]

    def seconds(self, read: Mapping[str, float]) -> float:
        """Of one decoded token that reads these bytes by type."""
        return self.overhead + sum(size * self.decode[kind] for kind, size in read.items())


@cache
def classes() -> dict[str, Kernels]:
    """The processor classes that data/kernels.json has rates of."""
    text = (resources.files("tenth") / "data" / "kernels.json").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, Kernels]).validate_json(text)


def stand_in(
    kind: str, measured: Sequence[str], slowest: Mapping[str, float] | None = None
) -> tuple[str, bool]:
    """(the measured type whose figure stands for `kind`, whether per weight (True) or per byte).

    slowest: seconds per weight of the measured types, for a codebook without a measured one.
    """
    if kind in measured:
        return kind, False
    kernels = storage_type(kind).kernels
    if kernels == "float":
        return max(measured, key=lambda name: (name == "Q8_0", storage_type(name).bits_per_weight)), False
    codes = [name for name in measured if storage_type(name).kernels != "float"] or list(measured)
    own = [name for name in codes if storage_type(name).kernels == kernels]
    if not own and slowest:
        low = [name for name in codes if storage_type(name).bits_per_weight <= 4.5] or codes
        return max(low, key=lambda name: slowest[name]), True

    def far(name: str) -> tuple[float, bool, str]:
        """Distance in bits; of two at the same, the one whose blocks have as many weights."""
        one, other = storage_type(name), storage_type(kind)
        return abs(one.bits_per_weight - other.bits_per_weight), one.weights != other.weights, name

    return min(own or codes, key=far), True


def rates(device: Device, backend: str = "cpu") -> Rates:
    """The times of a backend. InputError where the device has none of that name or of an unknown class."""
    own = next((one for name, one in device.backends.items() if name == backend), None)
    if own is None:
        raise InputError(
            f"device {device.name} has no backend {backend!r}; it has {', '.join(sorted(device.backends))}"
        )
    if own.kernels not in classes():
        raise InputError(
            f"device {device.name}: backends.{backend}.kernels: no class {own.kernels!r};"
            f" known: {', '.join(sorted(classes()))}"
        )
    kernels = classes()[own.kernels]
    spec = device.bandwidth.spec.value
    fraction = kernels.fraction
    if device.bandwidth.measured and kernels.measured_fraction:
        fraction = kernels.measured_fraction
    decode = {name: fact.value for name, fact in own.decode.items()}
    prefill = {name: fact.value for name, fact in own.prefill.items()}
    every = _complete(decode, kernels.decode, fraction * spec)
    kept = own.sustained or device.backends["cpu"].sustained
    return Rates(
        device=device.name,
        backend=backend,
        decode={name: max(each, 1 / spec) for name, each in every.items()},
        prefill=_complete(prefill, kernels.prefill, (kernels.prefill_rate or 0.0) * spec, per_weight=True),
        overhead=own.overhead.value if own.overhead else 0.0,
        sustained=kept.value if kept else None,
        measured=frozenset(decode),
        prefill_measured=frozenset(prefill),
    )


def _complete(
    own: Mapping[str, float], ratios: Mapping[str, float], base: float, per_weight: bool = False
) -> dict[str, float]:
    """Seconds per byte (per weight) of every type; none where neither the device nor its class was measured.

    base: what the class's base type does where the device was not measured.
    """
    if not own and not (ratios and base):
        return {}
    both = [name for name in own if name in ratios]
    if not both and not base:
        ratios = {}
    scale = math.exp(sum(math.log(own[n] / ratios[n]) for n in both) / len(both)) if both else base
    seconds = {name: 1 / (scale * ratio) for name, ratio in ratios.items()}
    seconds |= {name: 1 / value for name, value in own.items()}
    every = [storage_type(name) for name in (*WEIGHT_TYPES, "F32")]
    size = {kind.name: 1.0 if per_weight else kind.bytes / kind.weights for kind in every}
    slowest = {name: value * size[name] for name, value in seconds.items()}
    result = {}
    for name in (*WEIGHT_TYPES, "F32"):
        source, by_weight = stand_in(name, sorted(seconds), slowest)
        result[name] = seconds[source] * (size[source] / size[name] if by_weight else 1.0)
    return result


def read_bytes(specs: Sequence[TensorSpec], types: Mapping[str, str]) -> dict[str, float]:
    """Bytes of weights that one decoded token reads, by ggml type."""
    read: dict[str, float] = {}
    for spec in multiplied(specs):
        kind = storage(spec, types)
        read[kind] = read.get(kind, 0.0) + tensor_bytes(spec, kind)
    return read


def multiplied(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The tensors that every token reads whole: all but an embedding that has a head beside it."""
    tied = all(spec.role != "output" for spec in specs)
    return [spec for spec in specs if tied or spec.role != "token_embd"]


def prompt_weights(specs: Sequence[TensorSpec], types: Mapping[str, str]) -> dict[str, float]:
    """Weights that a token of a prompt is multiplied with, by ggml type; only the last needs the head."""
    head = "output" if any(spec.role == "output" for spec in specs) else "token_embd"
    weights: dict[str, float] = {}
    for spec in multiplied(specs):
        if spec.linear and spec.role != head:
            weights[types[spec.name]] = weights.get(types[spec.name], 0.0) + spec.count
    return weights


def decode(rates: Rates, read: Mapping[str, float]) -> Interval:
    """Tokens/s of decoding one sequence, right after the prompt."""
    seconds = rates.seconds(read)
    low, high = KNOWN.get(rates.backend, KNOWN_GPU) if decode_known(rates, read) else CLASS
    return Interval(value=1 / seconds, low=low / seconds, high=high / seconds)


def decode_known(rates: Rates, read: Mapping[str, float]) -> bool:
    """Whether types that this very device was measured with take half of the reading time, or more."""
    measured = sum(size * rates.decode[kind] for kind, size in read.items() if kind in rates.measured)
    return bool(rates.measured) and measured >= 0.5 * (rates.seconds(read) - rates.overhead)


def prefill_known(rates: Rates, weights: Mapping[str, float]) -> bool:
    """The same for the prompt: whether half of its weights are of such types, or more."""
    measured = sum(count for kind, count in weights.items() if kind in rates.prefill_measured)
    return bool(rates.prefill_measured) and measured >= 0.5 * sum(weights.values())


def prefill(
    rates: Rates, specs: Sequence[TensorSpec], types: Mapping[str, str], slowness: float = 1.0
) -> Interval | None:
    """Tokens/s of reading a prompt; None where nothing is known. slowness: of the batch, 1 for 512."""
    if not rates.prefill:
        return None
    weights = prompt_weights(specs, types)
    seconds = slowness * sum(count * rates.prefill[kind] for kind, count in weights.items())
    low, high = PREFILL_KNOWN if prefill_known(rates, weights) else PREFILL_CLASS
    return Interval(value=1 / seconds, low=low / seconds, high=high / seconds)
