"""The integer program: types of every tensor and of the KV cache, n_ubatch and repacking under one budget.

    minimise    sum_t,q sensitivity[t,q] x[t,q] + sum_r kv_kl[r] y[r]
    subject to  sum_q x[t,q] = 1  for every tensor t,      sum_r y[r] = 1,
                sum_t,q bytes[t,q] x[t,q] + sum_r fixed[r] y[r] + z  <=  budget,
                z >= sum_t,q copy[t,q] x[t,q] - M (1 - sum_r repacked y[r]),
                sum_t,q (bytes[t,q] / 2 - copy[t,q]) x[t,q] <= M (1 - sum_r repacked y[r]),   x, y binary
                sum_t,q cost[l,t,q] x[t,q] + sum_r cost[l,r] y[r]  <=  most[l]   for every limit l

t are tensors (alike ones are counted by one variable), q ggml types, r runtimes (n_ubatch, KV types,
repacking); z is the repacked copy; a limit is on what a token costs in seconds or joules
(planning/constraints.py), the sum over what it reads. A second solve keeps the predicted KL within SLACK of
the least and takes the quickest way to run that then fits; where speed is preferred, it gives up FASTER of
the predicted KL, or UNFELT, for the fewest seconds per decoded token. All of it is done with and without the
types whose kernels want scratch memory, and the better decision stands. The numbers come from outside:
sensitivities from quantization/sensitivity.py and quantization/kv.py (nats per token, additive), bytes from
planning/memory.py. planning/milp.py asks the solver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from tenth.core.errors import BudgetError
from tenth.core.format import megabytes
from tenth.core.ggml import storage_type
from tenth.core.records import MemoryParts, Runtime, TensorSpec
from tenth.devices.speed import multiplied
from tenth.models.formats.gguf import ALIGNMENT, tensor_bytes
from tenth.models.shape import ModelShape
from tenth.planning import memory as memory_model
from tenth.planning.constraints import Cost, Limit
from tenth.planning.milp import Program, Tables

_Key = TypeVar("_Key")
SLACK = 0.02  # of the least predicted KL, given up for speed
FASTER = 0.5  # the same where speed is preferred, and at least as much as nobody notices:
UNFELT = 0.005  # nats per token
# Prefill time against n_ubatch 512, measured on ref-46m on two AVX2 cores (docs/benchmarks.md).
SLOWNESS = {8: 2.40, 16: 1.67, 32: 1.71, 64: 0.99, 128: 0.87, 256: 0.84, 512: 1.0}
UNPACKED = 0.07  # added where the interleaved kernels are not used; mean over the same rows


@dataclass(frozen=True)
class Problem:
    """All numbers of one decision; sensitivities (tensor -> type) and kv ("k q8_0") in nats per token."""

    shape: ModelShape
    specs: Sequence[TensorSpec]
    sensitivities: Mapping[str, Mapping[str, float]]
    kv: Mapping[str, float]
    context: int
    constants: memory_model.Constants
    merges: int | None = None
    threads: int = 0
    limits: tuple[Limit, ...] = ()
    seconds_per_token: Cost | None = None  # seconds of a decoded token; needed where speed is preferred
    prefer: Literal["quality", "speed"] = "quality"

    @property
    def costs(self) -> list[Cost]:
        """What its limits are on, and last the seconds of a token where they are known."""
        seconds = [self.seconds_per_token] if self.seconds_per_token else []
        return [*(limit.cost for limit in self.limits), *seconds]

    def spent(self, cost: Cost, types: Mapping[str, str], runtime: Runtime) -> float:
        """What a decision costs, in the unit of the cost."""
        return cost.of(self.shape, self.specs, types, runtime)

    def kv_read(self, runtime: Runtime, depth: int) -> dict[str, float]:
        """Bytes of the cache that a token decoded after `depth` others reads, by ggml type."""
        return memory_model.kv_read(self.shape, runtime, depth)

    def memory(self, types: Mapping[str, str], runtime: Runtime) -> MemoryParts:
        """The bytes that a decision holds, by part."""
        return memory_model.memory(self.shape, self.specs, types, runtime, self.constants, self.merges)

    def kv_kl(self, runtime: Runtime) -> float | None:
        """Nats per token of the runtime's cache types; None where that was not measured."""
        parts = [
            0.0 if kind == "f16" else self.kv.get(f"{side} {kind}")
            for side, kind in (("k", runtime.type_k), ("v", runtime.type_v))
        ]
        return None if None in parts else float(sum(part for part in parts if part is not None))


