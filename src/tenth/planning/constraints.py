"""What a token costs beside memory, as plain numbers: the planner's further constraints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tenth.core.records import Runtime, TensorSpec
from tenth.devices.speed import multiplied, read_bytes
from tenth.models.formats.gguf import tensor_bytes
from tenth.models.shape import ModelShape
from tenth.planning.memory import kv_read


@dataclass(frozen=True)
class Cost:
    """An amount of one decoded token (seconds, joules): so much for each byte it reads, by ggml type."""

    per_byte: Mapping[str, float]
    fixed: float = 0.0
    depth: int = 0  # tokens in the cache before it

    def of(
        self, shape: ModelShape, specs: Sequence[TensorSpec], types: Mapping[str, str], runtime: Runtime
    ) -> float:
        """The amount of a whole decision."""
        weights = sum(size * self.per_byte[kind] for kind, size in read_bytes(specs, types).items())
        return weights + self.elsewhere(shape, runtime)

    def elsewhere(self, shape: ModelShape, runtime: Runtime) -> float:
        """What does not depend on the types of weights: the cache and `fixed`."""
        read = kv_read(shape, runtime, self.depth)
        return self.fixed + sum(size * self.per_byte[kind] for kind, size in read.items())

    def vectors(self, specs: Sequence[TensorSpec]) -> float:
        """What the tensors cost that always are F32."""
        return sum(tensor_bytes(s, "F32") * self.per_byte["F32"] for s in multiplied(specs) if not s.linear)


@dataclass(frozen=True)
class Limit:
    """The most of a cost that a plan may have."""

    name: str  # "speed", "energy", "battery"
    cost: Cost
    most: float
    requirement: str  # in a person's words: "10 tokens/s"
    described: Callable[[float], str] = "{:g}".format  # an amount of the cost in the same words
    help: str = "a looser limit"
