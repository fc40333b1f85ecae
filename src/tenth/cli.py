"""The commands. Heavy modules are imported inside them, so that `tenth --help` answers at once.

With --json, stdout carries one JSON object and nothing else; an error is {"error": {"kind", "message", ...}}.
Exit status: 0 done, 2 an error that is explained in one line, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tenth import __version__
from tenth.bundle import BUNDLE_FILES, check_destination
from tenth.errors import BudgetError, InputError, TenthError

if TYPE_CHECKING:
    from tenth.profile import Device
    from tenth.records import Budget, Demands

DEFAULT_CONTEXT = 2048
STOPPED = 130  # exit status after Ctrl-C
USAGE: type[Exception] = typer.BadParameter.__mro__[1]  # click's UsageError, which typer does not export

app = typer.Typer(
    help="Fit a language model into a share of a device's memory, and prove that it fits.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

Model = Annotated[str, typer.Argument(help="A Hugging Face folder, a hub name, or the word: bundled.")]
Out = Annotated[Path, typer.Argument(help="A folder made by tenth fit.")]
DeviceName = Annotated[
    str | None, typer.Option("--device", help="One of tenth devices, or a device file.toml.")
]
Share = Annotated[str | None, typer.Option(help="Share of the device's memory; 10% unless told otherwise.")]
Memory = Annotated[str | None, typer.Option(help="The budget itself instead of a device, such as 800MB.")]
Context = Annotated[
    int | None, typer.Option(help="Tokens of context: 2048, or all of a shorter-sighted model.")
]
Work = Annotated[
    Path | None, typer.Option(help="Folder for intermediate results; a stopped run resumes there.")
]
MinSpeed = Annotated[float | None, typer.Option(help="Least decoding speed on the device, tokens/s.")]
MaxJoules = Annotated[float | None, typer.Option(help="Most joules per decoded token on the device.")]
BatteryHours = Annotated[
    float | None, typer.Option(help="Hours that its battery must last at --min-speed, or at 10 tokens/s.")
]
BackendName = Annotated[str, typer.Option(help="Of the device: cpu, opencl, hexagon, metal or cuda.")]
Grid = Annotated[float | None, typer.Option(help="Grams of CO2 per kWh: adds an answer's CO2.")]
TARGET = "user@host[:folder] by ssh, or adb:SERIAL"
Port = Annotated[int | None, typer.Option("--port", "-p", min=1, max=65535, help="Port of its ssh server.")]
LlamaCli = Annotated[
    Path | None, typer.Option(help="llama.cpp for a device without Python: the program, or a build's folder.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; all else on stderr.")]


class Effort(StrEnum):
    """The settings of effort.py."""

    fast = "fast"
    normal = "normal"
    best = "best"


class Compute(StrEnum):
    """Where torch computes."""

    cpu = "cpu"
    cuda = "cuda"


class Prefer(StrEnum):
    """What is worth more."""

    quality = "quality"
    speed = "speed"


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Options before the command."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def fit(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to make.")],
    device: DeviceName = None,
    share: Share = None,
    memory: Memory = None,
    context: Context = None,
    min_speed: MinSpeed = None,
    max_joules: MaxJoules = None,
    battery_hours: BatteryHours = None,
    prefer: Annotated[
        Prefer,
        typer.Option(help="speed gives up to half more damage, or 0.005 nats, for fewer seconds per token."),
    ] = Prefer.quality,
    backend: BackendName = "cpu",
    grid: Grid = None,
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
    baselines: Annotated[
        int, typer.Option(min=0, help="Stock recipes to measure beside it; 0 saves that time.")
    ] = 2,
    work: Work = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a finished result in OUT.")] = False,
    as_json: Json = False,
) -> None:
    """Compress MODEL for a device, measure it, and write OUT/model.gguf with its report."""
    from tenth import models

    check_destination(out, overwrite)
    for file in (text, eval_text):
        if file is not None and not file.is_file():
            raise InputError(f"no text file {str(file)!r}; give a UTF-8 text")
    read_amount(device, share, memory)  # a wrong budget is better heard of before a download
    wanted = demand(
        device, min_speed=min_speed, max_joules=max_joules, battery_hours=battery_hours, prefer=prefer.value,
        backend=backend, grid=grid,
    )  # fmt: skip
    folder = models.resolve(model, config_only=True)
    budget = make_budget(folder, device, share, memory, context)

    from tenth import flow, report
    from tenth.console import Voice

    if models.is_remote(model):
        flow.plan(folder, budget, work, *wanted)  # nor is a download begun for what cannot fit
        folder = models.resolve(model)
    voice = Voice()
    options = flow.FitOptions(
        model=folder, destination=out, budget=budget, device=wanted[0], demands=wanted[1],
        text=text, eval_text=eval_text,
        effort=effort.value, windows=windows, seed=seed, work=work, threads=threads,
        compute=device_compute.value, overwrite=overwrite, baselines=baselines,
    )  # fmt: skip
    card = flow.fit(options, voice)
    if as_json:
        print(card.model_dump_json())
    verdict = report.verdict(report.read_bundle(out)[0], card)
    voice.summary(card, verdict, [str(out / name) for name in sorted(BUNDLE_FILES)])


@app.command()
def plan(
    model: Model,
    device: DeviceName = None,
    share: Share = None,
    memory: Memory = None,
    context: Context = None,
    min_speed: MinSpeed = None,
    max_joules: MaxJoules = None,
    battery_hours: BatteryHours = None,
    prefer: Annotated[
        Prefer,
        typer.Option(help="speed gives up to half more damage, or 0.005 nats, for fewer seconds per token."),
    ] = Prefer.quality,
    backend: BackendName = "cpu",
    grid: Grid = None,
    work: Work = None,
    as_json: Json = False,
) -> None:
    """Say what fit would decide, from config.json alone, or from what a fit measured in its --work folder."""
    from tenth import models

    read_amount(device, share, memory)
    wanted = demand(
        device, min_speed=min_speed, max_joules=max_joules, battery_hours=battery_hours, prefer=prefer.value,
        backend=backend, grid=grid,
    )  # fmt: skip
    folder = models.resolve(model, config_only=True)
    budget = make_budget(folder, device, share, memory, context)

    from rich.console import Console

    from tenth import flow
    from tenth.console import Voice

    decided = flow.plan(folder, budget, work, *wanted)
    if as_json:
        print(decided.model_dump_json())
    else:
        Voice(Console(highlight=False)).plan(decided)


@app.command()
def devices(share: Share = None, as_json: Json = False) -> None:
    """List the known devices and what a share of each is."""
    from tenth import devices as known_devices
    from tenth.console import Voice

    part = known_devices.parse_share(share or "10%")
    found = known_devices.known()
    if as_json:
        rows = [device.model_dump() | {"share": part, "budget": int(device.bytes * part)} for device in found]
        print(json.dumps({"devices": rows}))
        return
    Voice.devices(found, part)


@app.command()
def chat(
    out: Out,
    prompt: Annotated[str | None, typer.Option(help="Answer this and leave.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Talk with a fitted model, offline. /quit, Ctrl-C or the end of the input leaves."""
    from tenth import chat as talking
    from tenth import serve as serving
    from tenth.console import Voice

    bundle = serving.open_bundle(out)
    messages = iter([prompt]) if prompt is not None else typed_lines()
    sampling = talking.Sampling(max_tokens, temperature, seed)
    turns = talking.talk(bundle, messages, no_write if as_json else write_now, Voice().say, sampling)
    if as_json:
        print(json.dumps({"turns": [{"user": user, "answer": answer} for user, answer in turns]}))


