"""The integer program: types of every tensor and of the KV cache, n_ubatch and repacking under one budget.

    minimise    sum_t,q damage[t,q] x[t,q] + sum_r kv_damage[r] y[r]
    subject to  sum_q x[t,q] = 1  for every tensor t,      sum_r y[r] = 1,
                sum_t,q bytes[t,q] x[t,q] + sum_r fixed[r] y[r] + z  <=  budget,
                z >= sum_t,q copy[t,q] x[t,q] - M (1 - sum_r repacked y[r]),
                sum_t,q (bytes[t,q] / 2 - copy[t,q]) x[t,q] <= M (1 - sum_r repacked y[r]),   x, y binary

t are tensors (alike ones are counted by one variable), q ggml types, r ways to run (n_ubatch, KV types,
repacking); z is the repacked copy. A second
solve keeps the damage within SLACK of the least and takes the quickest way to run that then fits. The numbers
come from outside: damages from price.py and kv.py (nats per token, additive), bytes from cost.py. Solved by
HiGHS (scipy.optimize.milp).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.optimize import Bounds, LinearConstraint, milp

from tenth import cost
from tenth.encode import bits_per_weight, holds
from tenth.errors import BudgetError
from tenth.formats.gguf import ALIGNMENT, tensor_bytes
from tenth.records import MB, MemoryParts, Runtime, TensorSpec

SLACK = 0.02  # of the least damage, given up for speed
GAP = 1e-4  # relative, at which the solver may stop
# Prefill time against n_ubatch 512, measured on ref-46m on two AVX2 cores (docs/benchmarks.md).
SLOWNESS = {8: 2.40, 16: 1.67, 32: 1.71, 64: 0.99, 128: 0.87, 256: 0.84, 512: 1.0}
UNPACKED = 0.07  # added where the interleaved kernels are not used; mean over the same rows


@dataclass(frozen=True)
class Problem:
    """All numbers of one decision, in nats per token: prices of GGUF tensor -> type, kv of "k q8_0"."""

    config: Mapping[str, Any]
    gguf_arch: str
    specs: Sequence[TensorSpec]
    prices: Mapping[str, Mapping[str, float]]
    kv: Mapping[str, float]
    context: int
    constants: cost.Constants
    merges: int | None = None
    threads: int = 0

    def memory(self, types: Mapping[str, str], runtime: Runtime) -> MemoryParts:
        """Bytes of a decision."""
        return cost.memory(
            self.config, self.gguf_arch, self.specs, types, runtime, self.constants, self.merges
        )

    def kv_damage(self, runtime: Runtime) -> float | None:
        """Nats per token of the runtime's cache types; None where that was not measured."""
        parts = [
            0.0 if kind == "f16" else self.kv.get(f"{side} {kind}")
            for side, kind in (("k", runtime.type_k), ("v", runtime.type_v))
        ]
        return None if None in parts else float(sum(part for part in parts if part is not None))


@dataclass(frozen=True)
class Decision:
    """What to store and how to run; memory and damage as predicted."""

    types: dict[str, str]
    runtime: Runtime
    memory: MemoryParts
    damage: float


@dataclass(frozen=True)
class _Tables:
    """The program's coefficients, one entry per option."""

    groups: list[list[TensorSpec]]  # tensors that are alike in shape and prices: one variable counts them
    options: list[tuple[int, str]]  # (group number, type)
    size: np.ndarray  # bytes in the file of one tensor, float64
    copy: np.ndarray  # bytes of a repacked copy
    damage: np.ndarray
    runtimes: list[Runtime]
    fixed: np.ndarray  # bytes that do not depend on the types
    kv_damage: np.ndarray
    slowness: np.ndarray


def decide(problem: Problem, budget: int) -> Decision:
    """The best decision within `budget` bytes. Raises BudgetError with the smallest one, part by part."""
    tables = _tables(problem)
    limit = budget
    for _ in range(4):
        chosen = _solve(tables, limit)
        if chosen is None:
            break
        decision = _decision(problem, tables, chosen)
        excess = decision.memory.total - budget
        if excess <= 0:
            return decision
        limit -= excess  # the work buffer depends on the types a little: ask again for that much less
    smallest = smallest_decision(problem, tables)
    if smallest.memory.total <= budget:
        return smallest
    raise BudgetError(_unreachable(problem, smallest, budget), _parts(smallest.memory))


