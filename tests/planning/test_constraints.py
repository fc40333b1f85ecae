"""Limits of speed, energy and battery: as good as trying everything, honest about what cannot be."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.naive_plan import every_decision
from test_plan import ROWS, llama, problems

from tenth.core.errors import BudgetError, InputError
from tenth.core.format import megabytes
from tenth.core.records import Requirements
from tenth.devices import catalogue, speed
from tenth.planning import forecast
from tenth.planning.constraints import Cost, Limit
from tenth.planning.plan import FASTER, SLACK, UNFELT, Problem, decide, least_cost, smallest_decision
from tenth.planning.requirements import with_requirements
from tenth.planning.tradeoff import binding, curves

S23 = catalogue.load("galaxy-s23")
PACE = Cost(speed.rates(S23).decode, 0.0, 8)


def spent(problem: Problem, decision: Any) -> float:
    return problem.spent(PACE, decision.types, decision.runtime)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(problem=problems(), memory=st.floats(0.1, 1.0), place=st.floats(0.05, 1.0))
def test_as_good_as_trying_everything(problem: Problem, memory: float, place: float) -> None:
    everything = list(every_decision(problem))
    totals = [d.memory.total for d in everything]
    budget = int(min(totals) + memory * (max(totals) - min(totals))) + ROWS
    fitting = [d for d in everything if d.memory.total <= budget - ROWS]
    times = [spent(problem, d) for d in fitting]
    most = (min(times) + place * (max(times) - min(times))) * (1 + 2e-6)
    limited = replace(problem, limits=(Limit("speed", PACE, most, ""),))
    found = decide(limited, budget)
    assert found.memory.total <= budget
    assert spent(problem, found) <= most * (1 + 1e-6)
    least = min(d.predicted_kl for d, each in zip(fitting, times, strict=True) if each <= most * (1 - 1e-6))
    assert found.predicted_kl <= least * (1 + SLACK + 1e-3) + 1e-12
    assert least_cost(problem, budget, PACE) <= min(times) * (1 + 1e-4)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(problem=problems(), memory=st.floats(0.1, 1.0))
def test_preferring_speed_is_as_fast_as_trying_everything(problem: Problem, memory: float) -> None:
    everything = list(every_decision(problem))
    totals = [d.memory.total for d in everything]
    budget = int(min(totals) + memory * (max(totals) - min(totals))) + ROWS
    fitting = [d for d in everything if d.memory.total <= budget - ROWS]
    found = decide(replace(problem, seconds_per_token=PACE, prefer="speed"), budget)
    least = min(d.predicted_kl for d in everything if d.memory.total <= budget)
    assert found.predicted_kl <= max(decide(problem, budget).predicted_kl * (1 + FASTER), UNFELT) * 1.001
    enough = max(least * (1 + FASTER), UNFELT)
    quickest = min((spent(problem, d) for d in fitting if d.predicted_kl <= enough * 0.999), default=np.inf)
    assert (
        spent(problem, found) <= quickest * 1.05
    )  # a twentieth may go to a better batch and less predicted KL


def test_a_plan_for_a_cpu_phone_does_not_fall_for_small_but_slow_types() -> None:
    problem = llama(layers=6)
    budget = int(1.3 * smallest_decision(problem).memory.total)
    plain = decide(problem, budget)
    asked = 0.5 * (spent(problem, plain) + least_cost(problem, budget, PACE))
    quick = decide(replace(problem, limits=(Limit("speed", PACE, asked, ""),)), budget)

    def slow(decision: Any) -> int:
        codebooks = {name for name, kind in decision.types.items() if kind.startswith("IQ")}
        return sum(spec.count for spec in problem.specs if spec.name in codebooks)

    assert spent(problem, quick) <= asked < spent(problem, plain)
    assert quick.predicted_kl > plain.predicted_kl
    assert slow(quick) < slow(plain)


def test_what_binds() -> None:
    problem = llama(layers=6)
    small = smallest_decision(problem).memory.total
    plenty, fast, slow = 10**9, Limit("speed", PACE, 0.0, ""), Limit("speed", PACE, 1e9, "")
    fast = replace(fast, most=1.5 * least_cost(problem, plenty, PACE))
    assert binding(problem, 2 * small) == ["memory"]
    assert binding(problem, plenty) == []
    assert binding(replace(problem, limits=(slow,)), 2 * small) == ["memory"]
    assert binding(replace(problem, limits=(fast,)), plenty) == ["speed"]
    both = replace(problem, limits=(slow, replace(fast, name="energy")))
    assert binding(both, plenty) == ["energy"]


def test_what_cannot_be_is_one_line_with_the_best_that_can() -> None:
    problem = llama(layers=6)
    budget = 2 * smallest_decision(problem).memory.total
    best = 1 / least_cost(with_requirements(problem, S23, Requirements()), budget, PACE_OF(problem))
    with pytest.raises(BudgetError) as caught:
        decide(with_requirements(problem, S23, Requirements(min_speed=2 * best)), budget)
    said = str(caught.value)
    assert f"no plan within {megabytes(budget)} MB has {2 * best:g} tokens/s" in said
    assert f"the best that can be had is {best:.3g} tokens/s" in said
    assert "\n" not in said
    decide(with_requirements(problem, S23, Requirements(min_speed=0.99 * best)), budget)
    with pytest.raises(BudgetError, match="J per token: the best that can be had is"):
        decide(with_requirements(problem, S23, Requirements(max_joules=1e-6)), budget)
    with pytest.raises(BudgetError, match="doing nothing takes 1 W, which lasts 14"):
        with_requirements(problem, S23, Requirements(battery_hours=100))
    with pytest.raises(InputError, match="no battery"):
        with_requirements(problem, catalogue.load("n150-mini-pc"), Requirements(battery_hours=1))


def PACE_OF(problem: Problem) -> Cost:  # noqa: N802
    seconds_per_token = with_requirements(problem, S23, Requirements()).seconds_per_token
    assert seconds_per_token is not None
    return seconds_per_token


@pytest.mark.parametrize("device", ["galaxy-s23", "pixel-8", "sa8295p", "iphone-17-pro"])
def test_a_plan_keeps_what_was_asked_by_its_own_estimates(device: str) -> None:
    known = catalogue.load(device)
    problem = llama(layers=6)
    budget = 2 * smallest_decision(problem).memory.total
    free = figures(problem, budget, known, Requirements())
    quickest = 1 / least_cost(
        problem, budget, with_requirements(problem, known, Requirements()).seconds_per_token or PACE
    )
    speed_asked = 0.5 * (free["decode"] + quickest)
    assert (
        figures(problem, budget, known, Requirements(min_speed=speed_asked))["decode"] >= speed_asked * 0.9999
    )
    least = free["joules"] * (0.97 if known.power is None else free["decode"] / speed_asked)
    assert figures(problem, budget, known, Requirements(max_joules=least))["joules"] <= least * 1.0001


@pytest.mark.parametrize(("kind", "words", "factor"), [("Q4_0", "measured", 1.25), ("TQ2_0", "class", 1.7)])
def test_what_is_said_of_a_figure_goes_with_its_range(kind: str, words: str, factor: float) -> None:
    """One tensor of a measured type does not make it a figure of this very device."""
    problem = llama(layers=6)
    small = smallest_decision(problem)
    types = {name: kind if role != "output" else "Q4_0" for name, role in _roles(problem).items()}
    found = forecast.estimates(problem, replace(small, types=types), S23, Requirements())
    decode = next(each for each in found if each.name == "decode")
    assert decode.high / decode.value == pytest.approx(factor)
    assert decode.conditions.endswith(f"{words} bandwidths")
    assert decode.kind == ("predicted" if words == "measured" else "estimated")


def _roles(problem: Problem) -> dict[str, str]:
    return {spec.name: spec.role for spec in problem.specs if spec.linear}


def test_hours_of_battery_are_kept() -> None:
    problem = llama(layers=6)
    budget = 2 * smallest_decision(problem).memory.total
    free = figures(problem, budget, S23, Requirements(min_speed=20))["battery"]
    quick = figures(problem, budget, S23, Requirements(min_speed=20, battery_hours=1.002 * free))["battery"]
    assert quick >= 1.0019 * free


def figures(problem: Problem, budget: int, device: Any, requirements: Requirements) -> dict[str, float]:
    limited = with_requirements(problem, device, requirements)
    found = forecast.forecast(limited, decide(limited, budget), budget, device, requirements)
    return {each.name: each.value for each in found.estimates}


def test_curves_go_from_quality_to_speed_and_more_memory_is_never_worse() -> None:
    problem = llama(layers=6)
    small = smallest_decision(problem).memory.total
    found = curves(problem, [small, int(1.5 * small), 3 * small], (PACE,))
    assert len(found) == 3
    for curve in found:
        kl_by_type, times = [p.predicted_kl for p in curve], [p.spent[0] for p in curve]
        assert all(after >= before * (1 - 1e-6) for before, after in pairwise(kl_by_type))
        assert all(after <= before * (1 + 1e-6) for before, after in pairwise(times))
    for less, more in pairwise(found):
        assert more[0].predicted_kl <= less[0].predicted_kl * 1.001
        assert more[-1].spent[0] <= less[-1].spent[0] * 1.001
    whole = decide(problem, 3 * small)
    assert found[2][0].predicted_kl <= whole.predicted_kl * 1.001
    assert found[2][0].predicted_kl >= whole.predicted_kl / (1 + SLACK) * 0.98
