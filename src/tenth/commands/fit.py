"""tenth fit."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tenth.commands._options import Asked, Json, Model, Work, spread
from tenth.errors import InputError

PLACE = 10


class Effort(StrEnum):
    """The settings of effort.py."""

    fast = "fast"
    normal = "normal"
    best = "best"


class Compute(StrEnum):
    """Where torch computes."""

    cpu = "cpu"
    cuda = "cuda"


@spread
def fit(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to make.")],
    asked: Asked,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to calibrate on.")] = None,
    eval_text: Annotated[Path | None, typer.Option(help="UTF-8 text to measure on.")] = None,
    effort: Annotated[
        Effort, typer.Option(help="How hard to try; the time it takes is said first.")
    ] = Effort.normal,
    windows: Annotated[
        int | None, typer.Option(min=8, help="Windows of text to calibrate on; 32, 128 or 256 by effort.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 takes all cores.")] = 0,
    device_compute: Annotated[Compute, typer.Option(help="Where to calibrate and round.")] = Compute.cpu,
    baselines: Annotated[
        int, typer.Option(min=0, help="Stock recipes to measure beside it; 0 saves that time.")
    ] = 2,
    work: Work = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a finished result in OUT.")] = False,
    as_json: Json = False,
) -> None:
    """Compress MODEL for a device, measure it, and write OUT/model.gguf with its report."""
    from tenth import models
    from tenth.bundle import BUNDLE_FILES, check_destination

    check_destination(out, overwrite)
    for file in (text, eval_text):
        if file is not None and not file.is_file():
            raise InputError(f"no text file {str(file)!r}; give a UTF-8 text")
    asked.amount()  # a wrong budget is better heard of before a download
    device, demands = asked.demands()
    folder = models.resolve(model, config_only=True)
    budget = asked.budget(folder)

    from tenth import flow, report
    from tenth.console import Voice

    if models.is_remote(model):
        flow.plan(folder, budget, work, device, demands)  # nor is a download begun for what cannot fit
        folder = models.resolve(model)
    voice = Voice()
    options = flow.FitOptions(
        model=folder, destination=out, budget=budget, device=device, demands=demands,
        text=text, eval_text=eval_text,
        effort=effort.value, windows=windows, seed=seed, work=work, threads=threads,
        compute=device_compute.value, overwrite=overwrite, baselines=baselines,
    )  # fmt: skip
    card = flow.fit(options, voice)
    if as_json:
        print(card.model_dump_json())
    verdict = report.verdict(report.read_bundle(out)[0], card)
    voice.summary(card, verdict, [str(out / name) for name in sorted(BUNDLE_FILES)])
