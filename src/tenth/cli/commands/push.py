"""tenth push."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from tenth.cli.commands._options import TARGET, Json, LlamaCli, Out, Port

PLACE = 70


def push(
    out: Out,
    target: Annotated[str, typer.Argument(help=f"{TARGET}.")],
    port: Port = None,
    llama_cli: LlamaCli = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what an earlier push left there.")] = False,
    as_json: Json = False,
) -> None:
    """Copy a fitted model, and what runs it, to another device; say what to type there."""
    from tenth.cli.console import ConsoleReporter
    from tenth.remote import run as remote

    pushed = remote.push(out, remote.Place(target, port, llama_cli), ConsoleReporter(), overwrite)
    if as_json:
        print(json.dumps(asdict(pushed)))
    else:
        print("\n".join(pushed.commands))
