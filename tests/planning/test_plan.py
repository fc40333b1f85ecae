"""The integer program: as good as trying everything, never above the budget, and clear where nothing fits."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.naive_plan import every_decision

from tenth.core.errors import BudgetError
from tenth.core.format import megabytes
from tenth.core.ggml import storage_type
from tenth.core.records import Runtime, TensorSpec
from tenth.models import arch
from tenth.models.shape import ModelShape
from tenth.planning import memory
from tenth.planning.plan import SLACK, SLOWNESS, Problem, decide, smallest_decision
from tenth.quantization.default_sensitivity import kv, sensitivities

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 2048,
}
SHAPE = ModelShape("llama", 2048, 512, (1024,), (8,), (8,), (64,), (0,), False)
ROWS = 300 * 1024 * 7 // 8  # bytes by which rows of activations are larger for F16 than for other types
BITS = {
    "IQ2_XXS": 2.06,
    "IQ3_S": 3.44,
    "IQ4_NL": 4.5,
    "Q4_K": 4.5,
    "Q4_0": 4.5,
    "Q5_0": 5.5,
    "Q6_K": 6.56,
    "F16": 16.0,
}


def matrix(name: str, rows: int, columns: int, role: str = "ffn_up") -> TensorSpec:
    layer = None if role == "token_embd" else 0
    return TensorSpec(name, f"hf.{name}", (rows, columns), role, layer, linear=True)


def predicted_kl(problem: Problem, types: dict[str, str], runtime: Runtime) -> float:
    return (problem.kv_kl(runtime) or 0.0) + sum(
        problem.sensitivities[name][kind] for name, kind in types.items()
    )


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Three matrices with up to four types each, two batch sizes, up to four pairs of cache types."""
    specs = [TensorSpec("norm", "hf.norm", (512,), "attn_norm", 0)]
    table = {}
    for i in range(3):
        columns, rows = draw(st.sampled_from([512, 1024, 96])), draw(st.sampled_from([256, 1000, 2048, 4096]))
        role = "token_embd" if i == 0 else "ffn_up"
        spec = matrix("token_embd.weight" if i == 0 else f"blk.0.m{i}.weight", rows, columns, role)
        specs.append(spec)
        kinds = draw(st.lists(st.sampled_from(sorted(BITS)), min_size=1, max_size=4, unique=True))
        weight = draw(st.floats(1e-3, 1.0))
        noise = draw(st.lists(st.floats(0.5, 2.0), min_size=len(kinds), max_size=len(kinds)))
        table[spec.name] = {
            kind: weight * 4.0 ** -BITS[kind] * n
            for kind, n in zip([*kinds, "F16"], [*noise, 1.0], strict=True)
        }
    cache = {
        f"{side} q8_0": draw(st.floats(1e-6, 1e-2)) for side in draw(st.sampled_from(["", "k", "v", "kv"]))
    }
    return Problem(
        SHAPE, specs, table, cache, draw(st.sampled_from([16, 300])), memory.Constants(), merges=0, threads=1
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(problem=problems(), place=st.floats(0.0, 1.05))
def test_as_good_as_trying_everything(problem: Problem, place: float) -> None:
    """Up to the rows of activations, whose size the program takes as that of most types."""
    everything = list(every_decision(problem))
    totals = [d.memory.total for d in everything]
    budget = int(min(totals) + place * (max(totals) - min(totals))) + ROWS
    found = decide(problem, budget)
    assert found.memory.total <= budget
    assert found.memory == problem.memory(found.types, found.runtime)
    assert found.predicted_kl == pytest.approx(predicted_kl(problem, found.types, found.runtime))
    least = min(d.predicted_kl for d in everything if d.memory.total <= budget - ROWS)
    assert found.predicted_kl <= least * (1 + SLACK + 1e-3) + 1e-12


@settings(max_examples=25, deadline=None, derandomize=True)
@given(problem=problems())
def test_smallest_budget_is_the_smallest(problem: Problem) -> None:
    smallest = smallest_decision(problem)
    total = smallest.memory.total
    assert total <= min(d.memory.total for d in every_decision(problem)) + ROWS
    assert smallest.predicted_kl == pytest.approx(predicted_kl(problem, smallest.types, smallest.runtime))
    assert decide(problem, total).memory.total <= total
    with pytest.raises(BudgetError) as caught:
        decide(problem, total - ROWS - 1)
    assert caught.value.smallest["total"] == total


def llama(layers: int = 6, context: int = 512, **changes: Any) -> Problem:
    shape = {"num_hidden_layers": layers, "num_key_value_heads": 4, "vocab_size": 8192, **changes}
    config, family = arch.load({**CONFIG, **shape, "tie_word_embeddings": True})
    specs = family.specs(config)
    return Problem(
        family.shape(config),
        specs,
        sensitivities(specs),
        kv(),
        context,
        memory.Constants(),
        merges=0,
        threads=2,
    )


def test_one_byte_less_than_the_smallest_is_refused_part_by_part() -> None:
    problem = llama(context=2048)
    smallest = smallest_decision(problem).memory
    assert decide(problem, smallest.total).memory.total == smallest.total
    with pytest.raises(BudgetError) as caught:
        decide(problem, smallest.total - 1)
    assert caught.value.smallest == {**smallest.model_dump(), "total": smallest.total}
    assert sum(smallest.model_dump().values()) == smallest.total
    message = str(caught.value)
    assert "\n" not in message
    for said in (
        "context of 2048",
        "weights",
        "base",
        f"{megabytes(smallest.total)} MB",
        "--share",
        "sibling",
    ):
        assert said in message


def test_more_memory_is_never_worse() -> None:
    problem = llama()
    low = smallest_decision(problem).memory.total
    budgets = [int(b) for b in np.geomspace(low, 2.6 * low, 14)]
    decisions = [decide(problem, budget) for budget in budgets]
    for budget, before, after in zip(budgets[1:], decisions[:-1], decisions[1:], strict=True):
        assert after.memory.total <= budget
        assert after.predicted_kl <= before.predicted_kl * (1 + SLACK + 1e-3)
    assert decisions[-1].predicted_kl < 0.01 * decisions[0].predicted_kl
    assert len({tuple(sorted(d.types.items())) for d in decisions}) > 10


def test_plenty_takes_the_best_types_and_the_quickest_way() -> None:
    problem = llama()
    found = decide(problem, 10**9)
    best = {name: min(table.values()) for name, table in problem.sensitivities.items()}
    assert found.predicted_kl <= sum(best.values()) * (1 + SLACK + 1e-3)
    assert found.runtime.n_ubatch == min(SLOWNESS, key=lambda batch: SLOWNESS[batch])
    assert (found.runtime.type_k, found.runtime.type_v) == ("f16", "f16")


def test_rows_that_do_not_divide_get_types_that_hold_them() -> None:
    problem = llama(hidden_size=96, intermediate_size=224, num_attention_heads=3, num_key_value_heads=3)
    low = smallest_decision(problem).memory.total
    for budget in (low, int(1.02 * low), 10**9):
        found = decide(problem, budget)
        assert set(found.types) == {spec.name for spec in problem.specs if spec.linear}
        assert set(found.types.values()) <= {
            "IQ4_NL",
            "Q4_0",
            "Q4_1",
            "Q5_0",
            "Q5_1",
            "Q8_0",
            "MXFP4",
            "F16",
            "BF16",
        }


@pytest.mark.parametrize(("bits", "blocks"), [(3, {256}), (6, {32})])
def test_types_whose_kernels_want_scratch_are_used_where_that_pays(bits: int, blocks: set[int]) -> None:
    """A megabyte of scratch for two threads is half a bit of every weight here."""
    problem = llama()
    smallest = smallest_decision(problem).memory
    weights = sum(spec.count for spec in problem.specs if spec.linear)
    found = decide(problem, smallest.total - smallest.weights + weights * bits // 8)
    inner = {spec.name for spec in problem.specs if spec.layer is not None}
    assert {storage_type(kind).weights for name, kind in found.types.items() if name in inner} == blocks


def test_every_tensor_gets_the_cheaper_of_equal_bits_and_no_type_that_was_not_priced() -> None:
    problem = llama(layers=1)
    table = {name: {"Q4_0": 1.0, "Q4_K": 0.5, "Q5_0": 0.7} for name in problem.sensitivities}
    found = decide(replace(problem, sensitivities=table), 10**8)
    assert set(found.types.values()) == {"Q4_K"}


def test_unmeasured_cache_types_are_not_used() -> None:
    problem = replace(llama(context=4096), kv={"v q8_0": 1e-9})
    for budget in (smallest_decision(problem).memory.total, 10**9):
        found = decide(problem, budget)
        assert found.runtime.type_k == "f16"
        assert found.runtime.type_v in ("f16", "q8_0")
    assert problem.kv_kl(found.runtime.model_copy(update={"type_k": "q4_0"})) is None


def test_cache_types_are_weighed_against_bits() -> None:
    """Harmless small caches give way to the weights; harmful ones take from them."""
    harmless, harmful = (
        replace(
            llama(context=8192), kv={f"{side} {kind}": harm for side in "kv" for kind in ("q8_0", "q4_0")}
        )
        for harm in (1e-9, 1e3)
    )
    budget = smallest_decision(replace(harmful, kv={})).memory.total
    small, large = decide(harmless, budget), decide(harmful, budget)
    assert small.runtime.type_k == small.runtime.type_v == "q4_0"
    assert large.runtime.type_k == large.runtime.type_v == "f16"
    assert small.memory.kv < 0.4 * large.memory.kv
    assert small.memory.weights > large.memory.weights


def test_repacked_copy_counts_only_when_on() -> None:
    packs = [kind for kind in ("Q4_0", "Q4_K", "IQ4_NL") if storage_type(kind).repackable(512, 512)]
    if not packs:
        pytest.skip("this processor has no interleaved kernels")
    problem = llama()
    problem = replace(problem, sensitivities={name: {packs[0]: 1e-4} for name in problem.sensitivities})
    off = problem.memory(dict.fromkeys(problem.sensitivities, packs[0]), decide(problem, 10**9).runtime)
    assert off.repacked > 0
    one = off.total - off.repacked
    plenty, tight = decide(problem, off.total), decide(problem, off.total - 1)
    assert plenty.runtime.repack
    assert plenty.memory.repacked == off.repacked
    assert not tight.runtime.repack or tight.memory.total < off.total
    least = decide(problem, one)
    assert not least.runtime.repack
    assert least.memory.repacked == 0


def test_types_without_interleaved_kernels_are_not_called_repacked() -> None:
    problem = llama()
    found = decide(
        replace(problem, sensitivities={name: {"F16": 1e-4} for name in problem.sensitivities}), 10**9
    )
    assert not found.runtime.repack
    assert found.memory.repacked == 0


def test_corrected_constants_change_the_decision() -> None:
    problem = llama()
    budget = int(1.5 * smallest_decision(problem).memory.total)
    heavier = replace(problem, constants=memory.Constants(weights_factor=1.2))
    plain, careful = decide(problem, budget), decide(heavier, budget)
    assert careful.memory.total <= budget
    assert careful.predicted_kl > plain.predicted_kl
    assert heavier.memory(plain.types, plain.runtime).total > budget


def test_what_the_solver_prints_is_nowhere(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """HiGHS does now and then, past Python; stdout carries JSON."""
    real = scipy.optimize.milp

    def talking(*args: Any, **more: Any) -> Any:
        ctypes.CDLL(None).puts(b"a remark")
        return real(*args, **more)

    monkeypatch.setattr(scipy.optimize, "milp", talking)
    problem = llama()
    decide(problem, 2 * smallest_decision(problem).memory.total)
    print("the answer")
    said = capfd.readouterr()
    assert said.out == "the answer\n"
    assert "a remark" not in said.err