def smallest_decision(problem: Problem, tables: _Tables | None = None) -> Decision:
    """The least memory that any decision needs, whatever the damage."""
    tables = tables or _tables(problem)
    chosen = np.zeros(len(tables.options) + len(tables.runtimes))
    for number, group in enumerate(tables.groups):
        own = [i for i, (g, _) in enumerate(tables.options) if g == number]
        chosen[min(own, key=lambda i: tables.size[i])] = len(group)
    chosen[len(tables.options) + int(np.argmin(tables.fixed + 1e-3 * tables.kv_damage))] = 1
    return _decision(problem, tables, chosen)


def _tables(problem: Problem) -> _Tables:
    groups = _groups(problem)
    tied = all(spec.role != "output" for spec in problem.specs)
    options, size, copy, damage = [], [], [], []
    for number, group in enumerate(groups):
        spec = group[0]
        for name in _efficient(spec, problem.prices[spec.name]):
            multiplied = tied or spec.role != "token_embd"
            options.append((number, name))
            size.append(_stored(spec, name) * problem.constants.weights_factor)
            packed = multiplied and cost.repackable(name, spec.shape[0], spec.columns)
            copy.append(size[-1] * problem.constants.repacked_factor if packed else 0.0)
            damage.append(problem.prices[spec.name][name])
    plain = {s.name: "Q4_K" if holds("Q4_K", s.columns) else "F16" for s in problem.specs if s.linear}
    runtimes, fixed, kv_damage, slowness = [], [], [], []
    for candidate, harm in _ways(problem, plain):
        parts = problem.memory(plain, candidate)
        for repack in (False, True):
            runtimes.append(candidate.model_copy(update={"repack": repack}))
            fixed.append(float(parts.total - parts.weights))
            kv_damage.append(harm)
            slowness.append(_slowness(candidate.n_ubatch) + (0.0 if repack else UNPACKED))
    vectors = sum(_stored(spec, "F32") for spec in problem.specs if not spec.linear)
    return _Tables(
        groups=groups,
        options=options,
        size=np.array(size),
        copy=np.array(copy),
        damage=np.array(damage),
        runtimes=runtimes,
        fixed=np.array(fixed) + vectors * problem.constants.weights_factor,
        kv_damage=np.array(kv_damage),
        slowness=np.array(slowness),
    )


def _slowness(n_ubatch: int) -> float:
    return float(np.interp(np.log2(n_ubatch), [np.log2(n) for n in SLOWNESS], list(SLOWNESS.values())))


