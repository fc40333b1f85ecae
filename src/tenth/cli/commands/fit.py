"""tenth fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from tenth.cli.commands._options import FLAG, Count, Json, Request, TargetOptions, Whole, Work, names, options
from tenth.core.errors import InputError

if TYPE_CHECKING:
    from tenth.models.formats.hf import FloatType
    from tenth.pipeline.options import FitOptions

PLACE = 10
STORED: dict[str, FloatType] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@options("Text and effort")
@dataclass(frozen=True, kw_only=True)
class MakingOptions:
    """The texts of a fit, and how hard it tries."""

    text: Path | None = None
    """A UTF-8 text like those that the model will see: it shows which weights matter."""
    eval_text: Path | None = None
    """A UTF-8 text to judge the result on; by default the end of --text."""
    effort: Literal["fast", "normal", "best"] = "normal"
    """How hard to try; how long it will take is printed first."""
    windows: Annotated[Whole | None, Parameter(validator=Number(gte=8))] = None
    """Pieces of 512 tokens to calibrate on, 8 or more; by effort 32, 128 or 256."""
    baselines: Count = 2
    """How many stock recipes are made and measured beside it; 0 saves that time."""
    seed: Whole = 0
    """The seed of everything random."""
    threads: Count = 0
    """Threads to compute with; 0 takes all cores."""
    device_compute: Literal["cpu", "cuda"] = "cpu"
    """What calibrates, rounds and trains."""


@options("A smaller model")
@dataclass(frozen=True, kw_only=True)
class RemovalOptions:
    """What may be removed from the model, and how that is made good."""

    structure: bool = True
    """Whether parts of the model may be removed where fewer bits alone are not enough."""
    homogeneous: Annotated[bool, FLAG] = False
    """Where parts are removed: give all blocks the same width."""
    heal: str | None = None
    """Where parts are removed: train the rest towards the original, for 10min or on 5Mtok of text."""
    vocabulary: str | None = None
    """How many tokens to keep, such as 32k: those that --text uses most."""
    languages: str | None = None
    """Keep only tokens in the scripts of these languages, such as en,de."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Output:
    """Which files a fit writes, and where."""

    out: Annotated[Path, Parameter(alias="-o")]
    """The folder to make: OUT."""
    quantise: bool = True
    """Whether matrices are stored in fewer bits; --no-quantise keeps 16 for each weight."""
    form: Annotated[Literal["gguf", "hf"], Parameter(name="--format")] = "gguf"
    """hf also writes a Hugging Face folder, OUT/hf; all blocks then get the same width."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    """The precision of the Hugging Face folder."""
    work: Work = None
    overwrite: bool = False
    """Whether a finished result in OUT is replaced."""


def fit(
    models: Annotated[
        list[str],
        Parameter(
            help="A Hugging Face folder, a name on its hub, or: bundled. Of several, the best is kept."
        ),
    ],
    /,
    *,
    output: Output,
    target: TargetOptions = TargetOptions(),
    making: MakingOptions = MakingOptions(),
    structure: RemovalOptions = RemovalOptions(),
    as_json: Json = False,
) -> None:
    """Make MODEL small enough for a device, measure it, and write OUT/model.gguf with its report.

    Each of several models is fitted; the one with the fewest bits per byte of held-out text is kept.
    """
    from tenth.core.store import default_work
    from tenth.models.source import is_remote, resolve
    from tenth.runtime import bundle

    bundle.check_destination(output.out, output.overwrite)
    bundle.check_unclaimed(output.out)
    bundle.check_apart(output.out, output.work or default_work())
    for file in (making.text, making.eval_text):
        if file is not None and not file.is_file():
            raise InputError(f"no text file {str(file)!r}; give a UTF-8 text")
    request = target.resolve(models)

    from tenth.cli.console import ConsoleReporter, print_json
    from tenth.cli.screens import show_fit
    from tenth.pipeline import fit as flow
    from tenth.report.verdict import verdict

    for model, folder in zip(models, request.folders, strict=True):
        if is_remote(model) and not structure.structure:  # no download is begun for what cannot fit
            flow.plan(folder, request.asked, output.work)
    chosen = fit_options([resolve(model) for model in models], request, making, structure, output)
    reporter = ConsoleReporter()
    card = flow.fit(chosen, reporter)
    if as_json:
        print_json(card)
    words = verdict(bundle.read_bundle(output.out)[0], card)
    show_fit(reporter, card, words, [str(output.out / name) for name in sorted(bundle.BUNDLE_FILES)])


def fit_options(
    folders: list[Path], request: Request, making: MakingOptions, structure: RemovalOptions, output: Output
) -> FitOptions:
    """The pipeline's options for the models in these folders; InputError for an amount that is none."""
    from tenth.core.jobs import Compute
    from tenth.pipeline import options as pipeline

    removal = pipeline.Removal(
        structure=structure.structure,
        alike=structure.homogeneous or output.form == "hf",  # a Hugging Face folder can be nothing else
        heal=structure.heal,
        vocabulary=read_tokens(structure.vocabulary),
        languages=names(structure.languages),
    )
    return pipeline.FitOptions(
        models=tuple(folders),
        destination=output.out,
        target=request.asked,
        making=pipeline.Making(
            text=making.text,
            eval_text=making.eval_text,
            effort=making.effort,
            windows=making.windows,
            seed=making.seed,
            compute=Compute(threads=making.threads, device=making.device_compute),
            quantise=output.quantise,
        ),
        removal=removal,
        folder=STORED[output.dtype] if output.form == "hf" else None,
        baselines=making.baselines,
        work=output.work,
        overwrite=output.overwrite,
    )


def read_tokens(text: str | None) -> int | None:
    """Read a number of tokens: "8k" is 8192. InputError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})(k?)", text.strip().lower())
    if match is None or not int(match[1]):
        raise InputError(f"--vocabulary {text!r:.40} is no number of tokens; give such as 32k or 32000")
    return int(match[1]) * (1024 if match[2] else 1)