@dataclass(frozen=True)
class Decision:
    """What to store and how to run; memory and predicted KL as predicted."""

    types: dict[str, str]
    runtime: Runtime
    memory: MemoryParts
    predicted_kl: float


def decide(problem: Problem, budget: int) -> Decision:
    """The best decision within `budget` bytes and the limits.

    Raises BudgetError: with the smallest decision, part by part, where memory is too little for any; else
    with the best that can be had of what a limit is on.
    """
    programs = [(each, coefficients(each)) for each in kernels(problem)]
    decisions = [decision for program in programs if (decision := _decided(*program, budget))]
    if decisions:
        best = min(decisions, key=lambda d: d.predicted_kl)
        if problem.prefer == "quality" or problem.seconds_per_token is None:
            return best
        return _quickest(programs, problem.seconds_per_token, budget, best)
    smallest = smallest_decision(problem)
    if smallest.memory.total <= budget:
        spent = [problem.spent(limit.cost, smallest.types, smallest.runtime) for limit in problem.limits]
        if all(amount <= limit.most for amount, limit in zip(spent, problem.limits, strict=True)):
            return smallest
        raise BudgetError(_too_slow(problem, budget))
    raise BudgetError(_unreachable(problem, smallest, budget), _parts(smallest.memory))


def kernels(problem: Problem) -> list[Problem]:
    """The problem, and the one without the types of blocks whose kernels want scratch, if it has others.

    What a file without them saves (tiled) is in that one's `coefficients` only.
    """
    scratch = {spec.name for spec in problem.specs if spec.layer is not None}
    sensitivities = {
        name: {kind: x for kind, x in table.items() if not (name in scratch and storage_type(kind).tiled)}
        for name, table in problem.sensitivities.items()
    }
    held = (
        any(storage_type(kind).holds(s.columns) for kind in sensitivities[s.name])
        for s in problem.specs
        if s.linear
    )
    return (
        [problem, replace(problem, sensitivities=sensitivities)]
        if sensitivities != problem.sensitivities and all(held)
        else [problem]
    )


def _quickest(
    programs: Sequence[tuple[Problem, Tables]], seconds_per_token: Cost, budget: int, best: Decision
) -> Decision:
    """The decision of least time per token among those not much worse than the best."""
    most = max(best.predicted_kl * (1 + FASTER), UNFELT)
    decisions = (_decided(*program, budget, most) for program in programs)
    quick = (decision for decision in decisions if decision and decision.predicted_kl <= most * (1 + 1e-6))
    problem = programs[0][0]
    return min([best, *quick], key=lambda d: problem.spent(seconds_per_token, d.types, d.runtime))


def _decided(problem: Problem, tables: Tables, budget: int, most: float | None = None) -> Decision | None:
    """The best decision of the program, or the quickest of at most that predicted KL; None where it finds
    none.
    """
    room = budget
    for _ in range(4):
        chosen = _solve(tables, room, most)
        if chosen is None:
            break
        decision = _decision(problem, tables, chosen)
        excess = decision.memory.total - budget
        if excess <= 0:
            return decision
        room -= excess  # the work buffer depends on the types a little: ask again for that much less
    return None


def smallest_decision(problem: Problem) -> Decision:
    """The least memory that any decision needs, whatever the predicted KL."""
    return min((_smallest(each) for each in kernels(problem)), key=lambda d: d.memory.total)


def _smallest(problem: Problem) -> Decision:
    tables = coefficients(problem)
    chosen = np.zeros(len(tables.options) + len(tables.runtimes))
    for number, group in enumerate(tables.groups):
        own = [i for i, (g, _) in enumerate(tables.options) if g == number]
        chosen[min(own, key=lambda i: tables.size[i])] = len(group)
    chosen[len(tables.options) + int(np.argmin(tables.fixed + 1e-3 * tables.kv_kl))] = 1
    return _decision(problem, tables, chosen)


def least_cost(problem: Problem, budget: int, cost: Cost) -> float:
    """The least of a cost that fits the budget, whatever the predicted KL; infinite where nothing fits."""
    return min(_least_cost(each, budget, cost) for each in kernels(problem))


def _least_cost(problem: Problem, budget: int, cost: Cost) -> float:
    free = replace(problem, limits=(Limit("", cost, 1.0, ""),))
    tables = coefficients(free)
    program = Program(replace(tables, costs=tables.costs[:0]), budget)
    # In shares of the largest, since the solver takes differences below 1e-6 for none.
    shares = np.concatenate([tables.costs[0], [0.0]]) / max(float(tables.costs.max()), 1e-300)
    solution = program.solve(shares)
    if solution is None:
        return float("inf")
    decision = _decision(free, tables, solution)
    return problem.spent(cost, decision.types, decision.runtime)


