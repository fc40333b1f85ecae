"""The stages of a fit as records: what each is made from, and the one call that makes it.

A record needs no torch; its `make` runs in a child process and imports what it needs there.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tenth.calibration.settings import Agreement
from tenth.calibration.windows import Texts, Wanted, cut
from tenth.core.ggml import WEIGHT_TYPES
from tenth.core.jobs import Compute, Emit, Job
from tenth.core.records import Shape
from tenth.distillation.budget import TrainingBudget
from tenth.distillation.settings import (
    CorpusSettings,
    DistilResult,
    DistilSettings,
    TrainingResult,
    TrainingSettings,
)
from tenth.pipeline.stage import Stage, TextFile
from tenth.pruning.settings import RefitSettings, RemovalSettings, TrimResult, TrimSettings
from tenth.pruning.shape import PruningCosts
from tenth.quantization.settings import ScaleTraining, Trained


class CutTexts(Stage[Texts]):
    """Texts as windows of the model's tokens (calibration/windows.py)."""

    name: ClassVar = "texts"
    label: ClassVar = "read the texts"

    text: TextFile | None  # None: the bundled one
    eval_text: TextFile | None  # None: the end of the text
    wanted: Wanted

    def make(self, emit: Emit) -> Texts:  # noqa: ARG002
        """Leave calibration.npy, further.npy and held-out.npy."""
        return cut(
            self.model,
            TextFile.path_of(self.text),
            TextFile.path_of(self.eval_text),
            self.wanted,
            self.folder,
        )


class RunOriginal(Stage[None]):
    """The original's log-probabilities on held-out windows (calibration/reference.py)."""

    name: ClassVar = "reference"
    label: ClassVar = "run the original"

    tokens: Path
    text_bytes: int  # of the predicted tokens of the plain windows
    plain_windows: int

    def make(self, emit: Emit) -> None:
        """Leave tokens.npy, logprobs.npy and reference.json."""
        from tenth.calibration.reference import run_original

        compute = Compute(threads=self.threads)
        run_original(self.model, self.tokens, self.text_bytes, self.plain_windows, self.folder, compute, emit)


class CompareReadings(Stage[Agreement]):
    """Whether our reading of the model is transformers' own (calibration/agreement.py)."""

    name: ClassVar = "agreement"
    label: ClassVar = "compare with transformers"

    def make(self, emit: Emit) -> Agreement:
        """Run a window in both; InputError where they differ."""
        from tenth.calibration.agreement import compare

        return compare(self.model, self.folder, Compute(threads=self.threads), emit)


class Calibrate(Stage[None]):
    """How much the output suffers when a weight is disturbed (calibration/fisher.py)."""

    name: ClassVar = "calibration"
    label: ClassVar = "calibrate"

    tokens: Path
    seed: int

    def make(self, emit: Emit) -> None:
        """Leave stats-*.npz (calibration/stats.py)."""
        from tenth.calibration.fisher import calibrate

        calibrate(self.model, self.tokens, self.seed, self.folder, self.compute, emit)


class MeasureSensitivities(Stage[None]):
    """What storage types would cost every linear tensor, in nats per token (quantization/sensitivity.py)."""

    name: ClassVar = "sensitivities"
    label: ClassVar = "predict the KL of every storage type"

    calibration: Path
    types: tuple[str, ...] = WEIGHT_TYPES

    def make(self, emit: Emit) -> None:
        """Leave sensitivities.jsonl."""
        from tenth.quantization.sensitivity import measure_sensitivities

        path = self.folder / "sensitivities.jsonl"
        measure_sensitivities(self.model, self.calibration, path, self.types, self.threads, emit)


class MeasureKv(Stage[dict[str, float]]):
    """What every type of the KV cache costs: "k q8_0" -> nats per token (quantization/kv.py)."""

    name: ClassVar = "kv"
    label: ClassVar = "measure KV-cache types"

    tokens: Path
    windows: int
    head: int  # size of an attention head
    context: int  # tokens that the cache has room for

    def make(self, emit: Emit) -> dict[str, float]:
        """Store a probe, run it with every type, remove it."""
        from tenth.quantization.kv import measure_kv

        return measure_kv(
            self.model, self.tokens, self.windows, self.head, self.context, self.folder, self.threads, emit
        )


class Round(Stage[int]):
    """Every matrix of a plan rounded with error feedback (quantization/rounding.py).

    The folder is never finished: a matrix depends on its type and not on the plan, and others are added.
    """

    name: ClassVar = "rounded"
    label: ClassVar = "round with error feedback"
    unkeyed: ClassVar = Stage.unkeyed | {"types", "tokens"}

    tokens: Path  # of the calibration
    calibration: Path
    types: dict[str, str]  # GGUF tensor name -> ggml type
    rounds: int  # of refitting scales

    def make(self, emit: Emit) -> int:
        """Put what is missing there; how many tensors that were."""
        from tenth.quantization.rounding import round_plan

        return round_plan(
            self.model,
            self.tokens,
            self.calibration,
            self.types,
            self.folder,
            self.rounds,
            self.compute,
            emit,
        )


class RoundSequentially(Round):
    """The same on what the stored blocks before give (quantization/sequential.py); a folder for each plan."""

    unkeyed: ClassVar = Round.unkeyed - {"types"}

    def make(self, emit: Emit) -> int:
        """Put what is missing there; how many tensors that were."""
        from tenth.quantization.sequential import round_sequentially

        return round_sequentially(
            self.model,
            self.tokens,
            self.calibration,
            self.types,
            self.folder,
            self.rounds,
            self.compute,
            emit,
        )


