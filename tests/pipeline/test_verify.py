"""What a failed proof teaches, and where it is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tenth.core import digests
from tenth.core.records import Budget, MemoryParts, Proof, Runtime
from tenth.core.store import write_text
from tenth.pipeline import verify
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
        digests.begin(work / name)
        write_text(work / name / "sensitivities.jsonl", '{"name": "x", "sensitivities": {"F16": 0.5}}\n')
        write_text(work / name / "result.json", '{"k q8_0": 0.25}')


def test_a_peak_above_the_prediction_goes_to_the_base_in_steps() -> None:
    learnt = QUESTION.after(DECISION, proof(19_910_000))
    assert learnt.constants.base_extra == verify.STEP
    assert (learnt.attempt, learnt.allowed) == (2, QUESTION.allowed)
    for noise in (-131_072, 0, 85_000):
        again = QUESTION.after(DECISION, proof(19_910_000 + noise))
        assert again.constants == learnt.constants, "noise teaches nothing"
    assert QUESTION.after(DECISION, proof(20_100_000)).constants.base_extra == 2 * verify.STEP


def test_a_peak_below_the_prediction_is_made_use_of() -> None:
    learnt = QUESTION.after(DECISION, proof(PARTS.held - 1_400_000))
    assert learnt.constants.base_extra == -2 * verify.STEP


def test_a_run_ended_by_the_limit_leaves_less_to_plan_with() -> None:
    ended = proof(20_000_001).model_copy(update={"parts": {}})
    learnt = QUESTION.after(DECISION, ended)
    assert learnt.constants == QUESTION.constants
    assert learnt.allowed == QUESTION.allowed - verify.STEP


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
    for damaged in (tmp_path / "prices-a" / "sensitivities.jsonl", tmp_path / "kv-a" / "result.json"):
        whole = damaged.read_text()
        damaged.write_text(whole.replace("5", "6"))
        assert corrections.nearest(budget) is None, "figures that were changed are not planned with"
        damaged.write_text(whole)
    assert corrections.nearest(budget) == QUESTION


DAMAGES: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "cut short": lambda text: text[:40],
    "a list": lambda _: "[]",
    "null": lambda _: "null",
    "nested": lambda _: "[" * 100_000,
    "another version": lambda text: text.replace('"version": 2', '"version": 3'),
    "another number": lambda text: text.replace("20000000", "20000001"),
    "a number that is none": lambda text: text.replace('"attempt": 1', '"attempt": 1e999'),
    "no UTF-8": lambda text: text.replace("prices-a", "\udcff"),
    "a path": lambda text: text.replace("prices-a", "../" * 2000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_corrections_is_said_once_and_forgotten(tmp_path: Path, damage: str) -> None:
    said: list[str] = []
    corrections = MemoryCorrections(tmp_path, "0" * 64, said.append)
    corrections.keep(QUESTION)
    text = DAMAGES[damage](corrections.path.read_text())
    corrections.path.write_bytes(text.encode("utf-8", "surrogateescape"))
    learnt = QUESTION.after(DECISION, proof(21_000_000))
    assert corrections.resume(QUESTION) == QUESTION
    corrections.keep(learnt)
    assert corrections.all() == [learnt]
    assert len(said) == 1
    assert corrections.path.name in said[0]
