"""tenth chat."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

from cyclopts import Parameter

from tenth.cli.commands._options import Amount, Count, Json, Out, Positive

PLACE = 40


def chat(
    out: Out,
    /,
    *,
    prompt: Annotated[str | None, Parameter(help="Answer this and leave.")] = None,
    max_tokens: Annotated[Positive, Parameter(help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[Amount, Parameter(help="0 always takes the likeliest token.")] = 0.7,
    seed: Annotated[Count, Parameter(help="Seed of the draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Talk with a fitted model, offline; /quit or Ctrl-C ends it."""
    from tenth.cli.console import ConsoleReporter, print_json
    from tenth.runtime import chat as talking
    from tenth.runtime.bundle import open_bundle

    bundle = open_bundle(out)
    messages = iter([prompt]) if prompt is not None else typed_lines()
    sampling = talking.Sampling(max_tokens, temperature, seed)
    write = no_write if as_json else write_now
    turns = talking.talk(bundle, messages, write, ConsoleReporter().say, sampling)
    if as_json:
        print_json({"turns": [{"user": user, "answer": answer} for user, answer in turns]})


def typed_lines() -> Iterator[str]:
    """Lines of stdin, with a prompt sign when a person types them."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # a byte that is no UTF-8 becomes U+FFFD
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
