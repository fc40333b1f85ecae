"""Which shape is chosen: against brute force over every shape of a small menu."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tenth.core.errors import InputError
from tenth.core.records import Shape
from tenth.pruning import knapsack, shape
from tenth.pruning.shape import STEP, BlockCosts, PruningCosts, PruningLimits, Sizes

CHANNELS, GROUPS = 4 * STEP, 2
SIZES = Sizes(channel=10, group=500, rest=7, blocks=3)
TOTAL = 3 * (CHANNELS * 10 + GROUPS * 500 + 7)


@st.composite
def menus(draw: st.DrawFn) -> PruningCosts:
    def rising(count: int) -> tuple[float, ...]:
        steps = draw(st.lists(st.floats(0.001, 1.0), min_size=count, max_size=count))
        return (0.0, *(sum(steps[: i + 1]) for i in range(count)))

    blocks = [
        BlockCosts(ffn=rising(CHANNELS // STEP - 1), kv_heads=rising(GROUPS), whole=draw(st.floats(0.1, 5.0)))
        for _ in range(SIZES.blocks)
    ]
    return PruningCosts(channels=CHANNELS, groups=GROUPS, blocks=tuple(blocks))


def every(free: PruningLimits) -> list[Shape]:
    """Every shape that is allowed, block by block."""
    widths = [width for width in range(STEP, CHANNELS + 1, STEP) if width % free.multiple == 0]
    kept = list(product(widths, range(GROUPS + 1) if free.heads else (GROUPS,)))
    block = [*kept, *([(0, 0)] if free.depth else [])]
    found = []
    for sizes in product([pair for pair in kept if pair[1]], *[block] * (SIZES.blocks - 1)):
        each = Shape(ffn=tuple(w for w, _ in sizes), kv_heads=tuple(g for _, g in sizes))
        alike = {sizes[i] for i in each.kept}
        if free.uneven or len(alike) == 1:
            found.append(each)
    return found


@settings(max_examples=40, deadline=None)
@given(menus(), st.floats(0.02, 0.85), st.booleans(), st.sampled_from([STEP, 2 * STEP]))
def test_uneven_shapes(costs: PruningCosts, share: float, depth: bool, multiple: int) -> None:
    free, weights = PruningLimits(multiple=multiple, depth=depth), round(share * TOTAL)
    enough = [each for each in every(free) if SIZES.removed(costs, each) >= weights]
    if not enough:
        with pytest.raises(InputError):
            knapsack.without(costs, SIZES, weights, free)
        return
    chosen = knapsack.without(costs, SIZES, weights, free)
    assert chosen in enough
    # Lagrange finds the best of some number of weights that is at least the one asked for.
    alike = [each for each in every(free) if SIZES.removed(costs, each) >= SIZES.removed(costs, chosen)]
    least = min(shape.cost(costs, each) for each in enough)
    bound = min(shape.cost(costs, each) for each in alike)
    dearest = max(max(max(b.ffn), max(b.kv_heads), b.whole) for b in costs.blocks)
    assert least <= shape.cost(costs, chosen) + 1e-9
    assert shape.cost(costs, chosen) <= bound + 2 * dearest


@settings(max_examples=40, deadline=None)
@given(menus(), st.floats(0.02, 0.6), st.booleans())
def test_shapes_of_blocks_alike_are_the_best_of_those(costs: PruningCosts, share: float, heads: bool) -> None:
    free, weights = PruningLimits(uneven=False, heads=heads, depth=False), round(share * TOTAL)
    enough = [each for each in every(free) if SIZES.removed(costs, each) >= weights]
    if not enough:
        with pytest.raises(InputError):
            knapsack.without(costs, SIZES, weights, free)
        return
    chosen = knapsack.without(costs, SIZES, weights, free)
    assert shape.cost(costs, chosen) == pytest.approx(min(shape.cost(costs, each) for each in enough))


def test_nothing_to_remove_is_the_whole() -> None:
    block = BlockCosts(ffn=(0.0, 0.1, 0.25, 0.5), kv_heads=(0.0, 0.2, 0.9), whole=2.0)
    costs = PruningCosts(channels=CHANNELS, groups=GROUPS, blocks=(block,) * 3)
    assert knapsack.without(costs, SIZES, 0) == shape.full(costs)


def test_costs_are_sampled_and_never_fall() -> None:
    assert shape.sampled([0, *[0.1] * STEP, *[0.05] * STEP], 2 * STEP) == (0, 0.1)
    assert len(shape.sampled(list(range(97)), 96)) == 3


@pytest.mark.parametrize("wrong", [((1, 2), (1,)), ((0, 0), (0, 0)), ((-1, 3), (1, 1))])
def test_an_impossible_shape_is_no_record(wrong: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValidationError):
        Shape(ffn=wrong[0], kv_heads=wrong[1])
