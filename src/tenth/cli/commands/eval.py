"""tenth eval."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tenth.cli.commands._options import Count, Items, Json, names

PLACE = 65


def eval(  # noqa: A001
    model: Annotated[str, Parameter(help="A folder made by tenth fit, a GGUF, or a model as for fit.")],
    /,
    *,
    tasks: Annotated[str, Parameter(help="Such as piqa,arc_easy; an unknown name lists all.")],
    items: Items = Items(),
    against: Annotated[
        str | None, Parameter(help="The original: a model to ask as well, or its eval.jsonl.")
    ] = None,
    output: Annotated[Path | None, Parameter(alias="-o", help="Folder for eval.json and eval.jsonl.")] = None,
    threads: Annotated[Count, Parameter(help="0 for all cores.")] = 0,
    as_json: Json = False,
) -> None:
    """Ask a model questions with known answers, and compare it with its original one by one.

    Writes eval.json and eval.jsonl (every item's outcome) into the bundle, or into --output.
    """
    from tenth.cli.console import ConsoleReporter, print_json, print_lines
    from tenth.cli.screens import show_evaluation
    from tenth.core.store import claimed
    from tenth.evaluation import evaluate, results
    from tenth.evaluation.settings import EvalSettings

    reporter = ConsoleReporter()
    subject = evaluate.subject(model)
    settings = EvalSettings(tasks=names(tasks), limit=items.limit, data=items.data, threads=threads)
    original = None if against is None else evaluate.original(against)
    folder = evaluate.place(output or subject.bundle)
    taken = f"{folder} is being measured by another run of tenth; wait for it, or give another -o"
    with claimed(folder, taken) if folder else nullcontext():
        evaluation, outcomes = evaluate.evaluate(subject, settings, reporter)
        files = results.write(folder, evaluation, outcomes) if folder else []
        if original is not None:
            evaluation = evaluate.against((evaluation, outcomes), original, settings, reporter)
            files = results.write(folder, evaluation, outcomes) if folder else []
    if as_json:
        print_json(evaluation)
        return
    show_evaluation(reporter, evaluation)
    if files:
        print_lines(files)
    else:
        reporter.say("nothing was written; --output FOLDER keeps the outcomes")
