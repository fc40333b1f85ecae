"""The files of one model that may be the answer: the whole model in fewer bits, and a smaller model in more.

Which one is better is measured (pipeline/fit.py). A smaller model is a folder like any other: it is analysed
and stored as the original is, and judged by the original's answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tenth.core.errors import BudgetError
from tenth.core.records import Candidate, Proof
from tenth.pipeline.analysis import Analysis, analyse
from tenth.pipeline.effort import WORTH_TRAINING
from tenth.pipeline.options import Making, Removal, Target
from tenth.pipeline.smaller import smaller_model
from tenth.pipeline.verify import MemoryCorrections, Solved, prove_until_it_fits
from tenth.planning.plan import Decision, Problem

WORTH_REMOVING = 0.05  # nats of predicted KL of the whole model; where there is less, nothing is removed


@dataclass(frozen=True)
class Fitted:
    """A file that was seen to fit."""

    analysis: Analysis
    gguf: Path
    problem: Problem
    decision: Decision
    proof: Proof
    candidate: Candidate

    @property
    def bits_per_byte(self) -> float:
        """Of the held-out text: what models of different vocabularies are compared by."""
        value = self.candidate.value("bits_per_byte")
        assert value is not None
        return value


@dataclass(frozen=True)
class Search:
    """Where the files of a model are looked for."""

    target: Target
    making: Making
    removal: Removal
    folder: Path  # for the files
    several: bool = False  # models: each file is named with its own


def candidates(search: Search, analysis: Analysis) -> Iterator[Fitted]:
    """The file of bits alone, where there is one, and that of a smaller model, where that may be better.

    BudgetError where neither is possible.
    """
    whose = f"{analysis.checkpoint.name}, " if search.several else ""
    whole_kl, refused, count = float("inf"), None, 0
    try:
        first = Solved.of(analysis.problem, analysis.question)
        whole_kl = first.decision.predicted_kl
        yield store(search.making, analysis, search.folder / "bits.gguf", f"{whose}bits alone", first)
        count += 1
    except BudgetError as error:
        refused = error
    if whole_kl <= WORTH_REMOVING:
        if search.removal.heal and analysis.structure is None:
            analysis.stages.reporter.say(
                "the predicted KL of bits alone is small: nothing is removed, so nothing is healed"
            )
    elif search.removal.structure:
        try:
            fitted = _smaller(search, analysis, whole_kl, f"{whose}a smaller model")
            if fitted is not None:
                yield fitted
                count += 1
        except BudgetError as error:
            refused = error
    if refused and not count:
        raise refused


def _smaller(search: Search, analysis: Analysis, whole_kl: float, name: str) -> Fitted | None:
    """The file of a smaller model; None where none promises to be better."""
    smaller = smaller_model(analysis, search.making, search.removal, whole_kl)
    if smaller is None:
        return None
    checkpoint, structure = smaller
    workshop = analysis.stages.workshop
    made = analyse(checkpoint, search.target, search.making, workshop, structure, analysis)
    return store(search.making, made, search.folder / "smaller.gguf", name)


def store(making: Making, analysis: Analysis, gguf: Path, name: str, first: Solved | None = None) -> Fitted:
    """Store the best that fits; first: the answer to the uncorrected question, where it is known.

    BudgetError where nothing fits.
    """
    stages, effort = analysis.stages, making.tried
    corrections = MemoryCorrections(stages.store.root, stages.model_hash, stages.reporter.say)

    def write(decision: Decision, training: bool = False) -> None:
        rounded = stages.rounded(analysis.texts, analysis.calibration, decision.types, effort)
        if training:
            rounded = stages.trained(analysis.texts, rounded, decision.types, effort, making.seed)
        stages.write(decision.types, analysis.calibration, gguf, "store the model", rounded)

    prove = partial(prove_until_it_fits, stages, analysis.problem, analysis.question, corrections, gguf)
    solved, proof = prove(write, first)
    if effort.steps and making.quantise and solved.decision.predicted_kl > WORTH_TRAINING:
        solved, proof = prove(partial(write, training=True), solved)
    decision = solved.decision
    readings = stages.measure(gguf, name, analysis.reference, decision.runtime)
    candidate = Candidate(
        name=name, file_bytes=gguf.stat().st_size, fits=proof.fits, memory=decision.memory, readings=readings
    )
    return Fitted(analysis, gguf, solved.problem, decision, proof, candidate)
