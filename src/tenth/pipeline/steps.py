"""The stages of a fit, each in a child process, each kept in the work folder by the name of its inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import psutil

from tenth.calibration.stats import windows_within
from tenth.calibration.windows import Texts, Wanted
from tenth.core import jobs
from tenth.core.errors import InputError, NativeError
from tenth.core.format import megabytes
from tenth.core.ggml import WEIGHT_TYPES
from tenth.core.jobs import Compute, Event, Job
from tenth.core.progress import Reporter
from tenth.core.records import MB, Proof, Reading, Runtime, Shape
from tenth.core.store import Store
from tenth.devices import probe
from tenth.distillation.budget import TrainingBudget
from tenth.distillation.settings import DistilResult, TrainingResult
from tenth.measurement.memory import ProofSettings, prove
from tenth.measurement.quality import quality
from tenth.measurement.speed import speed
from tenth.models.chat_template import ReadFrame
from tenth.models.checkpoint import Checkpoint
from tenth.models.formats.gguf import storage, tensor_bytes
from tenth.models.formats.special import key_of
from tenth.models.formats.tokenizer import tokenizer_metadata
from tenth.pipeline.effort import BATCH, Effort
from tenth.pipeline.stage import Stage, TextFile
from tenth.pipeline.stages import (
    Calibrate,
    CompareReadings,
    CutTexts,
    Distil,
    DistilVocabulary,
    MeasureKv,
    MeasureRemovals,
    MeasureSensitivities,
    RemoveAndRefit,
    Round,
    RoundSequentially,
    RunOriginal,
    TrainScales,
    TrimVocabulary,
    WriteCorpus,
    WriteModel,
)
from tenth.planning.plan import Decision
from tenth.pruning.settings import TrimResult
from tenth.pruning.shape import PruningCosts
from tenth.quantization import recipes, sensitivity
from tenth.quantization.settings import BYTES_PER_WEIGHT, ScaleTraining
from tenth.runtime.sandbox import Limits, Sandbox

JUDGE_WINDOWS, LEAST_WINDOWS = 48, 12  # of held-out text
JUDGE_WORK = 15_000 * MB  # weights x windows: large models are judged on fewer
SPEED_REPEATS = 3
USABLE = 0.8  # of the machine's memory, by training
REFIT = 256  # windows at the least that a smaller model is refitted on, if the text has as many
HEAL_RATE = {
    "cpu": 20_000,
    "cuda": 1_000_000,
}  # tokens of text read for a second of healing: more than it takes
TEMPLATE_MEMORY, TEMPLATE_SECONDS = 512 * MB, 20.0  # that a chat template, which is a stranger's, may take
TEMPLATE_ROLES = ("bos", "eos", "unk", "pad")  # of tokens that templates know by name
Result = TypeVar("Result")
HEAL_TOKENS = 50_000_000  # at most, where healing is given as a time


@dataclass(frozen=True)
class Workshop:
    """Where a fit works: its work folder, who hears of it, its log, and where torch computes."""

    work: Path
    reporter: Reporter
    log: Path
    compute: Compute = field(default_factory=Compute)


class _Common(TypedDict):
    """The fields that all stages of a model share."""

    model: Path
    model_hash: str
    threads: int
    device: str


class Stages:
    """The expensive steps for one model, memoised in `work`; `used` has the folders of those asked for."""

    def __init__(self, checkpoint: Checkpoint, workshop: Workshop) -> None:
        self.checkpoint, self.workshop, self.reporter = checkpoint, workshop, workshop.reporter
        self.store = Store(workshop.work, workshop.reporter.say)
        self.model_hash = checkpoint.hash()
        self.used: dict[str, Path] = {}
        self.template_trouble = ""  # why its chat template is not used
        self._common: _Common = {
            "model": checkpoint.path,
            "model_hash": self.model_hash,
            "threads": workshop.compute.threads,
            "device": workshop.compute.device,
        }

    def texts(
        self,
        file: Path | None,
        eval_file: Path | None,
        length: int,
        effort: Effort,
        seed: int,
        stretch: float = 1.0,
    ) -> Texts:
        """Tokenise the texts into windows; stretch: so many times the usual number to judge on."""
        weights = sum(spec.count for spec in self.checkpoint.specs())
        judge = round(stretch * max(LEAST_WINDOWS, min(JUDGE_WINDOWS, JUDGE_WORK // weights)))
        wanted = Wanted(
            length=length,
            calibrate=effort.windows,
            train=max(0, max(effort.training, REFIT) - effort.windows),
            judge=windows_within(judge, length, self.checkpoint.shape.vocab),
            seed=seed,
            frame=self.frame,
        )
        files = TextFile.of(file), TextFile.of(eval_file)
        stage = CutTexts(**self._common, text=files[0], eval_text=files[1], wanted=wanted)
        folder, texts = self._made(stage)
        return texts.model_copy(update={"folder": folder})

    @cached_property
    def frame(self) -> tuple[str, ...]:
        """What the model's chat template puts around turns; empty where it has none, or none that works."""
        keys = tokenizer_metadata(self.checkpoint.path, self.checkpoint.config).keys
        template = keys.get("tokenizer.chat_template")
        if template is None:
            return ()
        tokens = {
            f"{role}_token": keys["tokenizer.ggml.tokens"][keys[key]]
            for role in TEMPLATE_ROLES
            if (key := key_of(role)) in keys
        }
        box = Sandbox(Limits(memory=TEMPLATE_MEMORY, seconds=TEMPLATE_SECONDS), log=self.workshop.log)
        try:
            return box.run(ReadFrame(template=template, tokens=tokens))
        except (InputError, NativeError) as error:
            self.template_trouble = (
                f"its chat template is of no use ({error}): only plain text is calibrated and judged on"
            )
            self.reporter.say(self.template_trouble)
            return ()

    def check_weights(self) -> None:
        """InputError for a NaN or an infinity among them."""
        total = sum(spec.count for spec in self.checkpoint.specs())
        with self.reporter.step("check the weights", total, "weights") as advance:
            self.checkpoint.check_finite(advance)

    def reference(self, texts: Texts) -> Path:
        """The original's log-probabilities on the held-out windows, once it is clear that our reading of it
        is transformers' own; InputError where it is not.
        """
        stage = RunOriginal(
            **self._common, tokens=texts.held_out, text_bytes=texts.bytes, plain_windows=texts.plain
        )
        self._made(CompareReadings(**self._common))
        return self._made(stage)[0]

    def calibration(self, texts: Texts, seed: int) -> Path:
        """How much each weight matters."""
        return self._made(Calibrate(**self._common, tokens=texts.calibration, seed=seed))[0]

    def sensitivities(
        self, calibration: Path, types: Sequence[str] = WEIGHT_TYPES
    ) -> sensitivity.Sensitivities:
        """What every type, or those alone, costs every tensor, in nats per token."""
        stage = MeasureSensitivities(**self._common, calibration=calibration, types=tuple(types))
        return sensitivity.load(self._made(stage)[0] / "sensitivities.jsonl")

    def kv_sensitivities(self, texts: Texts, context: int) -> dict[str, float]:
        """What every KV-cache type costs in a context of that many tokens, in nats per token.

        Where the context changes what llama.cpp computes, the least that computes the same is taken.
        """
        linear = sum(spec.count for spec in self.checkpoint.specs() if spec.linear)
        windows, head = 2 if linear < 300 * MB else 1, max(self.checkpoint.shape.head_dims)
        short = self.checkpoint.arch.short_context(self.checkpoint.config)
        least = texts.length if short is None else max(texts.length, min(context, short + 1))
        stage = MeasureKv(**self._common, tokens=texts.held_out, windows=windows, head=head, context=least)
        return self._made(stage)[1]

    def pruning_costs(self, texts: Texts, calibration: Path) -> PruningCosts:
        """What removing each part of the model would cost."""
        tokens = texts.calibration, texts.further
        return self._made(MeasureRemovals(**self._common, tokens=tokens, calibration=calibration))[1]

    def shaped(self, texts: Texts, calibration: Path, shape: Shape) -> Path:
        """A folder with the model in that shape, what stays refitted."""
        tokens = texts.calibration, texts.further
        stage = RemoveAndRefit(**self._common, tokens=tokens, calibration=calibration, shape=shape)
        return self._made(stage)[0]

    def trimmed(self, file: Path | None, size: int, languages: Sequence[str]) -> tuple[Path, TrimResult]:
        """A folder with the model and at most `size` tokens, those that the text has most use for."""
        text = TextFile.of(file)
        stage = TrimVocabulary(**self._common, text=text, size=size, languages=tuple(languages))
        return self._made(stage)

    def healed(
        self, smaller: Path, texts: Texts, file: Path | None, training_budget: TrainingBudget, seed: int
    ) -> tuple[Path, DistilResult]:
        """A folder with a model of fewer parts, trained towards this one, and how that went."""
        corpus = self._corpus(texts, file, training_budget, seed)
        stage = Distil(
            **self._common,
            smaller=smaller,
            tokens=self._place(corpus) / "windows.npy",
            training_budget=training_budget,
            seed=seed,
            memory=_memory(),
        )
        return self._made(stage, corpus)

    def healed_vocabulary(
        self, trimmed: Path, texts: Texts, file: Path | None, training_budget: TrainingBudget, seed: int
    ) -> tuple[Path, TrainingResult]:
        """A folder with a model of fewer tokens, trained towards this one, and how that went."""
        corpus = self._corpus(texts, file, training_budget, seed)
        stage = DistilVocabulary(
            **self._common,
            smaller=trimmed,
            tokens=self._place(corpus) / "windows.npy",
            training_budget=training_budget,
            seed=seed,
        )
        return self._made(stage, corpus)

    def rounded(
        self, texts: Texts, calibration: Path, types: Mapping[str, str], effort: Effort
    ) -> list[Path]:
        """The folder of matrices of those types, rounded with error feedback; none at an effort without."""
        if effort.rounds is None:
            return []
        kind = RoundSequentially if effort.sequential else Round
        stage = kind(
            **self._common,
            tokens=texts.calibration,
            calibration=calibration,
            types=dict(types),
            rounds=effort.rounds,
        )
        folder = self.store.shelf(stage.name, stage.key())
        with self.store.alone(folder):
            self._child(stage.label, stage.model_copy(update={"folder": folder}))
        return [folder]

    def trained(
        self, texts: Texts, rounded: Sequence[Path], types: Mapping[str, str], effort: Effort, seed: int
    ) -> list[Path]:
        """The folders of `rounded` after one with trained scales, if there is memory to train them."""
        weights = sum(spec.count for spec in self.checkpoint.specs())
        needed, memory = BYTES_PER_WEIGHT * weights, _memory()
        if self._common["device"] == "cpu":
            free = int(psutil.virtual_memory().available)
            if needed > memory:
                self.reporter.say(
                    f"scales are not trained: that needs {megabytes(needed)} of {megabytes(memory)} MB"
                )
                return list(rounded)
            if needed > free:
                self.reporter.say(
                    f"training scales needs {megabytes(needed)} MB of memory, {megabytes(free)} MB are free:"
                    " close other programs"
                )
        stage = TrainScales(
            **self._common,
            tokens=texts.calibration,
            further=texts.further,
            rounded=rounded[0],
            types=dict(types),
            training=ScaleTraining(steps=effort.steps, batch=BATCH, seed=seed),
        )
        return [self._made(stage)[0], *rounded]

    def write(
        self,
        types: Mapping[str, str],
        calibration: Path | None,
        path: Path,
        label: str,
        rounded: Sequence[Path] = (),
    ) -> Path:
        """A GGUF of those types: what the folders of `rounded` have, the rest by ggml's encoders."""
        job = WriteModel(
            model=self.checkpoint.path,
            types=dict(types),
            destination=path,
            calibration=calibration,
            rounded=tuple(rounded),
            threads=self._common["threads"],
        )
        total = sum(tensor_bytes(spec, storage(spec, types)) for spec in self.checkpoint.specs())
        self._child(label, job, total)
        return path

    def prove(self, gguf: Path, decision: Decision, budget: int) -> Proof:
        """Run the file under the limit and see what it held."""
        with self.reporter.step("prove that it fits", 1.0) as advance:
            settings, predicted = ProofSettings(log=self.workshop.log), decision.memory.held
            return prove(gguf, decision.runtime, budget, predicted, settings, advance)

    def measure(self, gguf: Path, name: str, reference: Path, runtime: Runtime) -> list[Reading]:
        """Quality against the original, and speed."""
        windows = json.loads((reference / "reference.json").read_text())["windows"]
        with self.reporter.step(f"measure {name}", windows, "windows") as advance:
            readings = quality(gguf, reference, runtime, on_progress=advance, log=self.workshop.log)
        return readings + speed(gguf, runtime, SPEED_REPEATS, log=self.workshop.log)

    def stock(self, recipe: str, importance: bool = True) -> dict[str, str]:
        """The types that llama-quantize would give this model's matrices."""
        queries = self.checkpoint.shape.queries_per_kv
        return recipes.types(recipe, self.checkpoint.specs(), queries, importance)

    def _corpus(
        self, texts: Texts, file: Path | None, training_budget: TrainingBudget, seed: int
    ) -> WriteCorpus:
        """Windows of text for that much training."""
        most = round(training_budget.seconds * HEAL_RATE[self._common["device"]])
        return WriteCorpus(
            **self._common,
            text=TextFile.of(file),
            length=texts.length,
            tokens=training_budget.tokens or min(HEAL_TOKENS, most),
            seed=seed,
            held_out=texts.held_out,
            frame=self.frame,
        )

    def _place(self, stage: Stage[Result]) -> Path:
        """Where a stage's folder is, or will be."""
        return self.store.place(stage.name, stage.key())

    def _made(self, stage: Stage[Result], scratch: Stage[Any] | None = None) -> tuple[Path, Result]:
        """The finished folder of a stage and its result, made now where it is not there.

        scratch: a stage that is made before, and whose folder is removed after.
        """

        def build(folder: Path) -> None:
            if scratch is not None:
                self._made(scratch)
            self._child(stage.label, stage.model_copy(update={"folder": folder}))

        folder = self.used[stage.name] = self.store.stage(stage.name, stage.key(), build)
        if scratch is not None:
            self.store.remove(self._place(scratch))
        return folder, stage.model_copy(update={"folder": folder}).result()

    def _child(self, label: str, job: Job[Result], total: float = 1.0) -> Result:
        """The result of a job, with a progress bar up to `total`: bytes if it is more than one."""
        with self.reporter.step(label, total, "B" if total > 1 else "") as advance:

            def on_event(event: Event) -> None:
                advance(event["done"] * (total / event["total"] if "total" in event else 1.0))

            # Training imports what makes this folder, by default in the system's temporary one.
            environment = (
                {"TORCHINDUCTOR_CACHE_DIR": str(job.folder / "torch")} if isinstance(job, Stage) else {}
            )
            return jobs.run(job, on_event, jobs.Surroundings(self.workshop.log, environment))


def _memory() -> int:
    """Bytes that training may plan with: a share of the machine's, whatever is free at the moment, since what
    is free differs from run to run, and so would the file.
    """
    return round(USABLE * probe.installed_memory())
