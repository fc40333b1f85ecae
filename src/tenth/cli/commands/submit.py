"""tenth submit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tenth.cli.commands._options import FLAG, Json, options
from tenth.core.errors import InputError

PLACE = 90
Declared = Annotated[str, Parameter(show_default=False)]


@options("What it says of itself")
@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a submission says of itself; what is not given comes from the plan of the fit."""

    name: Declared = ""
    """Its title; the folder's name by default."""
    base: Declared = ""
    """The original's name, where the plan does not say it."""
    division: Literal["bits", "structure", "open", "scratch"] | None = None
    """By default what the plan looks like."""
    method: Declared = ""
    """How it was made."""
    data: Declared = ""
    """All data that calibration or training saw."""
    licence: Declared = ""
    """Of the weights."""


def submit(
    bundle: Annotated[Path | None, Parameter(help="A folder made by tenth fit.")] = None,
    /,
    *,
    out: Annotated[Path | None, Parameter(alias="-o", help="The folder to make.")] = None,
    declaration: Declaration = Declaration(),
    form: Annotated[
        Literal["gguf", "hf"], Parameter(name="--format", help="hf takes OUT/hf instead of the GGUF.")
    ] = "gguf",
    template: Annotated[bool, FLAG, Parameter(help="Print a submission.toml to fill in by hand.")] = False,
    as_json: Json = False,
) -> None:
    """Make a submission for tenth judge from a fitted model: its file, and submission.toml."""
    from tenth.cli.console import ConsoleReporter, print_json, print_line, print_text
    from tenth.leaderboard import submission

    if template:
        if as_json:
            print_json({"template": submission.TEMPLATE})
        else:
            print_text(submission.TEMPLATE)
        return
    if bundle is None or out is None:
        raise InputError("give a folder made by tenth fit and -o submissions/NAME, or --template")
    declared = submission.Statement(**asdict(declaration))
    manifest = submission.make(bundle, out, declared, folder=form == "hf")
    if as_json:
        print_json({"submission": str(out), "manifest": manifest.model_dump()})
        return
    undeclared = [key for key in ("data", "licence") if getattr(manifest, key) == submission.UNSAID]
    if undeclared:
        ConsoleReporter().say(
            f"{' and '.join(undeclared)} are {submission.UNSAID}; write them into {submission.MANIFEST}"
        )
    print_line(out)
