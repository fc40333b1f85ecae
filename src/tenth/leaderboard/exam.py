"""The one place where the judge asks tasks (tenth.evaluation): a submission's scores beside the
original's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenth.evaluation import evaluate, hidden, results
from tenth.evaluation.results import Outcome
from tenth.leaderboard.records import TaskScore
from tenth.runtime import sandbox

if TYPE_CHECKING:
    from tenth.core.progress import Reporter
    from tenth.core.store import Store


class Quiet:
    """A Reporter that shows nothing."""

    def say(self, message: str) -> None:
        """Nothing."""

    @contextmanager
    def step(self, name: str, total: float, unit: str = "") -> Iterator[Callable[[float], None]]:  # noqa: ARG002
        """Nothing."""
        yield lambda done: None  # noqa: ARG005


def original(
    name: str, gguf: Path, identity: str, options: evaluate.Options, store: Store, reporter: Reporter
) -> Path:
    """The original's outcomes (eval.jsonl), asked once. identity: its hash."""

    def ask(here: Path) -> None:
        of = evaluate.Subject(name, gguf, None, None)
        done, outcomes = evaluate.evaluate(of, options, reporter)
        results.write(here, done, outcomes)

    asked: dict[str, Any] = {
        "hash": identity,
        "tasks": list(options.tasks),
        "limit": options.limit,
        "seed": options.seed,
        "data": _stamp(options.data),
    }
    return store.stage("asked", asked, ask) / results.ITEMS


def _stamp(data: Path | None) -> str:
    """What tells one state of a folder of items from another."""
    if data is None:
        return ""
    files = sorted(file for file in data.rglob("*") if file.is_file())
    return json.dumps([[str(f.relative_to(data)), f.stat().st_size, f.stat().st_mtime_ns] for f in files])


def ask(
    gguf: Path,
    runtime: dict[str, Any],
    options: evaluate.Options,
    seed: str,
    originals: Path | None,
    log: Path,
) -> list[TaskScore]:
    """Every task's score. seed: hex of the hidden items' seed; empty for none. originals: of `original`.

    Raises InputError (no data), NativeError (the file fails).
    """
    of = evaluate.Subject(gguf.name, gguf, runtime, None)
    done, outcomes = evaluate.evaluate(of, options, Quiet(), log)
    compared = {}
    if originals is not None:
        theirs = results.read_items(originals)
        compared = {c.task: c for c in results.compare(done.tasks, outcomes, theirs)}
    secret: dict[str, list[Outcome]] = {}
    if seed:
        from dataclasses import replace

        more = evaluate.evaluate(of, replace(options, seed=seed), Quiet(), log)[1]
        known = {(o.task, o.item) for o in outcomes}
        for outcome in more:
            if (outcome.task, outcome.item) not in known:
                secret.setdefault(outcome.task, []).append(outcome)
    scores = []
    for task in done.tasks:
        metric = task.scores[0].metric
        score = TaskScore(
            task=task.task,
            title=task.title,
            metric=metric,
            score=task.scores[0].value,
            chance=task.chance,
            informative=task.informative,
            against=compared.get(task.task),
        )
        if hiding := secret.get(task.task):
            values = [o.values[metric] for o in hiding]
            public = [o.values[metric] for o in outcomes if o.task == task.task]
            from tenth.core import statistics

            update: dict[str, Any] = {"hidden": statistics.mean(values)}
            if statistics.binary(values) and statistics.binary(public):
                update["gap"] = hidden.gap(public, values)
            score = score.model_copy(update=update)
        scores.append(score)
    return scores


def limits(budget: int, vocabulary: int, seconds: float) -> sandbox.Limits:
    """For a child that scores: the budget, and the logits that a device never holds."""
    return sandbox.Limits(memory=budget + 12 * 256 * vocabulary * 4 + (256 << 20), seconds=seconds)
