"""What a person would take otherwise, measured beside ours: stock recipes that fit, and plain Q4_0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tenth.core.records import Candidate, MemoryParts
from tenth.pipeline.analysis import Analysis
from tenth.pipeline.steps import Stages
from tenth.planning.plan import Decision, Problem
from tenth.quantization import default_sensitivity, recipes

# Of all sizes, and made well enough without an importance matrix.
PLAIN_RECIPES = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")


def baselines(
    analysis: Analysis, problem: Problem, ours: Decision, folder: Path, count: int
) -> list[Candidate]:
    """Stock recipes of the model, run as ours is; the budget is that of the analysis.

    Of the recipes that fit, the `count` with the least predicted KL are made and measured; none of them and
    no Q4_0 where it is 0. problem: with the constants that the proof corrected.
    """
    if not count:
        return []
    budget = analysis.question.memory
    stages = analysis.stages
    stock = {name: stages.stock(name) for name in recipes.BASES if name not in ("F16", "Q4_0")}
    known = set().union(*problem.sensitivities.values())

    def possible(types: Mapping[str, str]) -> bool:
        """Whether every tensor's type holds its largest weight: those that do not are not measured."""
        return not any(
            kind in known and kind not in problem.sensitivities[tensor] for tensor, kind in types.items()
        )

    plain = stages.stock("Q4_0", importance=False)
    if left := [name for name, types in {**stock, "Q4_0": plain}.items() if not possible(types)]:
        stages.reporter.say(
            f"not compared with, since a weight is too large for their types: {', '.join(left)}"
        )
    fitting = [
        name
        for name, types in stock.items()
        if problem.memory(types, ours.runtime).total <= budget and possible(types)
    ]

    def predicted_kl(name: str) -> float:
        return sum(problem.sensitivities[tensor][kind] for tensor, kind in stock[name].items())

    def measured(name: str, types: Mapping[str, str], calibration: Path | None) -> Candidate:
        recipe = _Recipe(name, types, problem.memory(types, ours.runtime), budget, calibration)
        return _measured(recipe, stages, analysis.reference, ours, folder)

    best = sorted(fitting, key=predicted_kl)[:count]
    found = [measured(name, stock[name], analysis.calibration) for name in best]
    return [*found, measured("Q4_0", plain, None)] if possible(plain) else found


def keeping_all_tokens(analysis: Analysis, problem: Problem, ours: Decision, folder: Path) -> list[Candidate]:
    """A stock recipe of the model that was given, with all of its tokens, where some were removed.

    It is the best that fits, by the sensitivities of another model (nothing is measured of this one), else
    the smallest; made without an importance matrix, of recipes that need none. It is judged by the given
    model's own answers. problem: of the file that was made, with the constants that its proof corrected.
    """
    given, budget = analysis.given, analysis.question.memory
    if given is None:
        return []
    checkpoint, linear = given.checkpoint, default_sensitivity.sensitivities(given.checkpoint.specs())
    whole = replace(
        problem, shape=checkpoint.shape, specs=checkpoint.specs(), sensitivities=linear, merges=given.merges
    )
    stock = {name: given.stages.stock(name, importance=False) for name in PLAIN_RECIPES}
    sizes = {name: whole.memory(types, ours.runtime) for name, types in stock.items()}
    fitting = [name for name, memory in sizes.items() if memory.total <= budget]

    def predicted_kl(name: str) -> float:
        return sum(linear[tensor][kind] for tensor, kind in stock[name].items())

    name = min(fitting, key=predicted_kl) if fitting else min(sizes, key=lambda name: sizes[name].total)
    recipe = _Recipe(f"{name}, all tokens", stock[name], sizes[name], budget)
    made = _measured(recipe, given.stages, given.reference, ours, folder)
    return [made.model_copy(update={"all_tokens": True})]


@dataclass(frozen=True)
class _Recipe:
    """A stock recipe of a model: what it is called, what it holds, and what may be held."""

    name: str
    types: Mapping[str, str]
    memory: MemoryParts
    budget: int  # bytes
    calibration: Path | None = None  # of the importance matrix; None for none


def _measured(recipe: _Recipe, stages: Stages, reference: Path, ours: Decision, folder: Path) -> Candidate:
    """Make the file, measure it with our file's settings against a reference, and remove it."""
    path = folder / "baseline.gguf"
    stages.write(recipe.types, recipe.calibration, path, f"store {recipe.name}")
    try:
        readings = stages.measure(path, recipe.name, reference, ours.runtime)
        return Candidate(
            name=recipe.name,
            file_bytes=path.stat().st_size,
            fits=recipe.memory.total <= recipe.budget,
            memory=recipe.memory,
            readings=readings,
        )
    finally:
        path.unlink()
