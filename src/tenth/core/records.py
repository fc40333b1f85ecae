"""The nouns that travel between stages. Those read from files are pydantic and refuse unknown keys.

All sizes are bytes, all times seconds, all sensitivities nats of KL divergence per token, unless the name
says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from tenth.core.errors import InputError

MB = 1_000_000
FORMAT_VERSION = 1
_R = TypeVar("_R")


class Record(BaseModel):
    """A frozen, validated record; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def read_record(file: Path, kind: TypeAdapter[_R], what: str, most: int) -> _R:
    """A record ("a plan") out of a JSON file of at most so many bytes; InputError names what is wrong."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(most + 1)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error
    if len(raw) > most:
        raise InputError(f"{file} is larger than {most} bytes; it is not {what}")
    try:
        return kind.validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{file} is not {what}: {where}: {first['msg']}") from error


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the GGUF, known from config.json alone.

    shape is numpy order, (rows, columns) for a matrix; a matrix row is what ggml calls a row.
    """

    name: str  # GGUF name: "blk.0.attn_q.weight"
    source: str  # Hugging Face name: "model.layers.0.self_attn.q_proj.weight"; Stats are keyed by it
    shape: tuple[int, ...]
    role: str  # "attn_q", "ffn_down", "token_embd", "output", "attn_norm", ...
    layer: int | None  # None outside the blocks
    linear: bool = False  # a matrix that may be stored in a block type
    heads: int = 0  # > 0: rows are reordered from half-split to interleaved rotary, this many heads
    add: float = 0.0  # added to every value (Gemma stores norm weights minus one)

    @property
    def columns(self) -> int:
        """Weights of one ggml row, the innermost side."""
        return self.shape[-1]

    @property
    def count(self) -> int:
        """How many weights the tensor has."""
        n = 1
        for side in self.shape:
            n *= side
        return n

    def row_order(self) -> np.ndarray | None:
        """Row i of the GGUF tensor is row order[i] of the source; None for the identity.

        llama.cpp rotates neighbouring pairs where Hugging Face rotates halves (conversion/llama.py,
        `permute`).
        """
        if not self.heads:
            return None
        rows = np.arange(self.shape[0])
        return rows.reshape(self.heads, 2, -1).swapaxes(1, 2).reshape(-1)


class Runtime(Record):
    """How llama.cpp is to be started; chosen by the planner together with the bits."""

    n_ctx: int = Field(ge=1)
    n_ubatch: int = Field(ge=1)
    type_k: str = "f16"
    type_v: str = "f16"
    repack: bool = False
    flash_attention: bool = True
    threads: int = Field(default=0, ge=0)  # 0: all cores of the machine it runs on


class MemoryParts(Record):
    """Bytes that a C++ llama.cpp process holds, part by part."""

    weights: int = Field(ge=0)  # the mmapped file's tensor data: clean, file-backed
    repacked: int = Field(ge=0)  # second, interleaved copy of some tensors: anonymous
    kv: int = Field(ge=0)
    compute: int = Field(ge=0)  # graph buffer and the CPU backend's work buffer
    output: int = Field(ge=0)  # logits handed to the caller
    base: int = Field(ge=0)  # code, vocabulary, graph metadata, allocator slack
    margin: int = Field(default=0, ge=0)  # kept free for what a prediction and two proofs of a file differ by

    @property
    def held(self) -> int:
        """What the process is predicted to hold."""
        return self.weights + self.repacked + self.kv + self.compute + self.output + self.base

    @property
    def file_backed(self) -> int:
        """Clean pages that the kernel may drop and read again."""
        return self.weights

    @property
    def anonymous(self) -> int:
        """Pages that only a swap could free, and the margin."""
        return self.total - self.weights

    @property
    def total(self) -> int:
        """All of it, the margin too: what the budget is compared with."""
        return self.held + self.margin


class Budget(Record):
    """How much memory and context a person allows the model."""

    memory: int = Field(gt=0)
    context: int = Field(ge=1)
    device: str | None = None
    share: float | None = None


class Requirements(Record):
    """What a person asks of the device beside memory."""

    min_speed: float | None = Field(default=None, gt=0, le=1e6)  # tokens/s of decoding
    max_joules: float | None = Field(default=None, gt=0, le=1e6)  # per decoded token
    battery_hours: float | None = Field(default=None, gt=0, le=1e5)  # at min_speed, or at 10 tokens/s
    prefer: Literal["quality", "speed"] = "quality"
    backend: str = "cpu"
    grid: float | None = Field(default=None, gt=0, le=5000)  # grams of CO2 per kWh of electricity


