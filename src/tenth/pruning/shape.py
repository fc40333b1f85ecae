"""What a smaller model could look like: channels, KV groups and blocks to keep, and what each removal costs.

A `PruningCosts` has the costs, in nats per token, of one block's parts at a time (pruning/removal.py); they
are taken to add up, and a fit corrects their sum by what a shape that it made was measured to cost. A `Shape`
(core/records.py) is a choice, and `resized` gives the model in it: sizes alone, the values are
pruning/structure.py's. Which choice is best for a number of weights is pruning/knapsack.py's question, for a
number of bytes, the types open, planning/joint.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import Field

from tenth.core.errors import InputError
from tenth.core.records import Record, Shape
from tenth.models import edit
from tenth.models.checkpoint import Checkpoint

STEP = 32  # channels between two entries of a menu


class BlockCosts(Record):
    """Costs of one block, nats per token. ffn: without the cheapest 0, STEP, 2 STEP, ... channels; kv_heads:
    without the cheapest 0, 1, 2, ... groups, the last entry (no attention) as measured; whole: measured.
    """

    ffn: tuple[float, ...]
    kv_heads: tuple[float, ...]
    whole: float


class PruningCosts(Record):
    """Costs of every block, and its sizes."""

    channels: int = Field(gt=0)
    groups: int = Field(gt=0)
    blocks: tuple[BlockCosts, ...]


@dataclass(frozen=True)
class PruningLimits:
    """What the runtime and the user allow."""

    multiple: int = STEP  # of a width
    uneven: bool = True  # blocks of different sizes
    heads: bool = True  # other numbers of heads
    depth: bool = True  # fewer blocks


@dataclass(frozen=True)
class Sizes:
    """How many weights each part of a block has."""

    channel: int  # of one FFN channel
    group: int  # of one KV head and its query heads
    rest: int  # norms and biases of the residual stream
    blocks: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Sizes:
        """Of a model whose blocks are alike."""
        model = checkpoint.shape
        axes = model.axes()
        parts = {"ffn": 0, "heads": 0, "rest": 0}
        for entry in checkpoint.block().values():
            rows, columns = (name.split("+") if name else [] for name in (entry.rows, entry.columns))
            count = sum(axes[name] for name in rows) * (sum(axes[name] for name in columns) or 1)
            kind = {*rows, *columns}
            part = "ffn" if "ffn" in kind else "heads" if kind & {"heads", "kv_heads"} else "rest"
            parts[part] += count
        group = parts["heads"] // max(model.kv_heads)
        return cls(parts["ffn"] // axes["ffn"], group, parts["rest"], model.layers)

    def removed(self, costs: PruningCosts, shape: Shape) -> int:
        """Weights that the shape is without."""
        count = sum(costs.channels - width for width in shape.ffn) * self.channel
        count += sum(costs.groups - groups for groups in shape.kv_heads) * self.group
        return count + (self.blocks - len(shape.kept)) * self.rest


def cost(costs: PruningCosts, shape: Shape) -> float:
    """Predicted KL of a shape, nats per token."""
    total = 0.0
    for block, width, groups in zip(costs.blocks, shape.ffn, shape.kv_heads, strict=True):
        if not width and not groups:
            total += block.whole
        else:
            total += block.ffn[(costs.channels - width) // STEP] + block.kv_heads[costs.groups - groups]
    return total


def full(costs: PruningCosts) -> Shape:
    """The shape of which nothing is removed."""
    return Shape(ffn=(costs.channels,) * len(costs.blocks), kv_heads=(costs.groups,) * len(costs.blocks))


def widths(costs: PruningCosts, multiple: int) -> list[int]:
    """Numbers of channels that a block may have, the most first, none excluded."""
    step = multiple if costs.channels % multiple == 0 else STEP
    removable = [gone for gone in range(0, costs.channels, STEP) if (costs.channels - gone) % step == 0]
    return [costs.channels - gone for gone in removable if gone // STEP < len(costs.blocks[0].ffn)]


def sampled(costs: Sequence[float], units: int) -> tuple[float, ...]:
    """Every STEP-th of the costs of removing 0, 1, ... units, never falling; at least one unit stays."""
    picked = [costs[i] for i in range(0, units, STEP)]
    for i, (before, after) in enumerate(pairwise(picked), 1):
        picked[i] = max(before, after)
    return tuple(picked)


def pruning_limits(checkpoint: Checkpoint, multiple: int, homogeneous: bool = False) -> PruningLimits:
    """What can go from this model so that the runtime still has a graph for the rest.

    multiple: of a width, where the original's is one too. homogeneous: blocks stay alike.
    """
    model = checkpoint.shape
    groups, blocks, width = max(model.kv_heads), model.layers, max(model.ffn)
    step = multiple if width % multiple == 0 else STEP

    def possible(ffn: Sequence[int], kv_heads: Sequence[int]) -> bool:
        try:
            uniform_shape(checkpoint, Shape(ffn=tuple(ffn), kv_heads=tuple(kv_heads))).specs()
        except InputError:
            return False
        return True

    heads = groups > 1 and possible([width] * blocks, [groups - 1] * blocks)
    depth = blocks > 1 and possible([0, *[width] * (blocks - 1)], [0, *[groups] * (blocks - 1)])
    narrow = [width - step, *[width] * (blocks - 1)]
    uneven = not homogeneous and blocks > 1 and width > step and possible(narrow, [groups] * blocks)
    return PruningLimits(step, uneven, heads, depth)


def smallest(checkpoint: Checkpoint, limits: PruningLimits) -> Shape:
    """The least that would be left."""
    groups = 1 if limits.heads else max(checkpoint.shape.kv_heads)
    stay = [i == 0 or not limits.depth for i in range(checkpoint.shape.layers)]
    return Shape(
        ffn=tuple(limits.multiple if kept else 0 for kept in stay),
        kv_heads=tuple(groups if kept else 0 for kept in stay),
    )


def uniform_shape(checkpoint: Checkpoint, chosen: Shape) -> Checkpoint:
    """The checkpoint in that shape, of the first channels and groups: right in its sizes alone."""
    return resized(
        checkpoint, chosen, lambda i: (list(range(chosen.ffn[i])), list(range(chosen.kv_heads[i])))
    )


def resized(
    checkpoint: Checkpoint, chosen: Shape, which: Callable[[int], tuple[list[int], list[int]]]
) -> Checkpoint:
    """The checkpoint in that shape; which: of a block, the channels and the KV heads that stay."""
    count, groups = max(checkpoint.shape.ffn), max(checkpoint.shape.kv_heads)
    smaller = edit.keep_layers(checkpoint, chosen.kept)
    for number, index in enumerate(chosen.kept):
        ffn, shared = which(index)
        if len(ffn) < count:
            smaller = edit.take(smaller, "ffn", ffn, number)
        if len(shared) < groups:
            smaller = edit.take(smaller, "kv_heads", shared, number)
    return smaller
