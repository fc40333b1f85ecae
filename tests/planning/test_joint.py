"""Widths and bits in one program, against every shape with its own program."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import tiny

from tenth.core.errors import BudgetError
from tenth.core.records import Budget, Shape
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.pipeline.analysis import estimated
from tenth.planning import joint
from tenth.planning.constraints import Cost, Limit
from tenth.planning.plan import Problem, decide, least_cost, smallest_decision
from tenth.pruning import shape
from tenth.pruning.shape import BlockCosts, PruningCosts, PruningLimits

WIDTH, GROUPS, BLOCKS, STEP = 768, 2, 2, 256


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Problem, Checkpoint]:
    """A model whose blocks are much of what it needs."""
    folder = tmp_path_factory.mktemp("model")
    tiny.make_model(
        folder,
        "llama",
        "tied",
        hidden_size=256,
        intermediate_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=GROUPS,
        max_position_embeddings=512,
    )
    checkpoint = open_checkpoint(folder)
    budget = Budget(memory=20_000_000, context=256)
    problem = estimated(checkpoint.shape, checkpoint.specs(), budget, 0, 1)
    rng = np.random.default_rng(0)
    sensitivities = {
        name: {kind: price * factor for kind, price in kinds.items()}
        for (name, kinds), factor in zip(problem.sensitivities.items(), rng.gamma(1.0, 1.0, 99), strict=False)
    }
    return replace(problem, sensitivities=sensitivities), checkpoint


def menu_of(seed: int, scale: float) -> PruningCosts:
    """Costs that grow ever faster, other ones in every block."""
    rng, blocks = np.random.default_rng(seed), []
    for _ in range(BLOCKS):
        ffn = scale * rng.uniform(0.3, 3) * np.linspace(0, 1, WIDTH // shape.STEP) ** 2
        kv = scale * rng.uniform(0.3, 3) * np.array([0.0, 0.3, 1.0])
        whole = (ffn[-1] + kv[-1]) * rng.uniform(0.7, 1.3)
        blocks.append(BlockCosts(ffn=tuple(ffn), kv_heads=tuple(kv), whole=whole))
    return PruningCosts(channels=WIDTH, groups=GROUPS, blocks=tuple(blocks))


def every(free: PruningLimits) -> list[Shape]:
    """All shapes that are allowed, one by one."""
    widths = range(STEP, WIDTH + 1, STEP)
    kept = [*product(widths, range(0 if free.uneven else 1, GROUPS + 1) if free.heads else (GROUPS,))]
    first = [pair for pair in kept if pair[1]]
    later = [*kept, (0, 0)] if free.depth else kept
    shapes = (
        Shape(ffn=ffn, kv_heads=kv) for ffn, kv in map(_columns, product(first, *[later] * (BLOCKS - 1)))
    )
    return [
        each
        for each in shapes
        if free.uneven or len({(each.ffn[i], each.kv_heads[i]) for i in each.kept}) == 1
    ]


def _columns(pairs: tuple[tuple[int, int], ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(width for width, _ in pairs), tuple(groups for _, groups in pairs)


@pytest.mark.parametrize(
    ("seed", "share", "free"),
    [
        (0, 0.9, PruningLimits(STEP)),
        (1, 1.05, PruningLimits(STEP)),
        (2, 0.85, PruningLimits(STEP, heads=False)),
        (3, 1.1, PruningLimits(STEP, depth=False)),
        (4, 0.92, PruningLimits(STEP, uneven=False)),
        (5, 1.02, PruningLimits(STEP, uneven=False, heads=False)),
    ],
)
def test_no_shape_is_much_better(
    case: tuple[Problem, Checkpoint], seed: int, share: float, free: PruningLimits
) -> None:
    """share: of what the whole model needs beyond a shell without blocks, at the least."""
    problem, checkpoint = case
    costs = menu_of(seed, 0.05)
    whole = smallest_decision(problem).memory.total
    least = smallest_decision(
        joint.narrowed(problem, checkpoint, shape.smallest(checkpoint, free))
    ).memory.total
    budget = round(least + share * (whole - least))
    kl_by_type = {}
    for each in every(free):
        try:
            bits = decide(joint.narrowed(problem, checkpoint, each), budget).predicted_kl
        except BudgetError:
            continue
        kl_by_type[each] = bits + shape.cost(costs, each)
    found = joint.best(problem, checkpoint, costs, free, budget)
    assert found is not None
    assert found.predicted_kl == pytest.approx(kl_by_type[found.shape], rel=1e-6)
    assert found.decision.memory.total <= budget
    assert len(kl_by_type) > 5
    assert found.predicted_kl <= 1.03 * min(kl_by_type.values())


def test_a_limit_is_kept_by_removing(case: tuple[Problem, Checkpoint]) -> None:
    """Fewer bytes a token than any types of the whole model give: the best shape that does."""
    problem, checkpoint = case
    costs, free = menu_of(6, 0.05), PruningLimits(STEP)
    reads = Cost(
        dict.fromkeys(
            {kind for kinds in problem.sensitivities.values() for kind in kinds} | {"F32", "F16"}, 1.0
        )
    )
    plenty = 10**9
    most = 0.8 * least_cost(problem, plenty, reads)
    limited = replace(problem, limits=(Limit("speed", reads, most, ""),))
    with pytest.raises(BudgetError):
        decide(limited, plenty)
    kl_by_type = {}
    for each in every(free):
        try:
            kl_by_type[each] = decide(
                joint.narrowed(limited, checkpoint, each), plenty
            ).predicted_kl + shape.cost(costs, each)
        except BudgetError:
            continue
    found = joint.best(limited, checkpoint, costs, free, plenty)
    assert found is not None
    assert found.predicted_kl <= 1.05 * min(kl_by_type.values())
    smaller = joint.narrowed(limited, checkpoint, found.shape)
    assert smaller.spent(reads, found.decision.types, found.decision.runtime) <= most


def test_what_costs_nothing_goes_and_what_is_dear_stays(case: tuple[Problem, Checkpoint]) -> None:
    problem, checkpoint = case
    free, dear, cheap = PruningLimits(STEP), menu_of(0, 1e3), menu_of(0, 1e-6)
    budget = smallest_decision(problem).memory.total + 300_000
    stays, goes = (joint.best(problem, checkpoint, costs, free, budget) for costs in (dear, cheap))
    assert stays is not None
    assert goes is not None
    assert stays.shape == shape.full(dear)
    assert sum(goes.shape.ffn) <= STEP * BLOCKS
    again = joint.best(problem, checkpoint, cheap, free, budget, growth=1e9)
    assert again is not None
    assert again.shape == stays.shape


def test_nothing_fits(case: tuple[Problem, Checkpoint]) -> None:
    problem, checkpoint = case
    assert joint.best(problem, checkpoint, menu_of(0, 1.0), PruningLimits(STEP), 1_000_000) is None
