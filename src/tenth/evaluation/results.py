"""What a run of tasks leaves: an Evaluation (eval.json), and the outcome of every item (eval.jsonl)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from tenth.core import statistics
from tenth.core.errors import InputError
from tenth.core.records import Record
from tenth.core.scores import Comparison, ScoreInterval
from tenth.core.store import write_text

REPORT, ITEMS = "eval.json", "eval.jsonl"
ITEMS_AT_MOST = 1 << 30  # bytes of eval.jsonl


class Outcome(Record):
    """One item: what was asked, as a hash, and how well it was answered."""

    task: str
    id: str  # member and place in its file: "snarks/17"
    item: str  # SHA-256 of the item; two runs are paired by it
    prompt: str  # SHA-256 of all that the model was shown
    chance: float = Field(ge=0, le=1)
    values: dict[str, float]  # metric -> 0, 1 or a share
    answer: str = ""  # number of the choice, or the text


class TaskRun(Record):
    """What asking the items of one task gave."""

    outcomes: list[Outcome]
    available: int  # items that there are, asked or not
    seconds: float  # of the model's own work
    version: str  # of the task's configuration


class Asked(Record):
    """What a child that asked tasks gives back."""

    harness: str  # "lm-eval 0.4.13"
    tasks: dict[str, TaskRun]


class Score(Record):
    """One metric of one task: its value and interval."""

    metric: str
    value: ScoreInterval  # share


class TaskResult(Record):
    """What one task gave: its scores, and how many items were asked."""

    task: str
    title: str
    source: str  # where lm-eval's configuration comes from, and its version
    items: int  # scored
    available: int
    scores: list[Score]  # the first one is compared
    chance: float  # what an empty head gets on these items
    above_chance: float  # p of as good a score by chance alone, one-sided
    informative: bool
    prompts: str  # SHA-256 of the items' prompts, in order of their ids
    seconds: float = Field(ge=0)  # of the model's own work


class Evaluation(Record):
    """Every task asked for, of one model."""

    version: Literal[1] = 1
    tenth: str
    harness: str  # "lm-eval 0.4.13"
    runtime: str
    model: str
    sha256: str  # of the GGUF, or of the folder's weights
    tasks: list[TaskResult]
    against: str = ""  # the original
    comparisons: list[Comparison] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


def score(metrics: Sequence[str], outcomes: Sequence[Outcome]) -> tuple[list[Score], float, float]:
    """(scores, chance, p of chance) of one task's outcomes."""
    scores = [Score(metric=m, value=statistics.mean([o.values[m] for o in outcomes])) for m in metrics]
    chances = [o.chance for o in outcomes]
    p = statistics.by_chance([o.values[metrics[0]] for o in outcomes], chances)
    return scores, sum(chances) / len(chances), p


def compare(
    results: Iterable[TaskResult], ours: Sequence[Outcome], theirs: Sequence[Outcome]
) -> list[Comparison]:
    """Ours with the original's on the same items, task by task.

    Raises InputError where an item is missing in one of them, or was not asked in the same words.
    """
    comparisons = []
    for result in results:
        metric = result.scores[0].metric
        mine, original = (
            {(o.id, o.item): o for o in outcomes if o.task == result.task} for outcomes in (ours, theirs)
        )
        if mine.keys() != original.keys() or any(mine[k].prompt != original[k].prompt for k in mine):
            raise InputError(
                f"{result.task}: the original was not asked the same items in the same words;"
                " run both with the same --tasks, --limit and --data"
            )
        if any(metric not in o.values for o in original.values()):
            raise InputError(f"{result.task}: the original's outcomes have no {metric}")
        keys = sorted(mine)
        comparisons.append(
            statistics.compare(
                result.task,
                [mine[k].values[metric] for k in keys],
                [original[k].values[metric] for k in keys],
                [original[k].chance for k in keys],
            )
        )
    return comparisons


def write(folder: Path, evaluation: Evaluation, outcomes: Sequence[Outcome]) -> list[Path]:
    """Write both files; the items first, so that a report never lacks them."""
    write_text(folder / ITEMS, "".join(o.model_dump_json() + "\n" for o in outcomes))
    write_text(folder / REPORT, evaluation.model_dump_json(indent=1))
    return [folder / REPORT, folder / ITEMS]


def read_items(file: Path) -> list[Outcome]:
    """The outcomes of an earlier run. Raises InputError for what is no such file."""
    try:
        if file.stat().st_size > ITEMS_AT_MOST:
            raise InputError(f"{file} is larger than any file of outcomes")
        lines = file.read_text(encoding="utf-8").splitlines()
        return [Outcome.model_validate_json(line) for line in lines]
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file} is no {ITEMS} of tenth eval: {reason:.200}") from None