@app.command()
def serve(
    out: Out,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8080,
    as_json: Json = False,
) -> None:
    """Serve a fitted model to this machine only, with an OpenAI-compatible HTTP interface."""
    from tenth import serve as serving
    from tenth.console import Voice

    with serving.running(serving.open_bundle(out), port=port) as server:
        try:
            if as_json:
                print(json.dumps({"url": f"{server.url}/v1", "folder": str(out)}), flush=True)
            Voice().say(f"serving on {server.url}/v1, for this machine only; Ctrl-C stops")
            server.wait()
        except KeyboardInterrupt:
            Voice().say("stopped")


@app.command()
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
    from tenth import measure as measuring
    from tenth.console import Voice

    voice = Voice()
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
    if as_json:
        print(measured.model_dump_json())
    else:
        voice.measurement(measured)
        voice.say(str(out / "report.html"))


@app.command()
def push(
    out: Out,
    target: Annotated[str, typer.Argument(help=f"{TARGET}.")],
    port: Port = None,
    llama_cli: LlamaCli = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what an earlier push left there.")] = False,
    as_json: Json = False,
) -> None:
    """Copy a fitted model, and what runs it, to another device; say what to type there."""
    from dataclasses import asdict

    from tenth.console import Voice
    from tenth.remote import run as remote

    pushed = remote.push(out, remote.Place(target, port, llama_cli), Voice(), overwrite)
    if as_json:
        print(json.dumps(asdict(pushed)))
    else:
        print("\n".join(pushed.commands))


