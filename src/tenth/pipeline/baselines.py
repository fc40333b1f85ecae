"""What a person would take otherwise, measured beside ours: stock recipes that fit, and plain Q4_0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tenth.core.records import Candidate
from tenth.pipeline.analysis import Analysis
from tenth.planning.plan import Decision, Problem
from tenth.quantization import recipes


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
    stock = {name: _types(analysis, name) for name in recipes.BASES if name not in ("F16", "Q4_0")}
    fitting = [name for name, types in stock.items() if problem.memory(types, ours.runtime).total <= budget]

    def predicted_kl(name: str) -> float:
        return sum(problem.sensitivities[tensor][kind] for tensor, kind in stock[name].items())

    def measured(name: str, types: Mapping[str, str], calibration: Path | None) -> Candidate:
        path, memory = folder / "baseline.gguf", problem.memory(types, ours.runtime)
        analysis.stages.write(types, calibration, path, f"store {name}")
        try:
            readings = analysis.stages.measure(path, name, analysis.reference, ours.runtime)
            size, fits = path.stat().st_size, memory.total <= budget
            return Candidate(name=name, file_bytes=size, fits=fits, memory=memory, readings=readings)
        finally:
            path.unlink()

    best = sorted(fitting, key=predicted_kl)[:count]
    plain = _types(analysis, "Q4_0", importance=False)
    return [
        *(measured(name, stock[name], analysis.calibration) for name in best),
        measured("Q4_0", plain, None),
    ]


def _types(analysis: Analysis, recipe: str, importance: bool = True) -> dict[str, str]:
    """The types that llama-quantize would give the model's matrices."""
    queries = analysis.checkpoint.shape.queries_per_kv
    return recipes.types(recipe, analysis.checkpoint.specs(), queries, importance)
