"""What a plan gives up for what: which limit binds, and the curves of quality against speed at several
budgets.

Both come from the relaxed program, in which a group of tensors may be split between two types: a lower bound
on the predicted KL that the plan itself meets within a per cent or so, found in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tenth.planning.constraints import Cost, Limit
from tenth.planning.milp import Program, Tables
from tenth.planning.plan import Problem, coefficients, kernels

FELT = 0.01  # of the predicted KL: a limit binds if the predicted KL would fall by more without it
STEPS = 5  # points of a curve


@dataclass(frozen=True)
class CurvePoint:
    """The least predicted KL at a memory and a speed."""

    memory: int  # bytes
    predicted_kl: float  # nats per token
    spent: tuple[float, ...]  # of each cost that was asked about


def binding(problem: Problem, budget: int) -> list[str]:
    """What the predicted KL would fall without, by more than FELT: "memory" and names of limits; empty:
    nothing.
    """
    every = [coefficients(each) for each in kernels(problem)]

    def least(allowed: float, rows: Sequence[int]) -> float:
        harms = [np.inf]
        for tables in every:
            program = Program(replace(tables, costs=tables.costs[list(rows)]), allowed, relaxed=True)
            solution = program.solve(program.harm)
            harms += [] if solution is None else [float(program.harm @ solution) * program.scale]
        return min(harms)

    rows = list(range(len(problem.limits)))
    with_all = least(budget, rows)
    felt = ["memory"] if least(np.inf, rows) < with_all * (1 - FELT) else []
    return felt + [
        problem.limits[row].name
        for row in rows
        if least(budget, [other for other in rows if other != row]) < with_all * (1 - FELT)
    ]


def curves(problem: Problem, budgets: Iterable[int], costs: Sequence[Cost]) -> list[list[CurvePoint]]:
    """For each budget, from the best quality to the least of the first cost; none where nothing fits."""
    limits = tuple(Limit("", cost, 1.0, "") for cost in costs)
    free = replace(problem, limits=limits, seconds_per_token=None, prefer="quality")
    every = [coefficients(each) for each in kernels(free)]
    by_budget = ([_curve(tables, budget) for tables in every] for budget in budgets)
    possible = ([curve for curve in curves if curve] for curves in by_budget)
    return [min(curves, key=lambda curve: curve[0].predicted_kl) for curves in possible if curves]


def _curve(tables: Tables, budget: int) -> list[CurvePoint]:
    """Points by falling first cost; empty where nothing fits."""
    amounts = np.hstack([tables.costs, np.zeros((len(tables.costs), 1))])
    memory = np.concatenate([tables.size, tables.fixed, [1e6]])

    def point(program: Program, solution: np.ndarray) -> CurvePoint:
        predicted_kl = float(program.harm @ solution) * program.scale
        return CurvePoint(int(memory @ solution), predicted_kl, tuple(map(float, amounts @ solution)))

    program = Program(replace(tables, costs=tables.costs[:0]), budget, relaxed=True)
    best, fastest = program.solve(program.harm), program.solve(amounts[0])
    if best is None or fastest is None:
        return []
    points = [point(program, best)]
    ends = float(amounts[0] @ best), float(amounts[0] @ fastest)
    for most in np.geomspace(*ends, STEPS)[1:] * (1 + 1e-6):
        program = Program(replace(tables, costs=tables.costs[:1] / most), budget, relaxed=True)
        solution = program.solve(program.harm)
        if solution is not None:
            points.append(point(program, solution))
    return points
