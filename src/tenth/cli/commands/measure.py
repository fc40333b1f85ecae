"""tenth measure."""

from __future__ import annotations

from typing import Annotated

import typer

from tenth.cli.commands._options import TARGET, Json, LlamaCli, Out, Port
from tenth.core.errors import InputError

PLACE = 60


def measure(
    out: Out,
    minutes: Annotated[float, typer.Option(min=0.0, help="Keep decoding that long, to see heat.")] = 0.0,
    depths: Annotated[
        str | None, typer.Option(help="Tokens of context to measure at, such as 0,512,2048.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of which the median is taken.")] = 3,
    counter: Annotated[
        str, typer.Option(help="Energy counter by name; auto takes what there is, none takes none.")
    ] = "auto",
    idle: Annotated[float, typer.Option(min=0.0, help="Seconds of rest before an energy counter.")] = 30.0,
    on: Annotated[str | None, typer.Option(help=f"Measure on another device: {TARGET}.")] = None,
    port: Port = None,
    llama_cli: LlamaCli = None,
    as_json: Json = False,
) -> None:
    """Measure a fitted model here, or --on another device: speed by depth, memory, energy, no network.

    Writes OUT/measure.json, or OUT/measure-<device>.json.
    """
    from tenth.cli.console import ConsoleReporter
    from tenth.measurement import measure as measuring
    from tenth.report import page

    voice = ConsoleReporter()
    chosen = tuple(read_depths(depths)) if depths is not None else ()
    if on is not None:
        from tenth.remote import run as remote

        asked: dict[str, object] = {"--repeats": repeats, "--counter": counter, "--idle": idle}
        asked |= {"--minutes": minutes} if minutes else {}
        verb = ["measure", "OUT", "--json", *(str(word) for pair in asked.items() for word in pair)]
        verb += ["--depths", depths] if depths is not None else []
        place = remote.Place(on, port, llama_cli)
        there, files = remote.measure(out, place, verb, voice, chosen, repeats)
        if as_json:
            print(there.model_dump_json())
        else:
            voice.measurement(there)
            print("\n".join(map(str, files)))
        return
    options = measuring.Options(chosen, repeats, minutes, counter, idle)
    measured = measuring.measure(out, options, voice)
    report = page.write(out)
    if as_json:
        print(measured.model_dump_json())
    else:
        voice.measurement(measured)
        voice.say(str(report))


def read_depths(words: str) -> list[int]:
    """ "0,512" -> [0, 512]."""
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise InputError(f"--depths {words!r} is no list of numbers; give such as 0,512,2048") from None
