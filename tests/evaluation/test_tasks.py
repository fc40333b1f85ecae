from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path

import bundles
import items
import pytest
import tiny
from commands import Shell

from tenth.cli.console import ConsoleReporter
from tenth.cli.screens import show_evaluation
from tenth.core import jobs
from tenth.core.errors import InputError, NativeError, OutputError
from tenth.evaluation import catalogue, evaluate, hidden, programs, results, scoring
from tenth.evaluation.results import Evaluation, Outcome
from tenth.evaluation.settings import EvalSettings
from tenth.models.checkpoint import open_checkpoint
from tenth.models.formats.gguf import write_gguf

TASKS = [name for name in catalogue.known() if name != "humaneval" or not programs.trouble()]
SOME = ("piqa", "truthfulqa_mc2", "winogrande", "lambada")
COUNT = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return items.write(tmp_path_factory.mktemp("data"), COUNT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.make_model(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """The same weights as those of the folder."""
    checkpoint = open_checkpoint(folder)
    path = folder.parent / "tiny.gguf"
    write_gguf(checkpoint, {s.name: "F32" for s in checkpoint.specs() if s.linear}, path)
    return path


@pytest.fixture(scope="module")
def everything(model: Path, data: Path) -> tuple[Evaluation, list[Outcome]]:
    options = EvalSettings(tasks=tuple(TASKS), data=data, threads=1)
    return evaluate.evaluate(evaluate.subject(str(model)), options, ConsoleReporter())


def test_every_task_is_whole() -> None:
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    shelf = Path(next(iter(spec.submodule_search_locations)), "tasks")
    for name, task in catalogue.known().items():
        assert task.title
        for member in task.members:
            assert not task.source or (shelf / task.source.format(member=member)).is_file(), name
    assert len(catalogue.load("bbh").members) == 27
    with pytest.raises(InputError, match=r"unknown task 'piqaa'.*Did you mean 'piqa'"):
        catalogue.load("piqaa")


def test_every_task_runs(everything: tuple[Evaluation, list[Outcome]]) -> None:
    evaluation, outcomes = everything
    assert [task.task for task in evaluation.tasks] == TASKS
    counted = Counter(outcome.task for outcome in outcomes)
    for result in evaluation.tasks:
        task = catalogue.load(result.task)
        assert result.items == result.available == counted[result.task] == COUNT * len(task.members)
        assert [score.metric for score in result.scores] == list(task.metrics)
        for score in result.scores:
            assert 0 <= score.value.low <= score.value.value <= score.value.high <= 1
        assert 0 <= result.chance < 1
    chances = {result.task: result.chance for result in evaluation.tasks}
    assert (chances["piqa"], chances["arc_easy"], chances["truthfulqa_mc2"]) == (0.5, 0.25, 0.5)
    assert chances["bbh"] == pytest.approx(2 / 3)  # "False" is the likeliest answer of three items
    assert chances["lambada"] == chances["gsm8k"] == pytest.approx(1 / 3)
    assert len({o.prompt for o in outcomes if o.task != "truthfulqa_mc1"}) > 10 * COUNT


def test_choices_are_those_of_the_largest_likelihood(
    everything: tuple[Evaluation, list[Outcome]], data: Path
) -> None:
    rows = [json.loads(line) for line in (data / "piqa_validation.jsonl").read_text().splitlines()]
    for outcome in (o for o in everything[1] if o.task == "piqa"):
        assert outcome.values["acc"] == float(int(outcome.answer) == rows[int(outcome.id)]["label"])


def test_both_routes_give_the_same_answers_to_a_drawn_sample(
    folder: Path, data: Path, everything: tuple[Evaluation, list[Outcome]]
) -> None:
    seed = "ab" * 32
    options = EvalSettings(tasks=(*SOME, "gsm8k", "chid"), limit=2, data=data, seed=seed, threads=1)
    found, outcomes = evaluate.evaluate(evaluate.subject(str(folder)), options, ConsoleReporter())
    assert found.runtime == "transformers, float32"
    rows = [json.loads(line) for line in (data / "piqa_validation.jsonl").read_text().splitlines()]
    drawn = hidden.draw(rows, bytes.fromhex(seed), 2)
    assert sorted(int(o.id) for o in outcomes if o.task == "piqa") == drawn
    asked = {(o.task, o.id) for o in outcomes}
    theirs = [o for o in everything[1] if (o.task, o.id) in asked]
    by_id = {(o.task, o.id): o for o in theirs}
    for outcome in outcomes:
        other = by_id[outcome.task, outcome.id]
        assert outcome.values == pytest.approx(other.values, abs=1e-4)
        assert (outcome.item, outcome.prompt, outcome.answer) == (other.item, other.prompt, other.answer)
        assert outcome.chance == other.chance  # of all items, not of those drawn
    for result, comparison in zip(found.tasks, results.compare(found.tasks, outcomes, theirs), strict=True):
        assert (result.items, result.available) == (2, COUNT)
        assert comparison.p is None or comparison.lost + comparison.won == 0


def test_the_command(everything: tuple[Evaluation, list[Outcome]], data: Path, tmp_path: Path) -> None:
    shell, bundle = Shell(tmp_path), bundles.write_bundle(tmp_path / "bundle")
    _, earlier = results.write(tmp_path, *everything)
    chosen = ["--tasks", "piqa,truthfulqa_mc2", "--data", data, "--threads", 1]
    ran = shell.run("eval", bundle, *chosen, "--against", earlier, "--json")
    assert ran.returncode == 0, ran.stderr
    found = Evaluation.model_validate_json(ran.stdout)
    assert [c.task for c in found.comparisons] == ["piqa", "truthfulqa_mc2"]
    assert {c.verdict for c in found.comparisons} == {"not informative"}
    assert Evaluation.model_validate_json((bundle / "eval.json").read_text()) == found
    assert len(results.read_items(bundle / "eval.jsonl")) == 2 * COUNT
    assert shell.running() == []
    wrong = shell.run("eval", bundle, "--tasks", "piqa,qipa", "--data", data)
    assert wrong.returncode == 2
    assert "unknown task 'qipa'" in wrong.stderr


def test_what_a_person_sees(
    everything: tuple[Evaluation, list[Outcome]], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation, outcomes = everything
    compared = results.compare(evaluation.tasks, outcomes, outcomes)
    show_evaluation(ConsoleReporter(), evaluation)
    show_evaluation(ConsoleReporter(), evaluation.model_copy(update={"comparisons": compared}))
    said = " ".join(capsys.readouterr().err.split())
    assert "PIQA: not above chance (50.0%)" in said
    assert "0.0 [" in said
    assert "lm-eval 0.4" in said


def test_what_cannot_be_asked(model: Path, data: Path, tmp_path: Path) -> None:
    small, broken, other = tmp_path / "small", tmp_path / "broken", tmp_path / "other.jsonl"
    small.mkdir()
    broken.mkdir()
    (broken / "piqa_validation.jsonl").write_text('{"goal": "x", "sol1"')
    other.write_text('{"task": "piqa"}\n')
    for options, said in (
        (EvalSettings(tasks=(), data=data), "give tasks"),
        (EvalSettings(tasks=("piqa", "piqa"), data=data), "named twice"),
        (EvalSettings(tasks=("piqa",), limit=0, data=data), "--limit 0"),
        (EvalSettings(tasks=("longbench",), data=small), "has no longbench/hotpotqa.jsonl"),
        (EvalSettings(tasks=("piqa",), data=tmp_path / "none"), "no folder of items"),
        (EvalSettings(tasks=("piqa",), data=broken), "the items cannot be read"),
    ):
        with pytest.raises(InputError, match=said):
            evaluate.evaluate(evaluate.subject(str(model)), options, ConsoleReporter())
    with pytest.raises(InputError, match=r"is no \.gguf file"):
        evaluate.subject(str(other))
    with pytest.raises(InputError, match=r"is no eval\.jsonl"):
        results.read_items(other)
    with pytest.raises(OutputError, match="cannot make"):
        evaluate.place(other / "folder")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("no model at all, but long enough to have a header of some kind")
    job = scoring.ScorePairs(path=text, runtime=None, threads=1, labels=["x"], pairs=[("a", "b")])
    with pytest.raises(NativeError, match="cannot load"):
        jobs.run(job)


def test_other_items_cannot_be_compared(everything: tuple[Evaluation, list[Outcome]]) -> None:
    evaluation, outcomes = everything
    one = [r for r in evaluation.tasks if r.task == "piqa"]
    fewer = [o for o in outcomes if o.id != "0"]
    reworded = [o.model_copy(update={"prompt": "0" * 64}) for o in outcomes]
    for theirs in (fewer, reworded):
        with pytest.raises(InputError, match="not asked the same items in the same words"):
            results.compare(one, outcomes, theirs)
