"""What a failed proof teaches, and where it is kept."""

from __future__ import annotations

import json
from pathlib import Path

from tenth.core.records import Budget, MemoryParts, Proof, Runtime
from tenth.pipeline.verify import Lesson, Lessons
from tenth.planning.plan import Decision

QUESTION = Lesson(
    memory=20_000_000, context=256, threads=1, merges=9, prices="prices-a", kv="kv-a", allowed=20_000_000
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
        (work / name / "prices.jsonl").write_text('{"name": "x", "prices": {"F16": 0.5}}\n')
        (work / name / "kv.json").write_text('{"k q8_0": 0.25}')


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
    lessons = Lessons(tmp_path / "work", "f" * 64)
    assert lessons.resume(QUESTION) == QUESTION
    assert lessons.nearest(Budget(memory=1, context=1)) is None
    assert not (tmp_path / "work").exists()
    (tmp_path / "work").mkdir()
    store(tmp_path / "work", "prices-a", "kv-a")
    learnt = QUESTION.after(DECISION, proof(21_000_000))
    other = QUESTION.model_copy(update={"memory": 30_000_000, "allowed": 30_000_000})
    for lesson in (QUESTION, learnt, other):
        lessons.keep(lesson)
    assert lessons.all() == [learnt, other]
    assert lessons.resume(QUESTION) == learnt
    assert lessons.nearest(Budget(memory=20_000_000, context=256)) == learnt
    elsewhere = lessons.nearest(Budget(memory=40_000_000, context=512))
    assert elsewhere is not None
    assert elsewhere.allowed == 40_000_000
    assert lessons.measurements(elsewhere) == ({"x": {"F16": 0.5}}, {"k q8_0": 0.25})
    lessons.forget(learnt)
    assert lessons.all() == [other]


def test_a_lesson_without_its_measurements_or_of_another_format_is_none(tmp_path: Path) -> None:
    lessons, budget = Lessons(tmp_path, "0" * 64), Budget(memory=20_000_000, context=256)
    lessons.keep(QUESTION)
    assert lessons.nearest(budget) is None
    store(tmp_path, "prices-a", "kv-a")
    assert lessons.nearest(budget) == QUESTION
    file = json.loads(lessons.path.read_text())
    for text in (json.dumps(file | {"version": 2}), lessons.path.read_text()[:40], "", "[]"):
        lessons.path.write_text(text)
        assert lessons.all() == []