class Estimate(Record):
    """A figure of a device that was not measured here, and the range that it should be found in."""

    name: str
    value: float
    low: float
    high: float
    unit: str
    kind: Literal["predicted", "estimated"]  # from figures of this very device, or of its class
    conditions: str = ""


class Trade(Record):
    """What could be had at another memory and speed."""

    memory: int  # bytes
    predicted_kl: float  # nats per token
    speed: float  # tokens/s
    joules: float  # per token


class Forecast(Record):
    """What a plan is expected to do on its device."""

    device: str
    backend: str
    requirements: Requirements
    binding: list[str]  # of "memory", "speed", "energy", "battery": without it the predicted KL would be less
    platform: str  # what the system charges, in a sentence
    estimates: list[Estimate]
    curves: list[list[Trade]] = Field(default_factory=list)  # one a budget, best quality first

    def estimate(self, name: str) -> Estimate | None:
        """The one of that name, or None."""
        return next((found for found in self.estimates if found.name == name), None)


class Shape(Record):
    """Sizes of every block of the original; a block with neither channels nor KV heads is gone."""

    ffn: tuple[int, ...]  # feed-forward channels
    kv_heads: tuple[int, ...]  # each with its query heads; none: no attention

    @model_validator(mode="after")
    def _together(self) -> Shape:
        if len(self.ffn) != len(self.kv_heads) or not any(self.ffn) or min(self.ffn + self.kv_heads) < 0:
            raise ValueError("a shape has one width and one number of KV heads for each block, not all zero")
        return self

    @property
    def kept(self) -> list[int]:
        """The numbers of the blocks of which something stays."""
        return [i for i, sizes in enumerate(zip(self.ffn, self.kv_heads, strict=True)) if any(sizes)]


class Structure(Record):
    """What was removed before the bits were chosen."""

    parameters: int = Field(gt=0)  # of the original
    shape: Shape | None = None  # None where no block was touched
    channels: int = 0  # of the original's blocks
    kv_heads: int = 0
    vocabulary: tuple[int, int] | None = None  # tokens before and after
    kl: float | None = None  # of the shape, measured in nats per token, before healing and quantisation
    healed: str = ""  # with how much, and what it did
    original_bits: float | None = None  # per byte, of the original, where the vocabulary is another


class Plan(Record):
    """The storage of every tensor and the runtime settings; `apply` follows it, a person may edit it."""

    version: Literal[1] = 1
    model: str  # name of the model's folder
    model_hash: str  # of the checkpoint's headers and config
    architecture: str
    parameters: int
    budget: Budget
    runtime: Runtime
    types: dict[str, str]  # GGUF tensor name -> ggml type name ("Q4_K"), for linear tensors
    memory: MemoryParts
    file_bytes: int
    bits_per_weight: float
    predicted_kl: float  # predicted KL to the original, nats per token
    sensitivity_source: Literal["measured", "default"]
    forecast: Forecast | None = None  # where a device was named
    structure: Structure | None = None  # where something was removed


Kind = Literal["measured", "predicted", "estimated"]


