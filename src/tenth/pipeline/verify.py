"""Decide, store, run under the limit; learn from a miss and try again, until the artifact was seen to fit.

What was learnt is kept in the work folder, one file for each model:

    model-<16 hex digits of its hash>.json    {"version": 2, "sha256": ..., "corrections": [...]}

A killed run goes on from its last correction, the same fit again starts with it, and `tenth plan` decides
from the same measurements. Another budget starts from the plain constants, so that what a fit makes does not
depend on which fits were made before it.

Two proofs of one file differ. That this chooses no other file is seen to in four ways: plans keep a margin
(planning/memory.py), so that nearly all fit at the first proof; one that does not is proven again, and the
largest peak counts, which differs less than one; what it teaches is a whole number of steps, which are larger
than the difference; and it is kept, so that no later run asks again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from tenth.core import digests
from tenth.core.errors import NativeError
from tenth.core.format import megabytes
from tenth.core.records import Budget, Proof, Record
from tenth.core.store import write_text
from tenth.pipeline.stage import RESULT
from tenth.pipeline.steps import Stages
from tenth.planning.memory import Constants, corrected
from tenth.planning.plan import Decision, Problem, decide
from tenth.quantization import sensitivity

TOLERANCE = 0.05  # of the predicted peak; beyond it the constants are corrected and the plan is made again
ATTEMPTS = 5
PROOFS = 3  # of a file that does not fit at once
MOST_BYTES = 16 * 1024 * 1024  # of a file of corrections
STEP = 500_000  # bytes, at the least, in which the constants are corrected


class MemoryCorrection(Record):
    """What one fit decides from: the measurements, and the corrections that its proofs taught."""

    memory: int = Field(gt=0)  # of the budget, bytes
    context: int = Field(ge=1)
    threads: int = Field(ge=0)
    merges: int = Field(ge=0)
    sensitivities: str  # names of stages in the work folder
    kv: str
    requirements: str = ""  # of the device, which lead to another plan
    quantised: bool = True  # else every matrix is F16, and no other type is considered
    allowed: int = Field(gt=0)  # bytes that the planner may use: the budget, less what a proof exceeded it by
    constants: Constants = Constants()
    attempt: int = Field(default=1, ge=1)

    def same_question(self, other: MemoryCorrection) -> bool:
        """Whether both are about the same fit."""
        learnt = {"allowed", "constants", "attempt"}
        return self.model_dump(exclude=learnt) == other.model_dump(exclude=learnt)

    def after(self, decision: Decision, proof: Proof) -> MemoryCorrection:
        """The correction of a proof that failed: corrected constants, or less to spend if it saw no peak."""
        held = decision.memory.held
        step = max(STEP, held // 200)

        def whole(size: int) -> int:
            """Rounded up to steps, so that the noise of a measurement changes no plan."""
            return -(-size // step) * step

        changes: dict[str, object] = {"attempt": self.attempt + 1}
        if proof.parts.get("peak"):
            parts = {**proof.parts, "peak": held + whole(proof.parts["peak"] - held)}
            changes["constants"] = corrected(self.constants, decision.memory, parts)
        else:  # ended by the limit: how much it wanted is not known
            changes["allowed"] = self.allowed - whole(self.memory // 50)
        return self.model_copy(update=changes)


class _File(Record):
    version: Literal[2] = 2
    sha256: str  # of the corrections, as `_digest` has it
    corrections: list[MemoryCorrection]


def _digest(corrections: Sequence[MemoryCorrection]) -> str:
    """SHA-256, hex, of corrections, by which a damaged file of them is told."""
    lines = "\n".join(correction.model_dump_json() for correction in corrections)
    return hashlib.sha256(lines.encode()).hexdigest()


class MemoryCorrections:
    """The corrections of one model in a work folder, which need not exist yet."""

    def __init__(self, work: Path, model_hash: str, say: Callable[[str], None] = lambda _: None) -> None:
        self._work, self._say = work, say
        self.path = work / f"model-{model_hash[:16]}.json"

    def all(self) -> list[MemoryCorrection]:
        """Oldest first; none where the file is absent or damaged; that is said, and it is removed."""
        if not self.path.exists():
            return []
        try:
            if not self.path.is_file() or self.path.stat().st_size > MOST_BYTES:
                raise ValueError
            file = _File.model_validate_json(self.path.read_bytes())
            if file.sha256 != _digest(file.corrections):
                raise ValueError
        except (OSError, ValueError):
            self._say(f"{self.path.name} was damaged: what earlier proofs taught is measured again")
            digests.remove(self.path)
            return []
        return file.corrections

    def resume(self, question: MemoryCorrection) -> MemoryCorrection:
        """What is known about this question already, or the question."""
        return next((correction for correction in self.all() if correction.same_question(question)), question)

    def keep(self, correction: MemoryCorrection) -> None:
        """Remember a correction in the place of an older one on the same question."""
        self._write([*self._others(correction), correction])

    def forget(self, correction: MemoryCorrection) -> None:
        """Remember nothing on this question."""
        self._write(self._others(correction))

    def nearest(self, budget: Budget) -> MemoryCorrection | None:
        """The newest correction on this memory and context, else the newest of all with this memory allowed.

        None where there is none whose measurements are still in the work folder.
        """
        known = [correction for correction in self.all() if correction.quantised]
        usable = [
            correction for correction in known if all(_undamaged(path) for path in self._paths(correction))
        ]
        wanted = (budget.memory, budget.context)
        same = [correction for correction in usable if (correction.memory, correction.context) == wanted]
        if same:
            return same[-1]
        return usable[-1].model_copy(update={"allowed": budget.memory}) if usable else None

    def measurements(
        self, correction: MemoryCorrection
    ) -> tuple[sensitivity.Sensitivities, dict[str, float]]:
        """(sensitivities of matrices, KV-cache sensitivities), nats per token."""
        sensitivities, kv = self._paths(correction)
        return sensitivity.load(sensitivities), json.loads(kv.read_text(encoding="utf-8"))

    def _paths(self, correction: MemoryCorrection) -> tuple[Path, Path]:
        # Names only: a correction is read from a file and must not lead out of the work folder.
        return (
            self._work / Path(correction.sensitivities).name / "sensitivities.jsonl",
            self._work / Path(correction.kv).name / RESULT,
        )

    def _others(self, correction: MemoryCorrection) -> list[MemoryCorrection]:
        return [other for other in self.all() if not other.same_question(correction)]

    def _write(self, corrections: list[MemoryCorrection]) -> None:
        file = _File(sha256=_digest(corrections), corrections=corrections)
        write_text(self.path, file.model_dump_json(indent=1))


def _undamaged(path: Path) -> bool:
    """Whether a file of a finished stage is there, and the stage as it was made."""
    try:
        digests.check(path.parent)
    except (digests.Damage, OSError):
        return False
    return path.is_file()


@dataclass(frozen=True)
class Solved:
    """A question that was put to the planner, and its answer."""

    problem: Problem
    allowed: int  # bytes
    decision: Decision

    @classmethod
    def of(cls, problem: Problem, correction: MemoryCorrection) -> Solved:
        """Decide with the constants and the bytes of a correction; BudgetError where nothing fits."""
        corrected_problem = replace(problem, constants=correction.constants)
        return cls(corrected_problem, correction.allowed, decide(corrected_problem, correction.allowed))

    def answers(self, correction: MemoryCorrection) -> bool:
        """Whether a correction leaves the question as it was."""
        return (self.problem.constants, self.allowed) == (correction.constants, correction.allowed)


def prove_until_it_fits(
    stages: Stages,
    problem: Problem,
    question: MemoryCorrection,
    corrections: MemoryCorrections,
    gguf: Path,
    write: Callable[[Decision], object],
    solved: Solved | None = None,
) -> tuple[Solved, Proof]:
    """Write the artifact that was seen to fit; returns the decision, with the constants that were right.

    question: what is known of it counts. write: makes `gguf` as a decision says. solved: an answer that is
    known already. Raises BudgetError where the corrected constants leave nothing that fits, NativeError after
    ATTEMPTS misses.
    """
    correction = corrections.resume(question)
    while True:
        if solved is None or not solved.answers(correction):
            solved = Solved.of(problem, correction)
        write(solved.decision)
        proof = _proven(stages, gguf, solved.decision, correction.memory)
        proof = proof.model_copy(update={"attempts": correction.attempt})
        if _as_predicted(proof):
            corrections.keep(correction)
            return solved, proof
        if correction.attempt >= ATTEMPTS:
            corrections.forget(correction)
            raise NativeError(
                f"no plan was seen to fit {megabytes(correction.memory)} MB in {ATTEMPTS} attempts:"
                f" the last peaked at {megabytes(proof.peak)} MB, predicted {megabytes(proof.predicted)} MB"
            )
        stages.reporter.say(
            f"peak {megabytes(proof.peak)} MB, predicted {megabytes(proof.predicted)} MB,"
            f" budget {megabytes(correction.memory)} MB: correcting the memory model and planning again"
        )
        correction = correction.after(solved.decision, proof)
        corrections.keep(correction)


def _proven(stages: Stages, gguf: Path, decision: Decision, budget: int) -> Proof:
    """The first proof that is as it should be; of PROOFS that are not, the one of the largest peak."""
    proofs: list[Proof] = []
    while len(proofs) < PROOFS:
        proofs.append(stages.prove(gguf, decision, budget))
        if _as_predicted(proofs[-1]):
            return proofs[-1]
    return max(proofs, key=lambda proof: (bool(proof.parts.get("peak")), proof.peak))


def _as_predicted(proof: Proof) -> bool:
    """Whether it fits, and held about what was predicted."""
    return proof.fits and abs(proof.error) <= TOLERANCE
