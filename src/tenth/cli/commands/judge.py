"""tenth judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tenth.cli.commands._options import Json, Share
from tenth.core.errors import NativeError

if TYPE_CHECKING:
    from tenth.leaderboard.records import Verdict

PLACE = 91


def judge(
    submissions: Annotated[
        list[Path], typer.Argument(help="Submissions, or folders of submissions.", metavar="SUBMISSIONS...")
    ],
    device: Annotated[str, typer.Option(help="One of tenth devices, or a device file.toml.")],
    share: Share = None,
    against: Annotated[str | None, typer.Option(help="The original: a GGUF, or a model as for fit.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of verdicts and logs.")] = Path("results"),
    tasks: Annotated[str, typer.Option(help="Such as piqa,arc_easy; none by default.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each task; all by default.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the tasks' JSONL files; the hub without it.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to judge on, from its end.")] = None,
    text_chunks: Annotated[int, typer.Option(min=4, help="Pieces of 2048 bytes of the text.")] = 32,
    context: Annotated[int, typer.Option(min=64, help="Tokens of context that must fit.")] = 2048,
    seed: Annotated[
        Path | None, typer.Option(help="File with a secret seed in hex: hidden items, and the gap to them.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Submissions at a time.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Of each; by default the cores over --jobs.")] = 0,
    seconds: Annotated[float, typer.Option(min=1, help="Most seconds of one run of an artifact.")] = 3600,
    cluster: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster to judge on; local starts one here.")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for the original's answers.")] = None,
    as_json: Json = False,
) -> None:
    """Judge submissions: run each, shut in, under one set of rules, and write a verdict with its log.

    What has a verdict under the same rules and conditions is not judged again.
    """
    from tenth.cli.console import ConsoleReporter
    from tenth.leaderboard import run

    options = run.Options(
        places=tuple(submissions),
        results=out,
        device=device,
        share=share or "10%",
        against=against,
        tasks=tuple(name.strip() for name in tasks.split(",") if name.strip()),
        limit=limit,
        data=data,
        text=text,
        text_chunks=text_chunks,
        context=context,
        seed=seed,
        jobs=jobs,
        threads=threads,
        seconds=seconds,
        cluster=cluster,
        work=work,
    )
    done = run.judge_all(options, ConsoleReporter())
    if as_json:
        verdicts = [verdict.model_dump() for verdict in done.verdicts]
        print(json.dumps({"verdicts": verdicts, "failed": done.failed}))
    else:
        for verdict in done.verdicts:
            print(line(verdict))
    if done.failed and as_json:
        raise typer.Exit(2)  # the object says which
    if done.failed:
        names = ", ".join(done.failed)
        raise NativeError(f"not judged: {names}; run the same command again, what has a verdict is kept")


def line(verdict: Verdict) -> str:
    """A verdict in a line."""
    if verdict.reason:
        return f"out     {verdict.submission}: {verdict.reason}"
    from tenth.core.format import written
    from tenth.core.metrics import metric

    figures = [f"{metric(r.name).title} {written(r).with_unit}" for r in verdict.readings if r.name in _SHOWN]
    return f"ranked  {verdict.submission}: {', '.join(figures)}"


_SHOWN = ("bits_per_byte", "kl", "peak", "decode", "device_decode", "device_joules")
