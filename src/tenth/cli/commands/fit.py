"""tenth fit."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tenth.cli.commands._options import Asked, Json, Models, Work, spread
from tenth.core.errors import InputError

if TYPE_CHECKING:
    from tenth.models.formats.hf import FloatType

PLACE = 10


class Effort(StrEnum):
    """The settings of pipeline/effort.py."""

    fast = "fast"
    normal = "normal"
    best = "best"


class Compute(StrEnum):
    """Where torch computes."""

    cpu = "cpu"
    cuda = "cuda"


class Form(StrEnum):
    """What is written beside model.gguf."""

    gguf = "gguf"
    hf = "hf"


class Precision(StrEnum):
    """Types of a Hugging Face folder."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


STORED: dict[str, FloatType] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@spread
def fit(
    models: Models,
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
    structure: Annotated[
        bool, typer.Option(help="Remove parts of the model where bits alone are too few.")
    ] = True,
    homogeneous: Annotated[
        bool, typer.Option("--homogeneous", help="Blocks of a smaller model stay alike.")
    ] = False,
    heal: Annotated[
        str | None, typer.Option(help="Train a smaller model towards the original: 10min, or 5Mtok.")
    ] = None,
    vocabulary: Annotated[
        str | None, typer.Option(help="Tokens to keep, such as 32k: those that --text uses most.")
    ] = None,
    languages: Annotated[
        str | None, typer.Option(help="Keep tokens of these languages' scripts alone, such as en,de.")
    ] = None,
    quantise: Annotated[bool, typer.Option(help="--no-quantise keeps matrices in half precision.")] = True,
    form: Annotated[
        Form,
        typer.Option("--format", help="hf also writes a Hugging Face folder, OUT/hf; blocks stay alike."),
    ] = Form.gguf,
    dtype: Annotated[Precision, typer.Option(help="Of the Hugging Face folder.")] = Precision.float16,
    baselines: Annotated[
        int, typer.Option(min=0, help="Stock recipes to measure beside it; 0 saves that time.")
    ] = 2,
    work: Work = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a finished result in OUT.")] = False,
    as_json: Json = False,
) -> None:
    """Compress MODEL for a device, measure it, and write OUT/model.gguf with its report.

    Of several models the one is taken that says most about held-out text.
    """
    from tenth.models.source import is_remote, resolve
    from tenth.runtime.bundle import BUNDLE_FILES, check_destination

    check_destination(out, overwrite)
    for file in (text, eval_text):
        if file is not None and not file.is_file():
            raise InputError(f"no text file {str(file)!r}; give a UTF-8 text")
    asked.amount()  # a wrong budget is better heard of before a download
    device, requirements = asked.requirements()
    folders = [resolve(model, config_only=True) for model in models]
    budget = asked.budget(folders)

    from tenth.cli.console import ConsoleReporter
    from tenth.pipeline import fit as flow
    from tenth.report import page
    from tenth.runtime import bundle

    for model, folder in zip(models, folders, strict=True):
        if is_remote(model) and not structure:
            flow.plan(
                folder, budget, work, device, requirements
            )  # nor is a download begun for what cannot fit
    first, *others = [resolve(model) for model in models]
    voice = ConsoleReporter()
    options = flow.FitOptions(
        model=first,
        others=tuple(others),
        destination=out,
        budget=budget,
        device=device,
        requirements=requirements,
        text=text,
        eval_text=eval_text,
        effort=effort.value,
        windows=windows,
        seed=seed,
        work=work,
        threads=threads,
        compute=device_compute.value,
        overwrite=overwrite,
        baselines=baselines,
        structure=structure,
        homogeneous=homogeneous,
        heal=read_heal(heal),
        quantise=quantise,
        vocabulary=read_tokens(vocabulary),
        languages=tuple(languages.split(",")) if languages else (),
        folder=STORED[dtype.value] if form is Form.hf else None,
    )
    card = flow.fit(options, voice)
    if as_json:
        print(card.model_dump_json())
    verdict = page.verdict(bundle.read_bundle(out)[0], card)
    voice.summary(card, verdict, [str(out / name) for name in sorted(BUNDLE_FILES)])


def read_heal(amount: str | None) -> str | None:
    """The amount, if it is one."""
    from tenth.distillation.budget import TrainingBudget

    if amount is not None:
        TrainingBudget.parse(amount)
    return amount


def read_tokens(words: str | None) -> int | None:
    """ "8k" -> 8192."""
    if words is None:
        return None
    match = re.fullmatch(r"(\d{1,9})(k?)", words.strip().lower())
    if match is None or not int(match[1]):
        raise InputError(f"--vocabulary {words!r:.40} is no number of tokens; give such as 32k or 32000")
    return int(match[1]) * (1024 if match[2] else 1)
