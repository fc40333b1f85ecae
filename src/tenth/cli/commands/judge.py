"""tenth judge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from tenth.cli.commands._options import (
    DEFAULT_SHARE,
    Count,
    Items,
    Json,
    Positive,
    Share,
    Whole,
    names,
    options,
)
from tenth.core.errors import NativeError

if TYPE_CHECKING:
    from tenth.leaderboard.records import Verdict

PLACE = 91


@options("The rules")
@dataclass(frozen=True, kw_only=True)
class Rules:
    """What every submission has to stay within."""

    device: str
    """One of tenth devices, or a device file.toml."""
    share: Share = None
    context: Annotated[Whole, Parameter(validator=Number(gte=64))] = 2048
    """Tokens of context that must fit, 64 or more."""
    seconds: Annotated[float, Parameter(validator=Number(gte=1))] = 3600
    """Most seconds of one run of an artifact."""


@options("What is asked")
@dataclass(frozen=True, kw_only=True)
class Questions:
    """What submissions are asked, and whose answers they are compared with."""

    against: str | None = None
    """The original: a GGUF, or a model as for fit."""
    tasks: str | None = None
    """Such as piqa,arc_easy; none by default."""
    text: Path | None = None
    """UTF-8 text to judge on, from its end."""
    passages: Annotated[Whole, Parameter(validator=Number(gte=4))] = 32
    """Pieces of 2048 bytes of the text, 4 or more."""
    seed: Path | None = None
    """File with a secret seed in hex: hidden items, and the gap to them."""


@options("Where it runs")
@dataclass(frozen=True, kw_only=True)
class Workers:
    """How the work is spread over processes and machines."""

    work: Path | None = None
    """Folder for the original's answers."""
    jobs: Positive = 1
    """Submissions at a time."""
    threads: Count = 0
    """Of each; by default the cores over --jobs."""
    cluster: str | None = None
    """Address of a Ray cluster to judge on; local starts one here."""


def judge(
    submissions: Annotated[list[Path], Parameter(help="Submissions, or folders of submissions.")],
    /,
    *,
    rules: Rules,
    questions: Questions = Questions(),
    items: Items = Items(),
    workers: Workers = Workers(),
    out: Annotated[Path, Parameter(alias="-o", help="Folder of verdicts and logs.")] = Path("results"),
    as_json: Json = False,
) -> int:
    """Compare compressed models: run each, shut off, under the same rules, and write a verdict with its log.

    A submission that has a verdict under the same rules and conditions is not judged again.
    """
    from tenth.cli.console import ConsoleReporter, print_json, print_line
    from tenth.leaderboard import run

    judged = run.judge_all(
        run.JudgeSettings(
            places=tuple(submissions),
            results=out,
            device=rules.device,
            share=rules.share or DEFAULT_SHARE,
            against=questions.against,
            tasks=names(questions.tasks),
            limit=items.limit,
            data=items.data,
            text=questions.text,
            text_chunks=questions.passages,
            context=rules.context,
            seed=questions.seed,
            jobs=workers.jobs,
            threads=workers.threads,
            seconds=rules.seconds,
            cluster=workers.cluster,
            work=workers.work,
        ),
        ConsoleReporter(),
    )
    if as_json:
        verdicts = [verdict.model_dump() for verdict in judged.verdicts]
        print_json({"verdicts": verdicts, "failed": judged.failed})
        return 2 if judged.failed else 0  # the object says which
    for verdict in judged.verdicts:
        print_line(line(verdict))
    if judged.failed:
        failed = ", ".join(judged.failed)
        raise NativeError(f"not judged: {failed}; run the same command again, what has a verdict is kept")
    return 0


def line(verdict: Verdict) -> str:
    """Say in one line what became of a submission."""
    if verdict.reason:
        return f"out     {verdict.submission}: {verdict.reason}"
    from tenth.core.format import written
    from tenth.core.metrics import metric

    figures = [f"{metric(r.name).title} {written(r).with_unit}" for r in verdict.readings if r.name in _SHOWN]
    return f"ranked  {verdict.submission}: {', '.join(figures)}"


_SHOWN = ("bits_per_byte", "kl", "peak", "decode", "device_decode", "device_joules")
