"""tenth submit."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tenth.cli.commands._options import Json
from tenth.core.errors import InputError

PLACE = 90


class Division(StrEnum):
    """Of leaderboard/records.py."""

    bits = "bits"
    structure = "structure"
    open = "open"
    scratch = "scratch"


class Kind(StrEnum):
    """What is copied."""

    gguf = "gguf"
    hf = "hf"


def submit(
    bundle: Annotated[Path | None, typer.Argument(help="A folder made by tenth fit.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The folder to make.")] = None,
    name: Annotated[str, typer.Option(help="Its title; the folder's name by default.")] = "",
    base: Annotated[str, typer.Option(help="The original's name, where the plan does not say it.")] = "",
    division: Annotated[Division | None, typer.Option(help="By default what the plan looks like.")] = None,
    method: Annotated[str, typer.Option(help="How it was made.")] = "",
    data: Annotated[str, typer.Option(help="All data that calibration or training saw.")] = "",
    licence: Annotated[str, typer.Option(help="Of the weights.")] = "",
    kind: Annotated[Kind, typer.Option("--format", help="hf takes OUT/hf instead of the GGUF.")] = Kind.gguf,
    template: Annotated[
        bool, typer.Option("--template", help="Print a submission.toml to fill in by hand.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a submission for the judge from a fitted model: its file, and submission.toml."""
    from tenth.leaderboard import submission

    if template:
        print(json.dumps({"template": submission.TEMPLATE}) if as_json else submission.TEMPLATE, end="")
        return
    if bundle is None or out is None:
        raise InputError("give a folder made by tenth fit and -o submissions/NAME, or --template")
    manifest = submission.make(
        bundle,
        out,
        name=name,
        base=base,
        division=division.value if division else None,
        method=method,
        data=data,
        licence=licence,
        folder=kind is Kind.hf,
    )
    if as_json:
        print(json.dumps({"submission": str(out), "manifest": manifest.model_dump()}))
        return
    from tenth.cli.console import ConsoleReporter

    unsaid = [key for key in ("data", "licence") if getattr(manifest, key) == submission.UNSAID]
    if unsaid:
        ConsoleReporter().say(
            f"{' and '.join(unsaid)} are {submission.UNSAID}; write them into {submission.MANIFEST}"
        )
    print(out)
