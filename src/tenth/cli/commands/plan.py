"""tenth plan."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from tenth.cli.commands._options import Json, Target, Work

PLACE = 20


def plan(
    model: Annotated[str, Parameter(help="A Hugging Face folder, a hub name, or the word: bundled.")],
    /,
    *,
    target: Target = Target(),
    work: Work = None,
    as_json: Json = False,
) -> None:
    """Say what fit would decide, from config.json alone, or from what a fit measured in its --work folder."""
    request = target.resolve([model])

    from rich.console import Console

    from tenth.cli.console import ConsoleReporter
    from tenth.pipeline import fit

    decided = fit.plan(request.folders[0], request.budget, work, request.device, request.requirements)
    if as_json:
        print(decided.model_dump_json())
    else:
        ConsoleReporter(Console(highlight=False)).plan(decided)
