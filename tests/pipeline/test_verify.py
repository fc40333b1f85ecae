"""What a failed proof teaches, and where it is kept."""

from __future__ import annotations

import json
from pathlib import Path

from tenth.core.records import Budget, MemoryParts, Proof, Runtime
from tenth.pipeline.verify import MemoryCorrection, MemoryCorrections
from tenth.planning.plan import Decision

QUESTION = MemoryCorrection(
    memory=20_000_000,
    context=256,
    threads=1,
    merges=9,
    sensitivities="prices-a",
    kv="kv-a",
    allowed=20_000_000,
)
PARTS = MemoryParts(weights=2_000_000, repacked=0, kv=300_000, compute=200_000, output=0, base=17_000_000)
DECISION = Decision({}, Runtime(n_ctx=256, n_ubatch=8), PARTS, 0.0)


def proof(peak: int) -> Proof:
    return Proof(
        budget=QUESTION.memory,
        limit="watched RSS",
        network="",
        interpreter=0,
        peak=peak,
        peak_file_backed=0,
        peak_anonymous=peak,
        predicted=PARTS.total,
        parts={"peak": peak},
    )


def store(work: Path, *names: str) -> None:
    for name in names:
        (work / name).mkdir()
        (work / name / "sensitivities.jsonl").write_text('{"name": "x", "sensitivities": {"F16": 0.5}}\n')
        (work / name / "result.json").write_text('{"k q8_0": 0.25}')


def test_a_peak_above_the_prediction_goes_to_the_base_rounded_up() -> None:
    learnt = QUESTION.after(DECISION, proof(19_910_000))
    assert learnt.constants.base_extra == 20_000_000 - PARTS.total
    assert (learnt.attempt, learnt.allowed) == (2, QUESTION.allowed)
    assert QUESTION.after(DECISION, proof(19_935_000)).constants == learnt.constants, "noise teaches nothing"


def test_a_run_ended_by_the_limit_leaves_less_to_plan_with() -> None:
    ended = proof(20_000_001).model_copy(update={"parts": {}})
    learnt = QUESTION.after(DECISION, ended)
    assert learnt.constants == QUESTION.constants
    assert learnt.allowed == QUESTION.allowed - QUESTION.memory // 200


def test_lessons_are_kept_by_question(tmp_path: Path) -> None:
    corrections = MemoryCorrections(tmp_path / "work", "f" * 64)
    assert corrections.resume(QUESTION) == QUESTION
    assert corrections.nearest(Budget(memory=1, context=1)) is None
    assert not (tmp_path / "work").exists()
    (tmp_path / "work").mkdir()
    store(tmp_path / "work", "prices-a", "kv-a")
    learnt = QUESTION.after(DECISION, proof(21_000_000))
    other = QUESTION.model_copy(update={"memory": 30_000_000, "allowed": 30_000_000})
    for correction in (QUESTION, learnt, other):
        corrections.keep(correction)
    assert corrections.all() == [learnt, other]
    assert corrections.resume(QUESTION) == learnt
    assert corrections.nearest(Budget(memory=20_000_000, context=256)) == learnt
    elsewhere = corrections.nearest(Budget(memory=40_000_000, context=512))
    assert elsewhere is not None
    assert elsewhere.allowed == 40_000_000
    assert corrections.measurements(elsewhere) == ({"x": {"F16": 0.5}}, {"k q8_0": 0.25})
    corrections.forget(learnt)
    assert corrections.all() == [other]


def test_a_lesson_without_its_measurements_or_of_another_format_is_none(tmp_path: Path) -> None:
    corrections, budget = MemoryCorrections(tmp_path, "0" * 64), Budget(memory=20_000_000, context=256)
    corrections.keep(QUESTION)
    assert corrections.nearest(budget) is None
    store(tmp_path, "prices-a", "kv-a")
    assert corrections.nearest(budget) == QUESTION
    file = json.loads(corrections.path.read_text())
    for text in (json.dumps(file | {"version": 2}), corrections.path.read_text()[:40], "", "[]"):
        corrections.path.write_text(text)
        assert corrections.all() == []