class Interval(Record):
    """A predicted number and the range that it should be found in."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Interval:
        """The interval with all three numbers multiplied by a positive factor."""
        return Interval(value=self.value * factor, low=self.low * factor, high=self.high * factor)


class Reading(Record):
    """A number that travels with its unit, spread, count and conditions."""

    name: str
    value: float
    unit: str
    kind: Kind = "measured"
    spread: float | None = (
        None  # standard error of a mean, or half the range of repeated runs: `conditions` says
    )
    count: int = 1
    conditions: str = ""
    version: int = 1


def reading_of(readings: Sequence[Reading], name: str) -> Reading | None:
    """The reading of that name, or None."""
    return next((each for each in readings if each.name == name), None)


class Candidate(Record):
    """One file measured under the same conditions: ours, or a baseline."""

    name: str  # "tenth", "Q4_K_M", "Q4_0"
    file_bytes: int
    fits: bool
    memory: MemoryParts
    readings: list[Reading]
    all_tokens: bool = False  # it keeps those that were removed from the others

    def reading(self, name: str) -> Reading | None:
        """The reading of that name, or None."""
        return reading_of(self.readings, name)

    def value(self, name: str) -> float | None:
        """The value of that reading, or None."""
        reading = self.reading(name)
        return None if reading is None else reading.value


class Proof(Record):
    """What was seen when the artifact ran to full context in a limited child process."""

    budget: int
    limit: str  # "cgroup v1" | "cgroup v2" | "watched RSS"
    network: str  # "namespace without interfaces" | "not isolated: ..."
    interpreter: int  # bytes that Python already held just before the model was loaded; not the model's
    peak: int  # bytes above the interpreter
    peak_file_backed: int
    peak_anonymous: int
    predicted: int
    parts: dict[str, int]  # llama.cpp's own report of its buffers, for the correction of the constants
    attempts: int = 1  # plans tried before one was seen to fit

    @property
    def error(self) -> float:
        """How far the measured peak is from the predicted one: (measured - predicted) / predicted."""
        return (self.peak - self.predicted) / self.predicted

    @property
    def fits(self) -> bool:
        """Whether the measured peak is within the budget."""
        return self.peak <= self.budget


class Offline(Record):
    """What a bundle tried while it loaded and answered without a network."""

    network: str  # "namespace without interfaces" | "not isolated: ..."
    method: str  # how attempts were seen
    blind: str  # what that cannot see; empty where it sees all
    connections: int = Field(ge=0)  # attempted: 0 is what is promised
    attempts: list[str]  # the first of them
    inside: list[str]  # files opened in the bundle's folder
    outside: list[str]  # and elsewhere, without the two kinds below
    libraries: int  # code of Python, the runtime and the system
    kernel: int  # files under /proc, /sys and /dev


class Depth(Record):
    """Speeds with that many tokens in the context."""

    depth: int = Field(ge=0)
    decode: Reading
    prefill: Reading | None  # None where the context has no room left


class Machine(Record):
    """The machine and the state that it was in when something was measured."""

    date: str  # UTC
    system: str
    processor: str
    cores: int
    threads: int
    load_before: float | None  # load average of the last minute
    load_after: float | None
    celsius_before: float | None  # the hottest sensor that the system shows
    celsius_after: float | None
    governor: str  # of the first core's frequency, where there is one


class Measurement(Record):
    """How a bundle runs on one machine: OUT/measure.json."""

    version: Literal[1] = 1
    tenth: str
    runtime: str  # llama.cpp build
    model: str
    sha256: str  # of model.gguf
    machine: Machine
    readings: list[Reading]
    depths: list[Depth]
    over_time: list[tuple[float, float]]  # seconds, tokens/s of decoding; empty without a long run
    energy: str  # the counter, or that there is none
    without: str  # why each other counter could not be used
    checks: list[str]  # what the answers were compared with
    offline: Offline
    notes: list[str]

    def reading(self, name: str) -> Reading | None:
        """The reading of that name, or None."""
        return reading_of(self.readings, name)


class Bench(Record):
    """How a bundle ran in llama.cpp's own programs on one device: OUT/measure-<device>.json."""

    version: Literal[1] = 1
    tenth: str
    runtime: str  # llama.cpp as it calls itself
    model: str
    sha256: str  # of model.gguf, as the scorecard has it
    device: str
    readings: list[Reading]
    depths: list[Depth]
    energy: str  # the counter, or why there is none
    notes: list[str]


class Sample(Record):
    """A greedy answer as the making machine gave it, to compare another machine's with."""

    text: str = Field(max_length=10_000)
    prompt: list[int] = Field(max_length=10_000)  # its token ids
    tokens: list[int] = Field(max_length=10_000)
    logprobs: list[float] = Field(max_length=10_000)  # nats, of each of the tokens


class Scorecard(Record):
    """All figures that were measured of one bundle, and what it was compared with."""

    version: Literal[1] = 1
    tenth: str
    runtime: str  # llama.cpp build
    machine: str
    model: str
    sha256: str  # of model.gguf
    proof: Proof
    original: list[Reading]  # of the model that was given: what compares of perplexity and bits per byte
    candidates: list[Candidate]  # ours first
    notes: list[str] = Field(default_factory=list)
    sample: Sample | None = None  # None in bundles made before it was recorded
    vocabulary: tuple[int, int] | None = None  # tokens before and after, where some were removed: then only
    # bits per byte compare with the model that was given, and KL is to the model with those tokens