def coefficients(problem: Problem) -> Tables:
    """Make the coefficients of the integer program."""
    groups, costs = _groups(problem), problem.costs
    read = {spec.name for spec in multiplied(problem.specs)}
    options, size, copy, predicted_kl = [], [], [], []
    spent: list[list[float]] = [[] for _ in costs]
    for number, group in enumerate(groups):
        spec = group[0]
        for name in _efficient(spec, problem.sensitivities[spec.name], costs):
            options.append((number, name))
            size.append(_stored(spec, name) * problem.constants.weights_factor)
            packed = spec.name in read and storage_type(name).repackable(spec.shape[0], spec.columns)
            copy.append(size[-1] * problem.constants.repacked_factor if packed else 0.0)
            predicted_kl.append(problem.sensitivities[spec.name][name])
            for row, cost in zip(spent, costs, strict=True):
                row.append(tensor_bytes(spec, name) * cost.per_byte[name] if spec.name in read else 0.0)
    plain = {s.name: _typical(s, problem.sensitivities[s.name]) for s in problem.specs if s.linear}
    runtimes, fixed, kv_kl, slowness = [], [], [], []
    vectors = [cost.vectors(problem.specs) for cost in costs]
    for runtime, harm in efficient_runtimes(problem, plain):
        parts = problem.memory(plain, runtime)
        for repack in (False, True):
            runtimes.append(runtime.model_copy(update={"repack": repack}))
            fixed.append(float(parts.total - parts.weights))
            kv_kl.append(harm)
            slowness.append(prefill_slowness(runtime.n_ubatch, repack))
            for row, cost, always in zip(spent, costs, vectors, strict=True):
                row.append(always + cost.elsewhere(problem.shape, runtime))
    always_stored = sum(_stored(spec, "F32") for spec in problem.specs if not spec.linear)
    shares = [np.array(row) / limit.most for row, limit in zip(spent, problem.limits, strict=False)]
    return Tables(
        groups=groups,
        options=options,
        size=np.array(size),
        copy=np.array(copy),
        predicted_kl=np.array(predicted_kl),
        runtimes=runtimes,
        fixed=np.array(fixed) + always_stored * problem.constants.weights_factor,
        kv_kl=np.array(kv_kl),
        slowness=np.array(slowness),
        costs=np.array(shares).reshape(len(shares), len(options) + len(runtimes)),
        seconds=np.array(spent[-1]) if problem.seconds_per_token else None,
    )


def _typical(spec: TensorSpec, sensitivities: Mapping[str, float]) -> str:
    """A type whose kernels need what those of most others do."""
    kind = "Q4_K" if any(storage_type(kind).tiled for kind in sensitivities) else "Q8_0"
    return kind if storage_type(kind).holds(spec.columns) else "F16"


def prefill_slowness(n_ubatch: int, repack: bool) -> float:
    """Time of a prefill against n_ubatch 512 with interleaved kernels."""
    batch = float(np.interp(np.log2(n_ubatch), [np.log2(n) for n in SLOWNESS], list(SLOWNESS.values())))
    return batch + (0.0 if repack else UNPACKED)


