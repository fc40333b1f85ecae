"""lm-eval as a library: its prompts and its scoring over our own model, which answers from a child process.

This module loads lm-eval, which is heavy and noisy, and is itself used in a child only (`evaluate.py`). The
model is in a grandchild, one for each kind of request: a broken GGUF can end neither lm-eval nor the scores,
and never sees an answer.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from tenth.core import jobs
from tenth.core.errors import InputError
from tenth.core.records import Runtime
from tenth.core.store import temporary_folder
from tenth.evaluation import catalogue, hidden, scoring, textual
from tenth.evaluation.catalogue import PREFIX, Definition
from tenth.evaluation.results import Asked, Outcome, TaskRun
from tenth.evaluation.settings import EvalSettings, Subject
from tenth.evaluation.textual import Item
from tenth.runtime import sandbox

ANSWER_AT_MOST = 2000  # letters of an answer that are kept
Answer = TypeVar("Answer")
SHELF = Path(lm_eval.__file__).parent / "tasks"


class _Common(TypedDict):
    """The fields that every job of requests has."""

    path: Path
    runtime: Runtime | None
    threads: int
    labels: list[str]


class Child(LM):  # type: ignore[misc]
    """lm-eval's model: hands whole lists of requests to a child process (`scoring.Requests`)."""

    def __init__(self, subject: Subject, settings: EvalSettings, emit: jobs.Emit) -> None:
        super().__init__()
        self._subject, self._settings, self._emit = subject, settings, emit
        self.seconds: defaultdict[str, float] = defaultdict(float)  # of the model's work, by task

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Nats of the continuation, and whether greedy decoding gives it."""
        pairs = [request.args for request in requests]
        return self._ask(scoring.ScorePairs(pairs=pairs, **self._common(requests)), "loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihoods of whole texts, nats."""
        texts = [request.args[0] for request in requests]
        return self._ask(scoring.ScoreTexts(texts=texts, **self._common(requests)), "rolling", requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers; a task that asks for chance in them, or sets no limit, is refused."""
        prompts = []
        for request in requests:
            context, how = request.args
            if how.get("do_sample") or "max_gen_toks" not in how:
                raise InputError(f"{request.task_name}: only greedy answers with max_gen_toks are supported")
            prompts.append((context, how.get("until") or [], int(how["max_gen_toks"])))
        return self._ask(scoring.Generate(prompts=prompts, **self._common(requests)), "generate", requests)

    def _common(self, requests: list[Instance]) -> _Common:
        """The fields of every job of requests."""
        return {
            "path": self._subject.path,
            "runtime": self._subject.runtime,
            "threads": self._settings.threads,
            "labels": [request.task_name for request in requests],
        }

    def _ask(
        self, job: jobs.Job[scoring.Answers[Answer]], kind: str, requests: list[Instance]
    ) -> list[Answer]:
        def on_event(event: jobs.Event) -> None:
            self._emit({"kind": kind, "done": event["done"], "total": len(requests)})

        if self._settings.limits:
            box = sandbox.Sandbox(self._settings.limits)
            answered = box.run(job, [self._subject.path], on_event=on_event)
        else:
            # Threads that spin are slow where others work too.
            answered = jobs.run(job, on_event, jobs.Surroundings(env={"OMP_WAIT_POLICY": "passive"}))
        for label, seconds in answered.seconds.items():
            self.seconds[label] += seconds
        return answered.answers


def ask_tasks(subject: Subject, settings: EvalSettings, emit: jobs.Emit) -> Asked:
    """Ask everything. Raises InputError for items that cannot be read, NativeError where the model fails."""
    with temporary_folder() as folder:
        definitions = {name: catalogue.load(name) for name in settings.tasks}
        labels_of = {
            name: catalogue.write(name, task, settings.data, folder, SHELF)
            for name, task in definitions.items()
        }
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        labels = [label for names in labels_of.values() for label in names]
        loaded = _loaded(manager, labels)
        seed = bytes.fromhex(settings.seed)
        chosen = {
            label: _sample(loaded[label].eval_docs, settings.limit, len(names), seed)
            for names in labels_of.values()
            for label in names
        }
        model = Child(subject, settings, emit)
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=labels,
            task_manager=manager,
            samples=chosen,
            bootstrap_iters=0,
            log_samples=True,
        )
        runs = {}
        for name, task in definitions.items():
            labels = labels_of[name]
            members = [_Member(name, task, label, loaded[label]) for label in labels]
            runs[name] = TaskRun(
                outcomes=[o for m in members for o in m.outcomes(results["samples"][m.label], emit)],
                available=sum(len(member.loaded.eval_docs) for member in members),
                seconds=sum(model.seconds[label] for label in labels),
                version=str(results["versions"].get(labels[0], "")),
            )
    return Asked(tasks=runs, harness=f"lm-eval {lm_eval.__version__}")


def _loaded(manager: TaskManager, labels: list[str]) -> dict[str, Task]:
    """lm-eval's tasks by label; InputError for data that it cannot use or fetch."""
    try:
        tasks: dict[str, Task] = manager.load(labels)["tasks"]
    except Exception as error:  # datasets and the hub raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the items cannot be read: {reason:.300}; give their folder with --data") from error
    return tasks


def _sample(docs: Iterable[Item], limit: int | None, members: int, seed: bytes) -> list[int]:
    """Which items to ask: all, or the same share of `limit` for each of the members."""
    items = list(docs)
    if limit is None:
        return list(range(len(items)))
    return hidden.draw(items, seed, -(-limit // members))


@dataclass(frozen=True)
class _Member:
    """A part of a task as lm-eval knows it."""

    name: str  # of the task
    task: Definition
    label: str  # lm-eval's name of the member
    loaded: Task

    def outcomes(self, samples: Sequence[dict[str, Any]], emit: jobs.Emit) -> list[Outcome]:
        """What lm-eval found, and our own scoring where it has none."""
        samples = [sample for sample in samples if sample["filter"] == self.task.filter] or samples
        commonest = _commonest(self.task, self.loaded)
        member = self.label.removeprefix(PREFIX).removeprefix(self.name).removeprefix("_")
        own = textual.scorer(self.task.scorer)
        outcomes = []
        for number, sample in enumerate(samples):
            choices = sample["arguments"]
            answers = [r[0] if isinstance(r, list) else r for r in sample["resps"]]
            if own:
                values = {self.task.metrics[0]: own(sample["doc"], str(answers[0]))}
                emit({"kind": "check", "done": number + 1, "total": len(samples)})
            else:
                values = {metric: float(sample[metric]) for metric in self.task.metrics}
            outcomes.append(
                Outcome(
                    task=self.name,
                    id=f"{member}/{sample['doc_id']}" if member else str(sample["doc_id"]),
                    item=hidden.digest(sample["doc"]),
                    prompt=hashlib.sha256(json.dumps(choices, default=str).encode()).hexdigest(),
                    chance=_chance(self.task, sample["doc"], len(choices), commonest),
                    values=values,
                    answer=_shortened(answers),
                )
            )
        return outcomes


def _commonest(task: Definition, loaded: Task) -> float:
    """Share of the likeliest answer among all items of a member, asked or not; 0 where it does not matter."""
    if task.chance != "majority":
        return 0.0
    answers = Counter(
        str(loaded.doc_to_target(doc)).rpartition(task.mark)[2].strip() for doc in loaded.eval_docs
    )
    return answers.most_common(1)[0][1] / answers.total()


def _chance(task: Definition, doc: Item, choices: int, commonest: float) -> float:
    """What an empty head gets on one item; `Definition.chance` says how."""
    uniform = 1 / choices if choices > 1 else 0.0
    if task.chance == "choices":
        return uniform
    if task.chance == "majority":
        return max(uniform, commonest)
    if task.chance == "none":
        return 0.0
    marks: Any = doc
    for key in task.chance.split("."):
        marks = marks[key]
    return float(sum(marks) / len(marks))


def _shortened(answers: Sequence[Any]) -> str:
    """The number of the likeliest choice, or the text."""
    if isinstance(answers[0], str):
        return answers[0][:ANSWER_AT_MOST]
    nats = [float(a[0]) for a in answers]
    return str(max(range(len(nats)), key=nats.__getitem__))
