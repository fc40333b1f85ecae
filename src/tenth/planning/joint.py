"""Widths and bits in one integer program: what a block keeps competes with the bits of its matrices.

    minimise    sum_i removal[i, l] P[i, l]  +  sum_t,l,q sensitivity[t, q] x[t, l, q]  +  sum_r harm[r] y[r]
    subject to  sum_l P[i, l] = 1               each part of block i (FFN channels; KV groups) has one level
                sum_q x[t, l, q] = P[i, l]      and every matrix t of the part has a type of that level's size
                F[i, none] <= A[i, none]        all channels go only with the whole block
                z >= kv[r] sum_i,l groups[l] A[i, l] - M (1 - y[r]),    sum_r y[r] = 1
                b >= sum_l buffer[l] F[i, l]    for every block i: as large as the widest wants
                sum bytes[t, l, q] x[t, l, q] + z + b  <=  budget - fixed
                and planning/plan.py's limits on what a token costs, the cache taken as of all groups

The levels and the types y of the KV cache are binary. The types of matrices are continuous: as one constraint
counts bytes, only a matrix or two are between types, and plan.decide then solves the types and the way to run
of that shape exactly. Buffers depend on those a little, so the two take turns. Blocks that must be alike
share their levels. Removal costs are `PruningCosts` (pruning/shape.py), scaled by what is known of their sum;
a matrix that lost channels keeps its predicted KL, since the ones that matter stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tenth.core.errors import BudgetError
from tenth.core.ggml import storage_type
from tenth.core.records import MB, Runtime, Shape, TensorSpec
from tenth.devices.speed import multiplied
from tenth.models.checkpoint import Checkpoint
from tenth.models.formats.gguf import tensor_bytes
from tenth.planning.milp import Row, minimise
from tenth.planning.plan import Decision, Problem, decide, efficient_runtimes, kernels, smallest_decision
from tenth.pruning import shape
from tenth.pruning.shape import PruningCosts, PruningLimits

TURNS = 4  # of shape and types
LEVELS = 16  # widths of a block that are told apart, at most
GAP = 1e-3  # relative, at which the solver may stop


@dataclass(frozen=True)
class Choice:
    """A shape, the decision for it, and the predicted KL that both promise together, nats per token."""

    shape: Shape
    decision: Decision
    predicted_kl: float


def best(
    problem: Problem,
    checkpoint: Checkpoint,
    costs: PruningCosts,
    limits: PruningLimits,
    budget: int,
    growth: float = 1.0,
) -> Choice | None:
    """The shape and types of least predicted KL found within `budget` bytes; None where nothing fits.

    problem: of the whole model. growth: what the sum of removal costs is to be multiplied with.
    """
    choices = [_best(each, checkpoint, costs, limits, budget, growth) for each in kernels(problem)]
    return min((choice for choice in choices if choice), key=lambda choice: choice.predicted_kl, default=None)


def _best(
    problem: Problem,
    checkpoint: Checkpoint,
    costs: PruningCosts,
    limits: PruningLimits,
    budget: int,
    growth: float,
) -> Choice | None:
    smallest = smallest_decision(problem)
    program = _JointProgram(problem, checkpoint, costs, limits, growth, smallest.runtime)
    fixed = program.fixed(problem, smallest, costs.channels)
    best_choice: Choice | None = None
    tried: set[Shape] = set()
    for _ in range(TURNS):
        chosen = program.solve(budget - fixed)
        if chosen is None or chosen in tried:
            break
        tried.add(chosen)
        smaller = narrowed(problem, checkpoint, chosen)
        try:
            decision = decide(smaller, budget)
        except BudgetError as error:
            if not error.smallest:
                break  # a demand on speed or energy, which no other bits meet
            fixed += max(error.smallest["total"] - budget, 1)
            continue
        predicted_kl = decision.predicted_kl + growth * shape.cost(costs, chosen)
        if best_choice is None or predicted_kl < best_choice.predicted_kl:
            best_choice = Choice(chosen, decision, predicted_kl)
        fixed = program.fixed(smaller, decision, max(chosen.ffn))
    return best_choice


def narrowed(problem: Problem, checkpoint: Checkpoint, chosen: Shape) -> Problem:
    """The problem of the model in that shape, with the sensitivities of the whole one."""
    smaller = shape.uniform_shape(checkpoint, chosen)
    specs, names = smaller.specs(), dict(enumerate(chosen.kept))

    def original(spec: TensorSpec) -> str:
        if spec.layer is None:
            return spec.name
        return spec.name.replace(f"blk.{spec.layer}.", f"blk.{names[spec.layer]}.", 1)

    sensitivities = {spec.name: problem.sensitivities[original(spec)] for spec in specs if spec.linear}
    return replace(problem, shape=smaller.shape, specs=specs, sensitivities=sensitivities)


class _JointProgram:
    """The program but for the budget, at the n_ubatch of a runtime."""

    def __init__(
        self,
        problem: Problem,
        checkpoint: Checkpoint,
        costs: PruningCosts,
        limits: PruningLimits,
        growth: float,
        runtime: Runtime,
    ) -> None:
        self._problem, self._checkpoint, self._costs, self._runtime = problem, checkpoint, costs, runtime
        self._cost: list[float] = []  # of each variable
        self._size: list[float] = []  # bytes
        self._binary: list[bool] = []
        self._rows: list[Row] = []
        self._spent: list[list[tuple[int, float]]] = [[] for _ in problem.limits]  # shares of each limit
        self._multiplied = {spec.name for spec in multiplied(problem.specs)}
        # Of each block, the binary variable of every level: channels and KV groups that stay; 0 is none.
        self._ffn: list[dict[int, int]] = []
        self._attention: list[dict[int, int]] = []
        self._widths, self._groups = _levels(costs, limits)
        for index in range(len(costs.blocks)):
            self._add_block(index, limits, growth)
        if not limits.uneven:
            self._make_blocks_alike()
        self._add_matrices()
        self._add_cache()
        self._add_buffers()

    def _add_block(self, index: int, limits: PruningLimits, growth: float) -> None:
        """The levels of a block's parts, of which each has one."""
        block, channels, groups = self._costs.blocks[index], self._costs.channels, self._costs.groups
        droppable = limits.depth and index > 0
        mutable = limits.heads and limits.uneven and index > 0  # its attention may go alone
        at_width = {w: block.ffn[(channels - w) // shape.STEP] for w in self._widths}
        if droppable:  # beyond the attention, which goes with it
            at_width[0] = block.whole - block.kv_heads[-1]
        self._ffn.append({w: self._variable(growth * cost, True) for w, cost in at_width.items()})
        kept = [*self._groups, 0] if droppable or mutable else self._groups
        self._attention.append({g: self._variable(growth * block.kv_heads[groups - g], True) for g in kept})
        for levels in (self._ffn[index], self._attention[index]):
            self._rows.append(([(variable, 1.0) for variable in levels.values()], 1, 1))
        if droppable:
            none = [(self._ffn[index][0], 1.0), (self._attention[index][0], -1.0)]
            self._rows.append((none, -np.inf if mutable else 0, 0))

    def _make_blocks_alike(self) -> None:
        """Whatever stays is as the first block."""
        self._rows += [
            ([(variable, 1.0), (levels[0][level], -1.0)], -np.inf, 0)
            for levels in (self._ffn, self._attention)
            for block in levels[1:]
            for level, variable in block.items()
            if level
        ]

    def _add_matrices(self) -> None:
        """The types of every matrix at every level of its part."""
        checkpoint, costs = self._checkpoint, self._costs
        at_width = {w: _matrices(checkpoint, costs, w, costs.groups) for w in self._widths}
        at_groups = {g: _matrices(checkpoint, costs, costs.channels, g) for g in self._groups}
        for spec in self._problem.specs:
            if not spec.linear:
                continue
            if spec.layer is None:
                self._rows.append((self._types(spec), 1, 1))
                continue
            in_ffn = spec.role.startswith("ffn_")
            blocks, matrices = (self._ffn, at_width) if in_ffn else (self._attention, at_groups)
            for level, variable in blocks[spec.layer].items():
                if level:
                    kinds = self._types(matrices[level][spec.name])
                    self._rows.append(([*kinds, (variable, -1.0)], 0, 0))

    def fixed(self, problem: Problem, decision: Decision, width: int) -> int:
        """Bytes of a decision that the program does not know, at its n_ubatch; width: of the widest block."""
        changes = {"n_ubatch": self._runtime.n_ubatch, "repack": False}
        memory = problem.memory(decision.types, decision.runtime.model_copy(update=changes))
        return memory.total - memory.weights - memory.kv - self._compute[width]

    def _variable(self, cost: float, binary: bool, size: float = 0.0) -> int:
        self._cost.append(cost)
        self._size.append(size)
        self._binary.append(binary)
        return len(self._cost) - 1

    def _types(self, spec: TensorSpec) -> list[tuple[int, float]]:
        """A variable for each type of a matrix, with the factor 1."""
        sensitivities = self._problem.sensitivities[spec.name]
        size = {
            kind: float(tensor_bytes(spec, kind))
            for kind in sensitivities
            if storage_type(kind).holds(spec.columns)
        }
        # Where a limit says otherwise, types that are large for their predicted KL may be the quick ones.
        kinds = {
            kind: self._variable(sensitivities[kind], False, size[kind])
            for kind in (size if self._spent else _hull(size, sensitivities))
        }
        if spec.name in self._multiplied:
            for spent, limit in zip(self._spent, self._problem.limits, strict=True):
                spent += [(x, size[k] * limit.cost.per_byte[k] / limit.most) for k, x in kinds.items()]
        return [(variable, 1.0) for variable in kinds.values()]

    def _add_buffers(self) -> None:
        """A variable that is at least what the widest block wants."""
        self._compute, costs = {}, self._costs
        for width in self._widths:
            alike = narrowed(self._problem, self._checkpoint, _alike(costs, width, costs.groups))
            types = {name: next(iter(kinds)) for name, kinds in alike.sensitivities.items()}
            self._compute[width] = alike.memory(types, self._runtime).compute
        buffer = self._variable(0.0, False, 1.0)
        for levels in self._ffn:
            used = [(variable, -float(self._compute[w])) for w, variable in levels.items() if w]
            self._rows.append(([(buffer, 1.0), *used], 0, np.inf))

    def _add_cache(self) -> None:
        """The KV types, a variable that is at least the cache's bytes with those taken, and the limits."""
        problem, held, taken = self._problem, self._variable(0.0, False, 1.0), []
        plain = {name: next(iter(kinds)) for name, kinds in problem.sensitivities.items()}
        vectors = [limit.cost.vectors(problem.specs) for limit in problem.limits]
        for runtime, harm in efficient_runtimes(problem, plain):
            if runtime.n_ubatch != self._runtime.n_ubatch:
                continue
            whole = problem.memory(plain, runtime).kv
            share = whole / (self._costs.groups * len(self._attention))
            used = [(v, -share * g) for levels in self._attention for g, v in levels.items()]
            taken.append((self._variable(harm, True), 1.0))
            self._rows.append(([(held, 1.0), *used, (taken[-1][0], -whole)], -whole, np.inf))
            for spent, limit, always in zip(self._spent, problem.limits, vectors, strict=True):
                amount = always + limit.cost.elsewhere(problem.shape, runtime)
                spent.append((taken[-1][0], amount / limit.most))
        self._rows.append((taken, 1, 1))
        self._rows += [(spent, -np.inf, 1.0) for spent in self._spent]

    def solve(self, budget: int) -> Shape | None:
        """The levels of least predicted KL with matrices and KV cache in so many bytes; None where nothing
        fits.
        """
        norms = sum(tensor_bytes(spec, "F32") for spec in self._problem.specs if not spec.linear)
        held = [(i, size / MB) for i, size in enumerate(self._size) if size]
        rows = [*self._rows, (held, -np.inf, (budget - norms) / MB)]
        solution = minimise(np.array(self._cost), rows, np.array(self._binary), GAP)
        if solution is None:
            return None
        ffn, kv_heads = (
            tuple(max(block, key=lambda level: solution[block[level]]) for block in levels)
            for levels in (self._ffn, self._attention)
        )
        return Shape(ffn=ffn, kv_heads=kv_heads)


def _levels(costs: PruningCosts, limits: PruningLimits) -> tuple[list[int], list[int]]:
    """(widths of a block that stays, numbers of its KV groups), the whole first."""
    widths = shape.widths(costs, limits.multiple)
    groups = range(costs.groups, 0, -1) if limits.heads else (costs.groups,)
    return widths[:: -(-len(widths) // LEVELS)], list(groups)


def _matrices(checkpoint: Checkpoint, costs: PruningCosts, width: int, groups: int) -> dict[str, TensorSpec]:
    """The matrices of the model whose blocks are all of that size."""
    smaller = shape.uniform_shape(checkpoint, _alike(costs, width, groups))
    return {spec.name: spec for spec in smaller.specs() if spec.linear}


def _alike(costs: PruningCosts, width: int, groups: int) -> Shape:
    blocks = len(costs.blocks)
    return Shape(ffn=(width,) * blocks, kv_heads=(groups,) * blocks)


def _hull(size: Mapping[str, float], predicted_kl: Mapping[str, float]) -> list[str]:
    """Types on the lower convex hull of predicted KL over bytes: no mixture of two others beats them."""
    kept: list[str] = []
    for kind in sorted(size, key=lambda k: (size[k], predicted_kl[k])):
        if kept and predicted_kl[kind] >= predicted_kl[kept[-1]]:
            continue
        while len(kept) > 1:
            (x1, y1), (x2, y2), (x3, y3) = ((size[k], predicted_kl[k]) for k in (kept[-2], kept[-1], kind))
            if (y2 - y1) * (x3 - x1) < (y3 - y1) * (x2 - x1):
                break
            kept.pop()
        kept.append(kind)
    return kept