def _stored(spec: TensorSpec, type_name: str) -> int:
    return -(-tensor_bytes(spec, type_name) // ALIGNMENT) * ALIGNMENT


def _groups(problem: Problem) -> list[list[TensorSpec]]:
    """Linear tensors that cannot be told apart; where prices were measured, every one is alone."""
    found: dict[tuple[object, ...], list[TensorSpec]] = {}
    for spec in problem.specs:
        if spec.linear:
            prices = tuple(sorted(problem.prices[spec.name].items()))
            found.setdefault((spec.shape, spec.layer is None, prices), []).append(spec)
    return list(found.values())


def _ways(problem: Problem, types: Mapping[str, str]) -> list[tuple[Runtime, float]]:
    """(how to run, KV damage), without cache types that others beat in both bytes and damage."""
    priced = [
        (runtime, harm)
        for runtime in cost.possible_runtimes(
            problem.config, problem.gguf_arch, problem.context, problem.threads
        )
        if (harm := problem.kv_damage(runtime)) is not None
    ]
    batch = priced[0][0].n_ubatch  # the order of cache types is the same for every batch
    sizes = [(problem.memory(types, r).total, harm, r) for r, harm in priced if r.n_ubatch == batch]
    kept: set[tuple[str, str]] = set()
    least = np.inf
    for _, harm, runtime in sorted(sizes, key=lambda way: way[:2]):
        if harm < least:
            kept.add((runtime.type_k, runtime.type_v))
            least = harm
    return [(runtime, harm) for runtime, harm in priced if (runtime.type_k, runtime.type_v) in kept]


def _efficient(spec: TensorSpec, prices: Mapping[str, float]) -> list[str]:
    """Types that no other one beats in both bytes and damage, by bytes."""
    kept: list[str] = []
    least = np.inf
    for name in sorted(prices, key=lambda n: (bits_per_weight(n), prices[n])):
        if holds(name, spec.columns) and prices[name] < least:
            kept.append(name)
            least = prices[name]
    return kept


def _solve(tables: _Tables, budget: float) -> np.ndarray | None:
    """How many tensors take each option, then 0/1 for each runtime; None where nothing fits."""
    options, runtimes = len(tables.options), len(tables.runtimes)
    owners = np.array([number for number, _ in tables.options])
    counts = np.array([len(group) for group in tables.groups], float)
    pick = sp.csr_matrix((np.ones(options), (owners, np.arange(options))))
    one = sp.block_diag([pick, np.ones((1, runtimes)), sp.csr_matrix((0, 1))], format="csr")
    repacked = np.array([runtime.repack for runtime in tables.runtimes], float)
    most = counts[owners]
    ceiling = float(tables.copy @ most) or 1.0
    whole = float(tables.size @ most)
    every = np.concatenate([counts, [1.0]])
    # In MB, so that the solver's absolute tolerances mean one byte.
    memory = np.concatenate([tables.size, tables.fixed, [MB]])[None] / MB
    copies = np.concatenate([tables.copy, ceiling * repacked, [-MB]])[None] / MB
    unpacked = tables.size / 2 - tables.copy
    mostly = np.concatenate([unpacked, whole * repacked, [0.0]])[None] / MB
    scale = max(float(tables.damage.max()), 1e-12)
    harm = np.concatenate([tables.damage, tables.kv_damage, [0.0]]) / scale
    constraints = [
        LinearConstraint(one, every, every),
        LinearConstraint(memory, -np.inf, budget / MB),
        LinearConstraint(copies, -np.inf, ceiling / MB),
        # Repacking is worth its name where most of the weights gain by it.
        LinearConstraint(mostly, -np.inf, whole / MB),
    ]
    integral = np.concatenate([np.ones(options + runtimes), [0]])
    bounds = Bounds(0, np.concatenate([most, np.ones(runtimes), [np.inf]]))

    def solve(objective: np.ndarray, extra: Sequence[LinearConstraint]) -> np.ndarray | None:
        found = milp(
            objective, constraints=[*constraints, *extra], integrality=integral, bounds=bounds,
            options={"mip_rel_gap": GAP, "time_limit": 60.0},
        )  # fmt: skip
        return None if found.x is None else np.asarray(np.round(found.x), float)

    best = solve(harm, [])
    if best is None:
        return None
    # Quicker, at hardly more damage. The small term keeps damage low among equally quick ways.
    least = float(harm @ best)
    quick = np.concatenate([np.zeros(options), tables.slowness, [0.0]]) + 1e-3 * harm / max(least, 1e-12)
    quicker = solve(quick, [LinearConstraint(harm[None], -np.inf, least * (1 + SLACK))])
    return best if quicker is None else quicker


def _decision(problem: Problem, tables: _Tables, chosen: np.ndarray) -> Decision:
    count = len(tables.options)
    left = [list(group) for group in tables.groups]
    types = {}
    # The options of a group stand by bytes: the first of its layers take the smaller types.
    for (group, name), wanted in zip(tables.options, chosen[:count], strict=True):
        for _ in range(round(wanted)):
            types[left[group].pop(0).name] = name
    number = int(np.argmax(chosen[count : count + len(tables.runtimes)]))
    damage = sum(problem.prices[name][kind] for name, kind in types.items()) + float(tables.kv_damage[number])
    runtime = tables.runtimes[number]
    return Decision(types, runtime, problem.memory(types, runtime), damage)


def _parts(memory: MemoryParts) -> dict[str, int]:
    return {**memory.model_dump(), "total": memory.total}


def _unreachable(problem: Problem, smallest: Decision, budget: int) -> str:
    """One line: what is needed, and what would help."""
    memory = smallest.memory
    parts = ", ".join(f"{name} {size / MB:.1f}" for name, size in memory.model_dump().items() if size)
    helps = []
    if memory.kv > 0.05 * memory.total and problem.context > 256:
        helps.append("a shorter --context")
    helps += ["a larger --share or --memory", "a smaller sibling of this model"]
    return (
        f"nothing fits {budget / MB:.1f} MB at a context of {problem.context}: the smallest needs"
        f" {memory.total / MB:.1f} MB ({parts}); what would help: {', '.join(helps)}"
    )
