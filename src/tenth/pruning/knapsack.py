"""The cheapest shape that is without a number of weights: a knapsack, whose Lagrangian is minimised block by
block: remove what costs least per weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tenth.core.errors import InputError
from tenth.core.records import Shape
from tenth.pruning.shape import STEP, BlockCosts, PruningCosts, PruningLimits, Sizes, cost, full, widths


@dataclass(frozen=True)
class _Option:
    weights: int  # removed
    cost: float
    ffn: int
    kv_heads: int


def without(costs: PruningCosts, sizes: Sizes, weights: int, limits: PruningLimits | None = None) -> Shape:
    """The cheapest shape found that is without at least that many weights. InputError where so much cannot
    go.
    """
    limits = limits or PruningLimits()
    if weights <= 0:
        return full(costs)
    if not limits.uneven:
        shapes = [shape for shape in _alike(costs, sizes, limits) if sizes.removed(costs, shape) >= weights]
        if shapes:
            return min(shapes, key=lambda shape: cost(costs, shape))
    else:
        options = [_options(costs, sizes, block, limits, not i) for i, block in enumerate(costs.blocks)]
        if sum(max(option.weights for option in block) for block in options) >= weights:
            return _restored(costs, sizes, _cheapest(options, weights), weights, limits)
    raise InputError(f"{weights} weights cannot be removed from this model's blocks; ask for less")


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