class TrainScales(Stage[Trained]):
    """Scales and norms trained towards the original, codes as they are (quantization/scales.py)."""

    name: ClassVar = "trained"
    label: ClassVar = "train scales"

    tokens: Path
    further: Path  # to train on as well
    rounded: Path
    types: dict[str, str]  # GGUF tensor name -> ggml type
    training: ScaleTraining

    def make(self, emit: Emit) -> Trained:
        """Leave the trained tensors."""
        from tenth.quantization.scales import train_scales

        return train_scales(
            self.model,
            (self.tokens, self.further),
            self.rounded,
            self.types,
            self.folder,
            self.training,
            self.compute,
            emit,
        )


class WriteModel(Job[None]):
    """The GGUF with every tensor stored as a plan says (quantization/write.py)."""

    model: Path
    types: dict[str, str]  # GGUF tensor name -> ggml type
    destination: Path
    calibration: Path | None = None
    rounded: tuple[Path, ...] = ()
    threads: int = 0

    def run(self, emit: Emit) -> None:
        """Write it, whole or not at all. Emits {"done": bytes}."""
        from tenth.quantization.write import write_model

        def progress(done: float) -> None:
            emit({"done": done})

        write_model(
            self.model, self.types, self.destination, self.calibration, self.rounded, self.threads, progress
        )


class MeasureRemovals(Stage[PruningCosts]):
    """What removing each part of the model would cost (pruning/removal.py)."""

    name: ClassVar = "pruning-costs"
    label: ClassVar = "predict the KL of every removal"

    tokens: tuple[Path, ...]
    calibration: Path

    def make(self, emit: Emit) -> PruningCosts:
        """Run the original once, and variants of its blocks."""
        from tenth.pruning.removal import removal_costs

        return removal_costs(self.settings(RemovalSettings), emit)


class RemoveAndRefit(Stage[int]):
    """The model in another shape as a Hugging Face folder, what stays refitted (pruning/structure.py)."""

    name: ClassVar = "shaped"
    label: ClassVar = "remove and refit"

    tokens: tuple[Path, ...]
    calibration: Path
    shape: Shape

    def make(self, emit: Emit) -> int:
        """Leave the folder of the smaller model."""
        from tenth.pruning.structure import refitted

        return refitted(self.settings(RefitSettings), emit)


class TrimVocabulary(Stage[TrimResult]):
    """The model with fewer tokens as a Hugging Face folder (pruning/vocabulary.py)."""

    name: ClassVar = "trimmed"
    label: ClassVar = "trim the vocabulary"

    text: TextFile | None  # in which tokens are counted; None: the bundled one
    size: int
    languages: tuple[str, ...]

    def make(self, emit: Emit) -> TrimResult:
        """Leave the folder of the model."""
        from tenth.pruning.vocabulary import write_trimmed

        settings = TrimSettings(
            model=self.model,
            text=TextFile.path_of(self.text),
            size=self.size,
            folder=self.folder,
            languages=self.languages,
        )
        return write_trimmed(settings, emit)


class WriteCorpus(Stage[int]):
    """Windows of text to train on (distillation/corpus.py)."""

    name: ClassVar = "corpus"
    label: ClassVar = "read the text to heal on"

    text: TextFile | None
    length: int
    tokens: int
    seed: int
    held_out: Path
    frame: tuple[str, ...]  # of the chat template

    def make(self, emit: Emit) -> int:
        """Leave windows.npy."""
        from tenth.distillation.corpus import write_windows

        settings = CorpusSettings(
            model=self.model,
            text=TextFile.path_of(self.text),
            destination=self.folder / "windows.npy",
            length=self.length,
            tokens=self.tokens,
            seed=self.seed,
            held_out=self.held_out,
            frame=self.frame,
        )
        return write_windows(settings, emit)


class Distil(Stage[DistilResult]):
    """A model with parts removed, trained towards the original (distillation/distil.py)."""

    name: ClassVar = "healed"
    label: ClassVar = "heal"
    unkeyed: ClassVar = Stage.unkeyed | {"memory"}

    smaller: Path
    tokens: Path  # npy, int32 [windows, T]
    training_budget: TrainingBudget
    seed: int
    memory: int  # bytes that may be used

    def make(self, emit: Emit) -> DistilResult:
        """Leave the folder of the trained model."""
        from tenth.distillation.distil import distil

        settings = self.settings(DistilSettings, model=self.smaller, original=self.model)
        return distil(settings, emit)


class DistilVocabulary(Stage[TrainingResult]):
    """A model with fewer tokens, trained towards the original (distillation/cross_tokenizer.py)."""

    name: ClassVar = "healed"
    label: ClassVar = "heal"

    smaller: Path
    tokens: Path  # npy, int32 [windows, T], in the original's ids
    training_budget: TrainingBudget
    seed: int

    def make(self, emit: Emit) -> TrainingResult:
        """Leave the folder of the trained model."""
        from tenth.distillation.cross_tokenizer import distil_vocabulary

        settings = self.settings(TrainingSettings, model=self.smaller, original=self.model)
        return distil_vocabulary(settings, emit)
