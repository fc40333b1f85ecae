"""Options that several verbs take: every field of a record is an option, the text below it is its help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter, Token
from cyclopts.validators import Number

from tenth.core.errors import InputError

if TYPE_CHECKING:
    from tenth.core.records import Budget, Requirements
    from tenth.devices.profile import Device
    from tenth.pipeline.options import Target

DEFAULT_CONTEXT = 2048
DEFAULT_SHARE = "10%"
TARGET = "user@host[:folder] by ssh, or adb:SERIAL"
FLAG = Parameter(negative=(), show_default=False)  # off unless given, without a --no- form


def options(title: str) -> Parameter:
    """How a record is read: its fields are options of the verb itself, under this title of the help."""
    return Parameter(name="*", group=Group.create_ordered(title))


def whole_number(_: type, tokens: Sequence[Token]) -> int:
    """The number that was typed; "2.5" is a mistake, and is not rounded."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r:.40} is not a whole number.") from None


Whole = Annotated[int, Parameter(converter=whole_number)]
Count = Annotated[Whole, Parameter(validator=Number(gte=0))]
Positive = Annotated[Whole, Parameter(validator=Number(gte=1))]
Port = Annotated[Whole, Parameter(validator=Number(gte=1, lte=65535))]
Amount = Annotated[float, Parameter(validator=Number(gte=0))]
Out = Annotated[Path, Parameter(help="A folder that tenth fit made.")]
Share = Annotated[
    str | None, Parameter(help="The share of the device's memory that may be used; 10% if not given.")
]
Work = Annotated[
    Path | None,
    Parameter(help="Folder for intermediate results, where a stopped run goes on; else the cache folder."),
]
Json = Annotated[
    bool,
    FLAG,
    Parameter(name="--json", help="Print one JSON object on stdout; everything else goes to stderr."),
]


def names(text: str | None) -> tuple[str, ...]:
    """Split a list that is separated by commas: "piqa, arc_easy" becomes ("piqa", "arc_easy")."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


@options("Device and budget")
@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What a fit is for: a budget, and what the device must do within it."""

    device: str | None = None
    """A device: a name that tenth devices lists, or a file.toml of your own."""
    share: Share = None
    memory: str | None = None
    """The memory that may be used, such as 800MB, where no device is given."""
    context: Whole | None = None
    """Tokens that the model can look back on; by default 2048, or as many as it was made for if fewer."""
    min_speed: float | None = None
    """The least writing speed on the device, in tokens/s."""
    max_joules: float | None = None
    """The most energy on the device for each token that it writes, in joules."""
    battery_hours: float | None = None
    """Hours that its battery must last while it writes, at --min-speed or else at 10 tokens/s."""
    prefer: Literal["quality", "speed"] = "quality"
    """speed takes the fastest plan whose predicted KL is at most 1.5 times the best one's, or 0.005 more."""
    backend: str = "cpu"
    """The part of the device that computes: cpu, opencl, hexagon, metal or cuda."""
    grid: float | None = None
    """Grams of CO2 per kWh of your electricity: adds the CO2 of an answer."""

    def resolve(self, models: Sequence[str]) -> Request:
        """What is asked of these models; a hub's config.json is fetched, and no weights.

        InputError for a budget or a device that cannot be, before anything is fetched.
        """
        from tenth.models.source import resolve
        from tenth.pipeline.options import Target

        self.amount()
        device, requirements = self.requirements()
        folders = [resolve(model, config_only=True) for model in models]
        return Request(folders, Target(self.budget(folders), device, requirements))

    def amount(self) -> tuple[int, str | None, float | None]:
        """(bytes, device, share); InputError unless exactly one of --device and --memory was given."""
        from tenth.devices import catalogue

        if self.device is not None and self.memory is None:
            device, share = catalogue.load(self.device), catalogue.parse_share(self.share or DEFAULT_SHARE)
            return int(device.bytes * share), device.name, share
        if self.memory is None or self.device is not None:
            raise InputError(
                "give either --device NAME (see: tenth devices), of which a tenth is taken, or --memory 800MB"
                + ("" if self.device is None else ", not both")
            )
        if self.share is not None:
            raise InputError("--share is a share of a --device; with --memory the budget is already given")
        return catalogue.parse_size(self.memory), None, None

    def requirements(self) -> tuple[Device | None, Requirements]:
        """The device and what is asked of it; InputError where something is asked of none."""
        from tenth.devices import catalogue
        from tenth.planning.requirements import checked

        device = catalogue.load(self.device) if self.device else None
        typed = {
            "min_speed": self.min_speed,
            "max_joules": self.max_joules,
            "battery_hours": self.battery_hours,
            "prefer": self.prefer,
            "backend": self.backend,
            "grid": self.grid,
        }
        return device, checked(device, typed)

    def budget(self, folders: Sequence[Path]) -> Budget:
        """The Budget for the models in `folders`; InputError for a context that one was not made for."""
        from tenth.core.records import Budget
        from tenth.models.checkpoint import open_config

        size, device, share = self.amount()
        limits = [architecture.context_limit(config) for config, architecture in map(open_config, folders)]
        longest, reason = min(limits)
        context = min(DEFAULT_CONTEXT, longest) if self.context is None else self.context
        if context < 1:
            raise InputError(f"--context {context} is not a number of tokens; give 1 or more")
        if context > longest:
            why = f"{reason} is {longest}" if reason.isidentifier() else reason
            raise InputError(f"--context {context} is more than this model can have: {why}")
        return Budget(memory=size, context=context, device=device, share=share)


@dataclass(frozen=True)
class Request:
    """A Target, and the models that it is for."""

    folders: list[Path]
    """Of every model; they may hold no more than config.json."""
    asked: Target


@options("Another device")
@dataclass(frozen=True, kw_only=True)
class Connection:
    """How another device is reached, and with what it runs a model."""

    port: Annotated[Port | None, Parameter(alias="-p")] = None
    """Port of its ssh server."""
    llama_cli: Path | None = None
    """llama.cpp for a device without Python: the program, or a build's folder."""


@options("Items of a task")
@dataclass(frozen=True, kw_only=True)
class Items:
    """Which items of a task are asked."""

    limit: Positive | None = None
    """Items of each task, the same ones for everyone; all by default."""
    data: Path | None = None
    """Folder of the tasks' JSONL files; the hub without it."""
