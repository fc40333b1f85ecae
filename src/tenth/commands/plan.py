"""tenth plan."""

from __future__ import annotations

from tenth.commands._options import Asked, Json, Model, Work, spread

PLACE = 20


@spread
def plan(model: Model, asked: Asked, work: Work = None, as_json: Json = False) -> None:
    """Say what fit would decide, from config.json alone, or from what a fit measured in its --work folder."""
    from tenth import models

    asked.amount()
    device, demands = asked.demands()
    folder = models.resolve(model, config_only=True)
    budget = asked.budget([folder])

    from rich.console import Console

    from tenth import flow
    from tenth.console import Voice

    decided = flow.plan(folder, budget, work, device, demands)
    if as_json:
        print(decided.model_dump_json())
    else:
        Voice(Console(highlight=False)).plan(decided)
