"""tenth plan."""

from __future__ import annotations

from tenth.cli.commands._options import Asked, Json, Model, Work, spread

PLACE = 20


@spread
def plan(model: Model, asked: Asked, work: Work = None, as_json: Json = False) -> None:
    """Say what fit would decide, from config.json alone, or from what a fit measured in its --work folder."""
    from tenth.models import source

    asked.amount()
    device, requirements = asked.requirements()
    folder = source.resolve(model, config_only=True)
    budget = asked.budget([folder])

    from rich.console import Console

    from tenth.cli.console import ConsoleReporter
    from tenth.pipeline import fit

    decided = fit.plan(folder, budget, work, device, requirements)
    if as_json:
        print(decided.model_dump_json())
    else:
        ConsoleReporter(Console(highlight=False)).plan(decided)
