"""tenth push."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from tenth.cli.commands._options import TARGET, Connection, Json, Out

PLACE = 70


def push(
    out: Out,
    target: Annotated[str, Parameter(help=f"{TARGET}.")],
    /,
    *,
    connection: Connection = Connection(),
    overwrite: Annotated[bool, Parameter(help="Replace what an earlier push left there.")] = False,
    as_json: Json = False,
) -> None:
    """Copy a fitted model, with what runs it, to another device, and print what to type there."""
    from tenth.cli.console import ConsoleReporter, print_json, print_lines
    from tenth.remote import run as remote

    place = remote.Place(target, connection.port, connection.llama_cli)
    pushed = remote.push(out, place, ConsoleReporter(), overwrite)
    if as_json:
        print_json(asdict(pushed))
    else:
        print_lines(pushed.commands)
