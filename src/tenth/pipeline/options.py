"""What a person asks of a fit, as records: what it must fit into, how it is made, what may be removed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from tenth.core.ggml import WEIGHT_TYPES
from tenth.core.jobs import Compute
from tenth.core.records import Budget, Requirements
from tenth.devices.profile import Device
from tenth.distillation.budget import TrainingBudget
from tenth.models.formats.hf import FloatType
from tenth.pipeline.effort import EFFORTS, Effort


@dataclass(frozen=True)
class Target:
    """What a model must fit into, and what it must do there."""

    budget: Budget
    device: Device | None = None  # that the budget is a share of
    requirements: Requirements = field(default_factory=Requirements)  # of that device

    @property
    def limits(self) -> str:
        """What tells two fits apart that ask different things of a device; empty where nothing is asked."""
        asked = self.requirements
        limited = asked.min_speed or asked.max_joules or asked.battery_hours or asked.prefer == "speed"
        return (
            f"{self.device.name} {asked.model_dump_json(exclude={'grid'})}" if self.device and limited else ""
        )


@dataclass(frozen=True)
class Making:
    """From which texts a file is made, how hard that is tried, and where."""

    text: Path | None = None  # to calibrate on; None: the bundled one
    eval_text: Path | None = None  # to judge on; None: the end of the text
    effort: str = "normal"  # of EFFORTS
    windows: int | None = None  # of text to calibrate on, instead of the effort's
    seed: int = 0
    compute: Compute = field(default_factory=Compute)
    quantise: bool = True  # else every matrix stays F16

    @property
    def tried(self) -> Effort:
        """The effort with the windows that were asked for."""
        effort = EFFORTS[self.effort]
        return effort if self.windows is None else replace(effort, windows=self.windows)

    @property
    def types(self) -> tuple[str, ...]:
        """The storage types that matrices may have."""
        return WEIGHT_TYPES if self.quantise else ("F16",)


@dataclass(frozen=True)
class Removal:
    """What may be removed from a model, and how that is made good."""

    structure: bool = True  # channels, heads and blocks, where bits are few
    alike: bool = False  # all blocks stay of one size
    heal: str | None = None  # how much training, as a person writes it: "10min", "5Mtok"
    vocabulary: int | None = None  # tokens to keep
    languages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """InputError for an amount of healing that is none, before anything is begun."""
        _ = self.training_budget

    @property
    def training_budget(self) -> TrainingBudget | None:
        """How much training; None for none. InputError for what is no amount."""
        return None if self.heal is None else TrainingBudget.parse(self.heal)


@dataclass(frozen=True)
class FitOptions:
    """Everything that a person asked for."""

    models: tuple[Path, ...]  # of several the best fit is wanted
    destination: Path
    target: Target
    making: Making = field(default_factory=Making)
    removal: Removal = field(default_factory=Removal)
    folder: FloatType | None = None  # also as a Hugging Face folder, of this type
    baselines: int = 2  # stock recipes to measure beside it, and plain Q4_0; 0: none of them
    work: Path | None = None
    overwrite: bool = False  # a finished bundle at the destination
