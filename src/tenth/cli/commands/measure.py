"""tenth measure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter

from tenth.cli.commands._options import TARGET, Amount, Connection, Json, Out, Positive, options
from tenth.core.errors import InputError

PLACE = 60


@options("What is measured")
@dataclass(frozen=True, kw_only=True)
class Series:
    """What is measured, and for how long."""

    minutes: Amount = 0.0
    """Keep decoding that long, to see heat."""
    depths: str | None = None
    """Tokens of context to measure at, such as 0,512,2048."""
    repeats: Positive = 3
    """Runs of which the median is taken."""
    counter: str = "auto"
    """Energy counter by name; auto takes what there is, none takes none."""
    idle: Amount = 30.0
    """Seconds of rest before an energy counter."""


def measure(
    out: Out,
    /,
    *,
    series: Series = Series(),
    on: Annotated[str | None, Parameter(help=f"Measure on another device: {TARGET}.")] = None,
    connection: Connection = Connection(),
    as_json: Json = False,
) -> None:
    """Measure a fitted model here, or --on another device: speed, memory, energy, and that it runs offline.

    Writes OUT/measure.json, or OUT/measure-<device>.json.
    """
    from tenth.cli.console import ConsoleReporter, print_json, print_lines
    from tenth.cli.screens import show_measurement
    from tenth.measurement import measure as measuring
    from tenth.report import page

    reporter = ConsoleReporter()
    depths = read_depths(series.depths)
    if on is not None:
        from tenth.remote import run as remote

        place = remote.Place(on, connection.port, connection.llama_cli)
        there, files = remote.measure(out, place, words_there(series), reporter, depths, series.repeats)
        if as_json:
            print_json(there)
        else:
            show_measurement(reporter, there)
            print_lines(files)
        return
    settings = measuring.MeasureSettings(depths, series.repeats, series.minutes, series.counter, series.idle)
    measured = measuring.measure(out, settings, reporter)
    report = page.write(out)
    if as_json:
        print_json(measured)
    else:
        show_measurement(reporter, measured)
        reporter.say(str(report))


def words_there(series: Series) -> list[str]:
    """What tenth on the other device is called with; OUT stands for the folder there."""
    words = ["measure", "OUT", "--json"]
    for name, value in asdict(series).items():
        if value != getattr(Series, name):  # the other device has the same defaults
            words += [f"--{name}", str(value)]
    return words


def read_depths(text: str | None) -> tuple[int, ...]:
    """Read depths in tokens: "0,512" becomes (0, 512)."""
    try:
        return tuple(int(word) for word in text.split(",")) if text is not None else ()
    except ValueError:
        raise InputError(f"--depths {text!r} is no list of numbers; give such as 0,512,2048") from None
