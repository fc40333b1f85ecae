"""tenth plan."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from tenth.cli.commands._options import Json, TargetOptions, Work

PLACE = 20


def plan(
    model: Annotated[str, Parameter(help="A Hugging Face folder, a name on its hub, or the word: bundled.")],
    /,
    *,
    target: TargetOptions = TargetOptions(),
    work: Work = None,
    as_json: Json = False,
) -> None:
    """Say whether MODEL will fit, how good and how fast it would be; config.json is enough."""
    request = target.resolve([model])

    from rich.console import Console

    from tenth.cli.console import ConsoleReporter, print_json
    from tenth.cli.screens import show_plan
    from tenth.pipeline import fit

    decided = fit.plan(request.folders[0], request.asked, work)
    if as_json:
        print_json(decided)
    else:
        show_plan(ConsoleReporter(Console(highlight=False)), decided)
