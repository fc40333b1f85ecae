"""The one place where the judge asks tasks (tenth.evaluation): a submission's scores beside the
original's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import JsonValue

from tenth.core import statistics
from tenth.core.progress import Reporter
from tenth.core.records import Runtime
from tenth.core.scores import Comparison
from tenth.core.store import Store
from tenth.evaluation import results
from tenth.evaluation.evaluate import evaluate
from tenth.evaluation.results import Outcome, TaskResult
from tenth.evaluation.settings import EvalSettings, Subject
from tenth.leaderboard.records import TaskScore
from tenth.runtime import sandbox


class Quiet:
    """A Reporter that shows nothing, for work inside other work."""

    def say(self, message: str) -> None:
        """Show no line."""

    @contextmanager
    def step(self, name: str, total: float, unit: str = "") -> Iterator[Callable[[float], None]]:  # noqa: ARG002
        """Show no progress."""
        yield lambda done: None  # noqa: ARG005


def original(
    name: str, gguf: Path, identity: str, settings: EvalSettings, store: Store, reporter: Reporter
) -> Path:
    """The original's outcomes (eval.jsonl), asked once. identity: its hash."""

    def ask_original(here: Path) -> None:
        evaluation, outcomes = evaluate(Subject(name=name, path=gguf), settings, reporter)
        results.write(here, evaluation, outcomes)

    inputs: dict[str, JsonValue] = {
        "hash": identity,
        "tasks": list(settings.tasks),
        "limit": settings.limit,
        "seed": settings.seed,
        "data": _stamp(settings.data),
    }
    return store.stage("asked", inputs, ask_original) / results.ITEMS


def _stamp(data: Path | None) -> str:
    """What tells one state of a folder of items from another."""
    if data is None:
        return ""
    files = sorted(file for file in data.rglob("*") if file.is_file())
    return json.dumps([[str(f.relative_to(data)), f.stat().st_size, f.stat().st_mtime_ns] for f in files])


def ask(
    gguf: Path, runtime: Runtime, settings: EvalSettings, seed: str, originals: Path | None, log: Path
) -> list[TaskScore]:
    """Every task's score. seed: hex of the hidden items' seed; empty for none. originals: of `original`.

    Raises InputError (no data), NativeError (the file fails).
    """
    subject = Subject(name=gguf.name, path=gguf, runtime=runtime)
    evaluation, outcomes = evaluate(subject, settings, Quiet(), log)
    compared = {}
    if originals is not None:
        theirs = results.read_items(originals)
        compared = {c.task: c for c in results.compare(evaluation.tasks, outcomes, theirs)}
    secret: list[Outcome] = []
    if seed:
        drawn = evaluate(subject, settings.model_copy(update={"seed": seed}), Quiet(), log)[1]
        public = {(o.task, o.item) for o in outcomes}
        secret = [o for o in drawn if (o.task, o.item) not in public]
    return [_score(task, outcomes, secret, compared.get(task.task)) for task in evaluation.tasks]


def _score(
    task: TaskResult, outcomes: Sequence[Outcome], secret: Sequence[Outcome], against: Comparison | None
) -> TaskScore:
    """A task's score; where it was asked secret items too, that of them and how much less it is."""
    metric = task.scores[0].metric
    public, hidden = (
        [o.values[metric] for o in items if o.task == task.task] for items in (outcomes, secret)
    )
    binary = statistics.binary(hidden) and statistics.binary(public)
    return TaskScore(
        task=task.task,
        title=task.title,
        metric=metric,
        score=task.scores[0].value,
        chance=task.chance,
        informative=task.informative,
        against=against,
        hidden=statistics.mean(hidden) if hidden else None,
        gap=statistics.unpaired(public, hidden) if hidden and binary else None,
    )


def limits(budget: int, vocabulary: int, seconds: float) -> sandbox.Limits:
    """For a child that scores: the budget, and the logits that a device never holds."""
    return sandbox.Limits(memory=budget + 12 * 256 * vocabulary * 4 + (256 << 20), seconds=seconds)
