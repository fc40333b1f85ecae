"""Options that several verbs take, and the group of them that says what a fit is for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from tenth.core.errors import InputError

if TYPE_CHECKING:
    from tenth.core.records import Budget, Requirements
    from tenth.devices.profile import Device

DEFAULT_CONTEXT = 2048
Number = float | None  # as typed

Model = Annotated[str, typer.Argument(help="A Hugging Face folder, a hub name, or the word: bundled.")]
Models = Annotated[
    list[str], typer.Argument(help="As MODEL; of several the best fit is taken.", metavar="MODEL...")
]
Out = Annotated[Path, typer.Argument(help="A folder made by tenth fit.")]
Share = Annotated[str | None, typer.Option(help="Share of the device's memory; 10% unless told otherwise.")]
Work = Annotated[
    Path | None, typer.Option(help="Folder for intermediate results; a stopped run resumes there.")
]
TARGET = "user@host[:folder] by ssh, or adb:SERIAL"
Port = Annotated[int | None, typer.Option("--port", "-p", min=1, max=65535, help="Port of its ssh server.")]
LlamaCli = Annotated[
    Path | None, typer.Option(help="llama.cpp for a device without Python: the program, or a build's folder.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; all else on stderr.")]


class Prefer(StrEnum):
    """What is worth more."""

    quality = "quality"
    speed = "speed"


@dataclass(frozen=True)
class Asked:
    """The options of what a fit is for: a budget, and what the device must do within it."""

    device: Annotated[
        str | None, typer.Option("--device", help="One of tenth devices, or a device file.toml.")
    ] = None
    share: Share = None
    memory: Annotated[
        str | None, typer.Option(help="The budget itself instead of a device, such as 800MB.")
    ] = None
    context: Annotated[
        int | None, typer.Option(help="Tokens of context: 2048, or all of a shorter-sighted model.")
    ] = None
    min_speed: Annotated[Number, typer.Option(help="Least decoding speed on the device, tokens/s.")] = None
    max_joules: Annotated[Number, typer.Option(help="Most joules per decoded token on the device.")] = None
    battery_hours: Annotated[
        Number, typer.Option(help="Hours that its battery must last at --min-speed, or at 10 tokens/s.")
    ] = None
    prefer: Annotated[
        Prefer,
        typer.Option(
            help="speed gives up to half more predicted KL, or 0.005 nats, for fewer seconds per token."
        ),
    ] = Prefer.quality
    backend: Annotated[str, typer.Option(help="Of the device: cpu, opencl, hexagon, metal or cuda.")] = "cpu"
    grid: Annotated[Number, typer.Option(help="Grams of CO2 per kWh: adds an answer's CO2.")] = None

    def amount(self) -> tuple[int, str | None, float | None]:
        """(bytes, device, share); InputError unless exactly one of --device and --memory was given."""
        from tenth.devices import catalogue

        if (self.device is None) == (self.memory is None):
            raise InputError(
                "give either --device NAME (see: tenth devices), of which a tenth is taken, or --memory 800MB"
                + ("" if self.device is None else ", not both")
            )
        if self.memory is not None:
            if self.share is not None:
                raise InputError(
                    "--share is a share of a --device; with --memory the budget is already given"
                )
            return catalogue.parse_size(self.memory), None, None
        assert self.device is not None
        found, part = catalogue.load(self.device), catalogue.parse_share(self.share or "10%")
        return int(found.bytes * part), found.name, part

    def requirements(self) -> tuple[Device | None, Requirements]:
        """The device and what is asked of it; InputError where something is asked of none."""
        from tenth.devices import catalogue
        from tenth.planning import forecast

        found = catalogue.load(self.device) if self.device else None
        return found, forecast.requirements(
            found,
            min_speed=self.min_speed,
            max_joules=self.max_joules,
            battery_hours=self.battery_hours,
            prefer=self.prefer.value,
            backend=self.backend,
            grid=self.grid,
        )

    def budget(self, folders: Sequence[Path]) -> Budget:
        """The Budget for the models in `folders`; InputError for a context that one was not made for."""
        from tenth.core.records import Budget
        from tenth.models.checkpoint import open_config

        size, name, part = self.amount()
        limits = [architecture.context_limit(config) for config, architecture in map(open_config, folders)]
        longest, reason = min(limits)
        context = min(DEFAULT_CONTEXT, longest) if self.context is None else self.context
        if context < 1:
            raise InputError(f"--context {context} is not a number of tokens; give 1 or more")
        if context > longest:
            why = f"{reason} is {longest}" if reason.isidentifier() else reason
            raise InputError(f"--context {context} is more than this model can have: {why}")
        return Budget(memory=size, context=context, device=name, share=part)


def spread(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as typer reads it: its parameter `asked` becomes the options of `Asked`, in its place."""
    hints = get_type_hints(Asked, include_extras=True)
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(Asked)
    ]

    @wraps(verb)
    def run(**given: Any) -> None:
        asked = Asked(**{option.name: given.pop(option.name) for option in options})
        verb(asked=asked, **given)

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb, eval_str=True).parameters.values():
        own = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        parameters += options if parameter.name == "asked" else [own]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