def _stored(spec: TensorSpec, type_name: str) -> int:
    return -(-tensor_bytes(spec, type_name) // ALIGNMENT) * ALIGNMENT


def _groups(problem: Problem) -> list[list[TensorSpec]]:
    """Linear tensors that cannot be told apart; where sensitivities were measured, every one is alone."""
    groups: dict[tuple[object, ...], list[TensorSpec]] = {}
    for spec in problem.specs:
        if spec.linear:
            sensitivities = tuple(sorted(problem.sensitivities[spec.name].items()))
            groups.setdefault((spec.shape, spec.layer is None, sensitivities), []).append(spec)
    return list(groups.values())


def efficient_runtimes(problem: Problem, types: Mapping[str, str]) -> list[tuple[Runtime, float]]:
    """(how to run, KV predicted KL), without cache types that others beat in both bytes and predicted KL."""
    priced = [
        (runtime, harm)
        for runtime in memory_model.possible_runtimes(problem.shape, problem.context, problem.threads)
        if (harm := problem.kv_kl(runtime)) is not None
    ]
    batch = priced[0][0].n_ubatch  # the order of cache types is the same for every batch
    sizes: dict[tuple[str, str], tuple[float, ...]] = {}
    for runtime, harm in priced:
        if runtime.n_ubatch == batch:
            spent = [cost.elsewhere(problem.shape, runtime) for cost in problem.costs]
            total = problem.memory(types, runtime).total
            sizes[runtime.type_k, runtime.type_v] = (total, harm, *spent)
    kept = _not_beaten(sizes)
    return [(runtime, harm) for runtime, harm in priced if (runtime.type_k, runtime.type_v) in kept]


def _efficient(spec: TensorSpec, sensitivities: Mapping[str, float], costs: Sequence[Cost] = ()) -> list[str]:
    """Types that no other one beats in bytes, predicted KL and every cost, by bytes."""
    amounts = {
        name: (
            storage_type(name).bits_per_weight,
            sensitivities[name],
            *(storage_type(name).bits_per_weight * cost.per_byte[name] for cost in costs),
        )
        for name in sorted(sensitivities, key=lambda n: (storage_type(n).bits_per_weight, sensitivities[n]))
        if storage_type(name).holds(spec.columns)
    }
    return list(_not_beaten(amounts))


def _not_beaten(amounts: Mapping[_Key, tuple[float, ...]]) -> dict[_Key, tuple[float, ...]]:
    """Those that no other is as good as in every amount; of equal ones the first."""
    kept: dict[_Key, tuple[float, ...]] = {}
    for key in sorted(amounts, key=lambda k: amounts[k]):
        if not any(all(a <= b for a, b in zip(other, amounts[key], strict=True)) for other in kept.values()):
            kept[key] = amounts[key]
    return kept


def _solve(tables: Tables, budget: float, most: float | None) -> np.ndarray | None:
    """How many tensors take each option, then 0/1 for each runtime; None where nothing fits.

    most: predicted KL, nats per token, up to which quicker is better; None: hardly more than the least.
    """
    program = Program(tables, budget)
    best = program.solve(program.harm)
    if best is None:
        return None
    # The small terms keep predicted KL low among equally quick ways.
    if most is None or tables.seconds is None:
        enough = float(program.harm @ best) * (1 + SLACK)
        quick = np.concatenate([np.zeros(len(tables.options)), tables.slowness, [0.0]])
    else:
        enough = most / program.scale
        quick = np.concatenate([tables.seconds, [0.0]])
        quick = quick / max(float(quick @ best), 1e-12)
        quick[len(tables.options) : -1] += 1e-2 * tables.slowness
    quick = quick + 1e-3 * program.harm / max(enough, 1e-12)
    quicker = program.solve(quick, enough=program.harm / max(enough, 1e-12))
    return best if quicker is None else quicker


def _decision(problem: Problem, tables: Tables, chosen: np.ndarray) -> Decision:
    count = len(tables.options)
    left = [list(group) for group in tables.groups]
    types = {}
    # The options of a group stand by bytes: the first of its layers take the smaller types.
    for (group, name), tensors in zip(tables.options, chosen[:count], strict=True):
        for _ in range(round(tensors)):
            types[left[group].pop(0).name] = name
    number = int(np.argmax(chosen[count : count + len(tables.runtimes)]))
    predicted_kl = sum(problem.sensitivities[name][kind] for name, kind in types.items()) + float(
        tables.kv_kl[number]
    )
    runtime = tables.runtimes[number]
    return Decision(types, runtime, problem.memory(types, runtime), predicted_kl)


def _parts(memory: MemoryParts) -> dict[str, int]:
    return {**memory.model_dump(), "total": memory.total}


def _unreachable(problem: Problem, smallest: Decision, budget: int) -> str:
    """One line: what is needed, and what would help."""
    memory = smallest.memory
    parts = ", ".join(f"{name} {megabytes(size)}" for name, size in memory.model_dump().items() if size)
    helps = []
    if memory.kv > 0.05 * memory.total and problem.context > 256:
        helps.append("a shorter --context")
    helps += ["a larger --share or --memory", "a smaller sibling of this model"]
    return (
        f"nothing fits {megabytes(budget)} MB at a context of {problem.context}: the smallest needs"
        f" {megabytes(memory.total)} MB ({parts}); what would help: {', '.join(helps)}"
    )


def _too_slow(problem: Problem, budget: int) -> str:
    """One line: what was asked, and the best that can be had."""
    within = f"within {megabytes(budget)} MB"
    for limit in problem.limits:
        best = least_cost(problem, budget, limit.cost)
        if best > limit.most:
            return (
                f"no plan {within} has {limit.requirement}: the best that can be had is"
                f" {limit.described(best)}; what would help: {limit.help}, or a smaller sibling of this model"
            )
    together = " and ".join(limit.requirement for limit in problem.limits)
    return f"no plan {within} has {together} at once, though each can be had alone; loosen one of them"
