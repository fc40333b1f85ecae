"""tenth chat."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from tenth.cli.commands._options import Json, Out

PLACE = 40


def chat(
    out: Out,
    prompt: Annotated[str | None, typer.Option(help="Answer this and leave.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Talk with a fitted model, offline. /quit, Ctrl-C or the end of the input leaves."""
    from tenth.cli.console import ConsoleReporter
    from tenth.runtime import chat as talking
    from tenth.runtime.bundle import open_bundle

    bundle = open_bundle(out)
    messages = iter([prompt]) if prompt is not None else typed_lines()
    sampling = talking.Sampling(max_tokens, temperature, seed)
    turns = talking.talk(
        bundle, messages, no_write if as_json else write_now, ConsoleReporter().say, sampling
    )
    if as_json:
        print(json.dumps({"turns": [{"user": user, "answer": answer} for user, answer in turns]}))


def typed_lines() -> Iterator[str]:
    """Lines of stdin, with a prompt sign when a person types them."""
    typing = sys.stdin.isatty()
    while True:
        if typing:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line.rstrip("\n")


def write_now(piece: str) -> None:
    """Print a piece of an answer at once."""
    sys.stdout.write(piece)
    sys.stdout.flush()


def no_write(piece: str) -> None:
    """Keep a piece of an answer for the JSON object at the end."""
