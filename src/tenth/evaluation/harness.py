"""lm-eval as a library: its prompts and its scoring over our own model, which answers from a child process.

This module loads lm-eval, which is heavy and noisy, and is itself used in a child only (`evaluate.py`). The
model is in a grandchild, one for each kind of request: a broken GGUF can end neither lm-eval nor the scores,
and never sees an answer.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from tenth.core import jobs
from tenth.core.errors import InputError
from tenth.evaluation import catalogue, hidden, textual
from tenth.evaluation.catalogue import PREFIX, Definition
from tenth.evaluation.results import Outcome
from tenth.runtime import sandbox

ANSWER_AT_MOST = 2000  # letters of an answer that are kept
SHELF = Path(lm_eval.__file__).parent / "tasks"


class Child(LM):  # type: ignore[misc]
    """lm-eval's model: hands whole lists of requests to `scoring.run` in a child."""

    def __init__(
        self, model: dict[str, Any], threads: int, limits: sandbox.Limits | None, emit: jobs.Emit
    ) -> None:
        super().__init__()
        self._model, self._threads, self._limits, self._emit = model, threads, limits, emit
        self.seconds: defaultdict[str, float] = defaultdict(float)  # of the model's work, by task

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Nats of the continuation, and whether greedy decoding gives it."""
        answers = self._ask("loglikelihood", requests, [r.args for r in requests])
        return [(float(nats), bool(greedy)) for nats, greedy in answers]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Nats of whole texts."""
        return [float(n) for n in self._ask("rolling", requests, [r.args[0] for r in requests])]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Greedy answers; a task that asks for chance in them, or sets no limit, is refused."""
        asked = []
        for request in requests:
            context, how = request.args
            if how.get("do_sample") or "max_gen_toks" not in how:
                raise InputError(f"{request.task_name}: only greedy answers with max_gen_toks are supported")
            asked.append((context, how.get("until") or [], int(how["max_gen_toks"])))
        return [str(text) for text in self._ask("generate", requests, asked)]

    def _ask(self, kind: str, requests: list[Any], asked: list[Any]) -> list[Any]:
        arguments = {"model": self._model, "kind": kind, "asked": asked, "threads": self._threads}
        arguments["labels"] = [request.task_name for request in requests]
        total = len(asked)

        def on_event(event: dict[str, Any]) -> None:
            self._emit({"kind": kind, "done": event["done"], "total": total})

        if self._limits:
            path = Path(self._model["path"])
            found = sandbox.call(
                "tenth.evaluation.scoring:run",
                arguments,
                self._limits,
                sandbox.Isolation(),
                None,
                [path],
                on_event=on_event,
            )
        else:
            # Threads that spin are slow where others work too.
            passive = {"OMP_WAIT_POLICY": "passive"}
            found = jobs.call("tenth.evaluation.scoring:run", arguments, on_event, env=passive)
        for label, seconds in found["seconds"].items():
            self.seconds[label] += seconds
        answers: list[Any] = found["answers"]
        return answers


def run(
    emit: jobs.Emit,
    tasks: Sequence[str],
    model: dict[str, Any],
    data: str | None,
    limit: int | None,
    seed: str,
    threads: int,
    limits: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Ask everything. model: arguments of `runtimes.opened`; seed: hex, empty for the fixed sample; limits:
    of `cell.Limits`, for a stranger's file.

    Returns per task {"outcomes": [...], "available", "seconds", "version"}, and the harness's version.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tenth-tasks-") as scratch:
        folder = Path(scratch)
        named = {}
        for name in tasks:
            task = catalogue.load(name)
            named[name] = catalogue.write(name, task, None if data is None else Path(data), folder, SHELF)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        labels = [label for names in named.values() for label in names]
        loaded = _loaded(manager, labels)
        chosen = {
            label: _sample(loaded[label].eval_docs, limit, len(names), bytes.fromhex(seed))
            for names in named.values()
            for label in names
        }
        lm = Child(model, threads, sandbox.Limits(**limits) if limits else None, emit)
        results = lm_eval.simple_evaluate(
            model=lm, tasks=labels, task_manager=manager, samples=chosen, bootstrap_iters=0, log_samples=True
        )
        for name, names in named.items():
            task = catalogue.load(name)
            outcomes: list[Outcome] = []
            for label in names:
                samples = results["samples"][label]
                found_here = [s for s in samples if s["filter"] == task.filter] or samples
                commonest = _commonest(task, loaded[label])
                outcomes += _outcomes(name, label, task, found_here, commonest, emit)
            found[name] = {
                "outcomes": [o.model_dump() for o in outcomes],
                "available": sum(len(loaded[label].eval_docs) for label in names),
                "seconds": sum(lm.seconds[label] for label in names),
                "version": str(results["versions"].get(names[0], "")),
            }
    return {"tasks": found, "harness": f"lm-eval {lm_eval.__version__}"}


def _loaded(manager: TaskManager, labels: list[str]) -> dict[str, Any]:
    """lm-eval's tasks by label; InputError for data that it cannot use or fetch."""
    try:
        tasks: dict[str, Any] = manager.load(labels)["tasks"]
    except Exception as error:  # datasets and the hub raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the items cannot be read: {reason:.300}; give their folder with --data") from error
    return tasks


def _sample(docs: Any, limit: int | None, members: int, seed: bytes) -> list[int]:
    """Which items to ask: all, or the same share of `limit` for each of the members."""
    items = list(docs)
    if limit is None:
        return list(range(len(items)))
    return hidden.draw(items, seed, -(-limit // members))


def _outcomes(
    name: str,
    label: str,
    task: Definition,
    samples: Sequence[dict[str, Any]],
    commonest: float,
    emit: jobs.Emit,
) -> list[Outcome]:
    """What lm-eval found, and our own scoring where it has none; samples are of one member."""
    member = label.removeprefix(PREFIX).removeprefix(name).removeprefix("_")
    own = textual.scorer(task.scorer)
    outcomes = []
    for number, sample in enumerate(samples):
        choices = sample["arguments"]
        answers = [r[0] if isinstance(r, list) else r for r in sample["resps"]]
        if own:
            values = {task.metrics[0]: own(sample["doc"], str(answers[0]))}
            emit({"kind": "check", "done": number + 1, "total": len(samples)})
        else:
            values = {metric: float(sample[metric]) for metric in task.metrics}
        outcomes.append(
            Outcome(
                task=name,
                id=f"{member}/{sample['doc_id']}" if member else str(sample["doc_id"]),
                item=hidden.digest(sample["doc"]),
                prompt=hashlib.sha256(json.dumps(choices, default=str).encode()).hexdigest(),
                chance=_chance(task, sample["doc"], len(choices), commonest),
                values=values,
                answer=_said(answers),
            )
        )
    return outcomes


def _commonest(task: Definition, loaded: Any) -> float:
    """Share of the likeliest answer among all items of a member, asked or not; 0 where it does not matter."""
    if task.chance != "majority":
        return 0.0
    said = Counter(
        str(loaded.doc_to_target(doc)).rpartition(task.mark)[2].strip() for doc in loaded.eval_docs
    )
    return said.most_common(1)[0][1] / said.total()


def _chance(task: Definition, doc: dict[str, Any], choices: int, commonest: float) -> float:
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


def _said(answers: Sequence[Any]) -> str:
    """The number of the likeliest choice, or the text."""
    if isinstance(answers[0], str):
        return answers[0][:ANSWER_AT_MOST]
    nats = [float(a[0]) for a in answers]
    return str(max(range(len(nats)), key=nats.__getitem__))