@app.command()
def report(out: Out, as_json: Json = False) -> None:
    """Draw OUT/report.html again from OUT/plan.json and OUT/scorecard.json."""
    from tenth import report as drawing

    page = drawing.write(out)
    print(json.dumps({"report": str(page)}) if as_json else page)


def read_amount(
    device: str | None, share: str | None, memory: str | None
) -> tuple[int, str | None, float | None]:
    """The budget from the three options, of which exactly one of --device and --memory must be given."""
    from tenth import devices as known_devices

    if (device is None) == (memory is None):
        raise InputError(
            "give either --device NAME (see: tenth devices), of which a tenth is taken, or --memory 800MB"
            + ("" if device is None else ", not both")
        )
    if memory is not None:
        if share is not None:
            raise InputError("--share is a share of a --device; with --memory the budget is already given")
        return known_devices.parse_size(memory), None, None
    assert device is not None
    found, part = known_devices.load(device), known_devices.parse_share(share or "10%")
    return int(found.bytes * part), found.name, part


def demand(device: str | None, **given: Any) -> tuple[Device | None, Demands]:
    """The device and what is asked of it; InputError where something is asked of none."""
    from tenth import devices as known_devices
    from tenth import outlook

    found = known_devices.load(device) if device else None
    return found, outlook.demands(found, **given)


def make_budget(
    folder: Path, device: str | None, share: str | None, memory: str | None, context: int | None
) -> Budget:
    """The Budget for the model in `folder`; InputError for a context that it was not made for."""
    from tenth.checkpoint import open_config
    from tenth.records import Budget

    size, name, part = read_amount(device, share, memory)
    config, architecture = open_config(folder)
    longest, reason = architecture.context_limit(config)
    if context is None:
        context = min(DEFAULT_CONTEXT, longest)
    if context < 1:
        raise InputError(f"--context {context} is not a number of tokens; give 1 or more")
    if context > longest:
        why = f"{reason} is {longest}" if reason.isidentifier() else reason
        raise InputError(f"--context {context} is more than this model can have: {why}")
    return Budget(memory=size, context=context, device=name, share=part)


def read_depths(words: str) -> list[int]:
    """ "0,512" -> [0, 512]."""
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise InputError(f"--depths {words!r} is no list of numbers; give such as 0,512,2048") from None


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


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status; no traceback for a person's mistake."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a model's name must not break a narrow terminal
    command = typer.main.get_command(app)
    sys.exit(
        guarded(lambda: command.main(words, prog_name="tenth", standalone_mode=False), "--json" in words)
    )


def guarded(run: Callable[[], Any], as_json: bool) -> int:
    """The exit status of `run`; a person's mistake becomes one line, any other exception passes through."""
    try:
        status = run()
        if status == STOPPED:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
    except TenthError as error:
        _tell(error, as_json)
        return 2
    except USAGE as error:
        context = getattr(error, "ctx", None)
        hint = f" (see: {context.command_path} --help)" if context else ""
        message = str(getattr(error, "format_message", error.__str__)())
        if context and type(error).__name__ == "NoArgsIsHelpError":
            print(message, file=sys.stderr)
        else:
            _tell(InputError(f"{message}{hint}"), as_json)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        # A terminal has just shown ^C on the line of the progress bar.
        start = "\n" if sys.stderr.isatty() else ""
        print(f"{start}stopped; run the same command again to resume", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        sys.stderr.close()  # the reader left; nothing more to say
        return 0
    return status if isinstance(status, int) else 0


def _tell(error: TenthError, as_json: bool) -> None:
    """One line on stderr, the same as JSON on stdout, and for a budget the smallest that would do."""
    line = " ".join(str(error).split())
    print(f"tenth: error: {''.join(c for c in line if c.isprintable())}", file=sys.stderr)
    smallest = error.smallest if isinstance(error, BudgetError) else {}
    if smallest:
        from tenth.console import Voice

        Voice().smallest(smallest)
    if as_json:
        body: dict[str, Any] = {"kind": type(error).__name__, "message": line}
        print(json.dumps({"error": body | ({"smallest": smallest} if smallest else {})}))
