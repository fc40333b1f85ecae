"""What a smaller model could look like: channels, KV groups and blocks to keep, and what each removal costs.

A `PruningCosts` has the costs, in nats per token, of one block's parts at a time (pruning/removal.py); they
are taken to add up, and a fit corrects their sum by what a shape that it made was measured to cost. A `Shape`
(core/records.py) is a choice.
Which choice is best for a number of weights is a knapsack; its Lagrangian is minimised block by block: remove
what costs least per weight. Which is best for a number of bytes, the types open, is planning/joint.py's
question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import Field

from tenth.core.errors import InputError
from tenth.core.records import Record, Shape
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
    """Weights of a block's parts."""

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


@dataclass(frozen=True)
class _Option:
    weights: int  # removed
    cost: float
    ffn: int
    kv_heads: int


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
    """Nothing removed."""
    return Shape(ffn=(costs.channels,) * len(costs.blocks), kv_heads=(costs.groups,) * len(costs.blocks))


def without(costs: PruningCosts, sizes: Sizes, weights: int, limits: PruningLimits | None = None) -> Shape:
    """The cheapest shape found that is without at least that many weights. InputError where so much cannot
    go.
    """
    limits = limits or PruningLimits()
    if weights <= 0:
        return full(costs)
    if not limits.uneven:
        found = [shape for shape in _alike(costs, sizes, limits) if sizes.removed(costs, shape) >= weights]
        if found:
            return min(found, key=lambda shape: cost(costs, shape))
    else:
        options = [_options(costs, sizes, block, limits, not i) for i, block in enumerate(costs.blocks)]
        if sum(max(option.weights for option in block) for block in options) >= weights:
            return _restored(costs, sizes, _cheapest(options, weights), weights, limits)
    raise InputError(f"{weights} weights cannot be removed from this model's blocks; ask for less")


def widths(costs: PruningCosts, multiple: int) -> list[int]:
    """Numbers of channels that a block may have, the most first, none excluded."""
    step = multiple if costs.channels % multiple == 0 else STEP
    removable = [gone for gone in range(0, costs.channels, STEP) if (costs.channels - gone) % step == 0]
    return [costs.channels - gone for gone in removable if gone // STEP < len(costs.blocks[0].ffn)]


def _options(
    costs: PruningCosts, sizes: Sizes, block: BlockCosts, limits: PruningLimits, first: bool
) -> list[_Option]:
    """What a block can be; the first keeps its attention, of which llama.cpp takes the length of a head."""
    options = [
        _Option(
            (costs.channels - width) * sizes.channel + (costs.groups - groups) * sizes.group,
            block.ffn[(costs.channels - width) // STEP] + block.kv_heads[costs.groups - groups],
            width,
            groups,
        )
        for width in widths(costs, limits.multiple)
        for groups in (range(int(first), costs.groups + 1) if limits.heads else (costs.groups,))
    ]
    everything = costs.channels * sizes.channel + costs.groups * sizes.group + sizes.rest
    return [*options, _Option(everything, block.whole, 0, 0)] if limits.depth and not first else options


def _cheapest(options: Sequence[Sequence[_Option]], weights: int) -> list[_Option]:
    """By bisection of the price of a weight."""

    def at(price: float) -> list[_Option]:
        return [min(block, key=lambda option: option.cost - price * option.weights) for block in options]

    low, high = 0.0, 1.0
    while sum(option.weights for option in at(high)) < weights:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        enough = sum(option.weights for option in at(middle)) >= weights
        low, high = (low, middle) if enough else (middle, high)
    return at(high)


def _restored(
    costs: PruningCosts, sizes: Sizes, options: Sequence[_Option], weights: int, limits: PruningLimits
) -> Shape:
    """What went beyond the wanted number of weights comes back, dearest first, a step or a group a time."""
    ffn, groups = [option.ffn for option in options], [option.kv_heads for option in options]
    wider_ones = widths(costs, limits.multiple)
    spare = sum(option.weights for option in options) - weights

    def gains() -> Iterator[tuple[float, int, Callable[[], None]]]:
        for i, block in enumerate(costs.blocks):
            wider = next((width for width in reversed(wider_ones) if width > ffn[i] > 0), None)
            if wider is not None:
                now, then = (block.ffn[(costs.channels - width) // STEP] for width in (ffn[i], wider))
                yield now - then, (wider - ffn[i]) * sizes.channel, _setter(ffn, i, wider)
            if ffn[i] and groups[i] < costs.groups:
                now, then = (block.kv_heads[costs.groups - count] for count in (groups[i], groups[i] + 1))
                yield now - then, sizes.group, _setter(groups, i, groups[i] + 1)

    while fitting := [gain for gain in gains() if gain[1] <= spare]:
        _, size, put_back = max(fitting, key=lambda gain: gain[0] / gain[1])
        put_back()
        spare -= size
    return Shape(ffn=tuple(ffn), kv_heads=tuple(groups))


def _setter(values: list[int], index: int, value: int) -> Callable[[], None]:
    def put() -> None:
        values[index] = value

    return put


def _alike(costs: PruningCosts, sizes: Sizes, limits: PruningLimits) -> Iterator[Shape]:
    """Shapes whose blocks are of one size: every width and number of groups, blocks gone cheapest first; the
    first one stays.
    """
    order = sorted(range(1, sizes.blocks), key=lambda i: costs.blocks[i].whole)
    for gone in range(sizes.blocks if limits.depth else 1):
        dropped = set(order[:gone])
        for width in widths(costs, limits.multiple):
            for groups in range(1, costs.groups + 1) if limits.heads else (costs.groups,):
                yield Shape(
                    ffn=tuple(0 if i in dropped else width for i in range(sizes.blocks)),
                    kv_heads=tuple(0 if i in dropped else groups for i in range(sizes.blocks)),
                )


def sampled(costs: Sequence[float], units: int) -> tuple[float, ...]:
    """Every STEP-th of the costs of removing 0, 1, ... units, never falling; at least one unit stays."""
    picked = [costs[i] for i in range(0, units, STEP)]
    for i, (before, after) in enumerate(pairwise(picked), 1):
        picked[i] = max(before, after)
    return tuple(picked)
