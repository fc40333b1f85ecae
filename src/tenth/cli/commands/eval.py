"""tenth eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tenth.cli.commands._options import Json

PLACE = 65


def eval(  # noqa: A001
    model: Annotated[str, typer.Argument(help="A folder made by tenth fit, a GGUF, or a model as for fit.")],
    tasks: Annotated[str, typer.Option(help="Such as piqa,arc_easy; an unknown name lists all.")],
    limit: Annotated[
        int | None, typer.Option(help="Items of each task, the same ones for everyone; all by default.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the tasks' JSONL files; the hub without it.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The original: a model to ask as well, or its eval.jsonl.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for eval.json and eval.jsonl.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="0 for all cores.")] = 0,
    as_json: Json = False,
) -> None:
    """Ask a model the tasks of lm-eval, and compare it with its original item by item.

    Writes eval.json and eval.jsonl (every item's outcome) into the bundle, or into --output.
    """
    from tenth.cli.console import ConsoleReporter
    from tenth.evaluation import evaluate, results

    voice = ConsoleReporter()
    of = evaluate.subject(model)
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    options = evaluate.Options(names, limit, data, threads=threads)
    original = None if against is None else evaluate.original(against)
    folder = evaluate.place(output or of.bundle)
    done, outcomes = evaluate.evaluate(of, options, voice)
    files = results.write(folder, done, outcomes) if folder else []
    if original is not None:
        done = evaluate.against((done, outcomes), original, options, voice)
        files = results.write(folder, done, outcomes) if folder else []
    if as_json:
        print(done.model_dump_json())
        return
    voice.evaluation(done)
    if files:
        print("\n".join(map(str, files)))
    else:
        voice.say("nothing was written; --output FOLDER keeps the outcomes")
