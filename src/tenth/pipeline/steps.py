"""The stages of a fit, each in a child process, each kept in the work folder by the name of its inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tenth.core import jobs
from tenth.core.format import megabytes
from tenth.core.jobs import Job
from tenth.core.progress import Reporter
from tenth.core.records import MB, Candidate, Proof, Reading, Runtime, Shape
from tenth.core.store import Store, write_text
from tenth.distillation.budget import TrainingBudget
from tenth.distillation.settings import DistilResult, TrainingResult, TrainingSettings
from tenth.distillation.stages import Distil, DistilVocabulary, WriteCorpus
from tenth.measurement.memory import prove
from tenth.measurement.quality import quality
from tenth.measurement.speed import speed
from tenth.models.checkpoint import Checkpoint
from tenth.models.formats.gguf import storage, tensor_bytes
from tenth.pipeline.effort import BATCH, Effort
from tenth.planning.plan import Decision, Problem
from tenth.pruning.shape import PruningCosts
from tenth.pruning.stages import MeasureRemovals, RemoveAndRefit, TrimVocabulary
from tenth.quantization import kv, recipes, sensitivity

METRICS = 3  # raised whenever a stage's meaning changes, so that old results are not used
JUDGE_WINDOWS, LEAST_WINDOWS = 48, 12  # of held-out text
JUDGE_WORK = 15_000 * MB  # weights x windows: large models are judged on fewer
SPEED_REPEATS = 3
REFIT = 256  # windows at the least that a smaller model is refitted on, if the text has as many
HEAL_RATE = {
    "cpu": 20_000,
    "cuda": 1_000_000,
}  # tokens of text read for a second of healing: more than it takes
HEAL_TOKENS = 50_000_000  # at most, where healing is given as a time
Result = TypeVar("Result")


@dataclass(frozen=True)
class Texts:
    """Windows of token ids on disk."""

    folder: Path
    length: int
    bytes: int  # UTF-8, of the predicted held-out tokens

    @property
    def calibration(self) -> Path:
        """int32 [windows, length] to calibrate on."""
        return self.folder / "calibration.npy"

    @property
    def further(self) -> Path:
        """int32 [windows, length] to train on as well."""
        return self.folder / "further.npy"

    @property
    def held_out(self) -> Path:
        """int32 [windows, length] to judge on."""
        return self.folder / "held-out.npy"


class Stages:
    """The expensive steps for one model, memoised in `work`; `used` has the folders of those asked for."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        work: Path,
        reporter: Reporter,
        log: Path,
        threads: int,
        device: str = "cpu",
    ) -> None:
        self.checkpoint, self.reporter, self.log = checkpoint, reporter, log
        self.store = Store(work, reporter.say)
        self.model_hash = checkpoint.hash()
        self.used: dict[str, Path] = {}
        self._common: dict[str, Any] = {"model": str(checkpoint.path), "threads": threads}
        self._device = {"device": device}  # of torch; results differ by float32's rounding only

    def texts(
        self, text: Path | None, eval_text: Path | None, length: int, effort: Effort, seed: int
    ) -> Texts:
        """Tokenise the texts into windows."""
        from tenth.calibration.reference import windows_within

        weights = sum(spec.count for spec in self.checkpoint.specs())
        wanted = max(LEAST_WINDOWS, min(JUDGE_WINDOWS, JUDGE_WORK // weights))
        judge = windows_within(wanted, length, int(self.checkpoint.config["vocab_size"]))
        given = {
            "text": str(text) if text else None,
            "eval_text": str(eval_text) if eval_text else None,
            "length": length,
            "calibrate": effort.windows,
            "train": max(0, max(effort.training, REFIT) - effort.windows),
            "judge": judge,
            "seed": seed,
        }
        stamps = [_stamp(path) for path in (text, eval_text)]

        def build(folder: Path) -> None:
            arguments = {"model": self._common["model"], **given, "folder": str(folder)}
            found = self._child("read the texts", "tenth.models.text:run", arguments)
            write_text(folder / "texts.json", json.dumps(found))

        folder = self._stage("texts", {**given, "stamps": stamps}, build)
        found = json.loads((folder / "texts.json").read_text())
        return Texts(folder, found["length"], found["bytes"])

    def check_weights(self) -> None:
        """InputError for a NaN or an infinity among them."""
        total = sum(spec.count for spec in self.checkpoint.specs())
        with self.reporter.step("check the weights", total, "weights") as advance:
            self.checkpoint.check_finite(advance)

    def reference(self, texts: Texts) -> Path:
        """The original's log-probabilities on the held-out windows."""
        given = {**self._common, "tokens": str(texts.held_out), "text_bytes": texts.bytes}

        def build(folder: Path) -> None:
            self._child(
                "run the original", "tenth.calibration.reference:run", {**given, "folder": str(folder)}
            )

        return self._stage("reference", {"texts": texts.folder.name}, build)

    def calibration(self, texts: Texts, seed: int) -> Path:
        """How much each weight matters (calibration/fisher.py)."""
        given = {**self._common, **self._device, "tokens": str(texts.calibration), "seed": seed}

        def build(folder: Path) -> None:
            self._child("calibrate", "tenth.calibration.fisher:run", {**given, "folder": str(folder)})

        return self._stage("calibration", {"texts": texts.folder.name, "seed": seed}, build)

    def sensitivities(
        self, calibration: Path, types: Sequence[str] | None = None
    ) -> sensitivity.Sensitivities:
        """What every type, or those alone, costs every tensor, in nats per token
        (quantization/sensitivity.py).
        """
        asked = {"types": list(types)} if types else {}

        def build(folder: Path) -> None:
            given = {"calibration": str(calibration), "destination": str(folder / "sensitivities.jsonl")}
            self._child(
                "price every storage type",
                "tenth.quantization.sensitivity:run",
                {**self._common, **given, **asked},
            )

        return sensitivity.load(
            self._stage("sensitivities", {"from": calibration.name, **asked}, build) / "sensitivities.jsonl"
        )

    def kv_sensitivities(self, texts: Texts, head: int) -> dict[str, float]:
        """What every KV-cache type costs, in nats per token (quantization/kv.py)."""
        specs = [spec for spec in self.checkpoint.specs() if spec.linear]
        windows = 2 if sum(spec.count for spec in specs) < 300 * MB else 1

        def build(folder: Path) -> None:
            types = {spec.name: kv.probe_type(spec.columns) for spec in specs}
            probe = self.write(types, None, folder / "probe.gguf", "store a probe")
            given = {"gguf": str(probe), "tokens": str(texts.held_out), "windows": windows, "head": head}
            given["threads"] = self._common["threads"]
            found = self._child("measure KV-cache types", "tenth.quantization.kv:run", given)
            write_text(folder / "kv.json", json.dumps(found))
            probe.unlink()

        folder = self._stage("kv", {"texts": texts.folder.name, "windows": windows}, build)
        kl_by_type: dict[str, float] = json.loads((folder / "kv.json").read_text())
        return kl_by_type

    def costs(self, texts: Texts, calibration: Path) -> PruningCosts:
        """What removing each part of the model would cost (pruning/removal.py)."""

        def build(folder: Path) -> None:
            job = MeasureRemovals(**self._pruned(texts, calibration), folder=folder)
            self._run_job("price every removal", job)

        folder = self._stage("pruning-costs", {"from": calibration.name, "texts": texts.folder.name}, build)
        return PruningCosts.model_validate_json((folder / "pruning-costs.json").read_bytes())

    def shaped(self, texts: Texts, calibration: Path, shape: Shape) -> Path:
        """A folder with the model in that shape, what stays refitted (pruning/structure.py)."""
        chosen = {"chosen": shape.model_dump(mode="json")}

        def build(folder: Path) -> None:
            job = RemoveAndRefit(**self._pruned(texts, calibration), shape=shape, folder=folder)
            self._run_job("remove and refit", job)

        made_from = {"from": calibration.name, "texts": texts.folder.name, **chosen}
        return self._stage("shaped", made_from, build)

    def healed(
        self, smaller: Path, texts: Texts, text: Path | None, amount: str, seed: int, respelled: bool = False
    ) -> tuple[Path, TrainingResult]:
        """A folder with the smaller model trained towards this one, and how that went
        (distillation/distil.py).

        respelled: it has fewer tokens (distillation/cross_tokenizer.py).
        """
        training_budget, device = TrainingBudget.parse(amount), self._device["device"]
        tokens = training_budget.tokens or min(
            HEAL_TOKENS, round(training_budget.seconds * HEAL_RATE[device])
        )
        given: dict[str, Any] = {"length": texts.length, "seed": seed}

        def build(folder: Path) -> None:
            windows = folder / "windows.npy"
            if not windows.exists():
                corpus = WriteCorpus(
                    model=self.checkpoint.path,
                    text=text,
                    destination=windows,
                    length=texts.length,
                    tokens=tokens,
                    seed=seed,
                    held_out=texts.held_out,
                )
                self._run_job("read the text to heal on", corpus)
            settings = TrainingSettings(
                model=smaller,
                original=self.checkpoint.path,
                tokens=windows,
                folder=folder,
                training_budget=training_budget,
                seed=seed,
                threads=self._common["threads"],
                device=device,
            )
            label = f"heal, {amount}"
            result: TrainingResult
            if respelled:
                result = self._run_job(label, DistilVocabulary(**dict(settings)))
            else:
                result = self._run_job(label, Distil(**dict(settings), memory=_free_memory()))
            write_text(folder / "healed.json", result.model_dump_json())
            windows.unlink()

        made_from = {"smaller": smaller.name, "texts": texts.folder.name, "amount": amount, **given}
        made_from["stamp"] = _stamp(text)
        folder = self._stage("healed", made_from, build)
        kind = TrainingResult if respelled else DistilResult
        return folder, kind.model_validate_json((folder / "healed.json").read_bytes())

    def trimmed(self, text: Path | None, size: int, languages: Sequence[str]) -> Path:
        """A folder with the model and at most `size` tokens (pruning/vocabulary.py)."""
        given = {"text": str(text) if text else None, "size": size, "languages": list(languages)}

        def build(folder: Path) -> None:
            job = TrimVocabulary(
                model=self.checkpoint.path, text=text, size=size, languages=tuple(languages), folder=folder
            )
            self._run_job("trim the vocabulary", job)

        return self._stage("trimmed", {**given, "stamp": _stamp(text)}, build)

    def rounded(
        self, texts: Texts, calibration: Path, types: Mapping[str, str], effort: Effort
    ) -> list[Path]:
        """The folder of matrices of those types, rounded with error feedback; none at an effort without."""
        if effort.rounds is None:
            return []
        made_from: dict[str, Any] = {"from": calibration.name, "rounds": effort.rounds, "metrics": METRICS}
        if effort.sequential:  # a matrix depends on those before it: a folder for each plan
            made_from["types"] = dict(types)
        folder = self.store.shelf("rounded", made_from)
        given = {
            **self._common,
            **self._device,
            "tokens": str(texts.calibration),
            "calibration": str(calibration),
            "types": dict(types),
            "folder": str(folder),
            "rounds": effort.rounds,
        }
        stage = (
            "tenth.quantization.sequential:run" if effort.sequential else "tenth.quantization.rounding:run"
        )
        with self.store.alone(folder):
            self._child("round with error feedback", stage, given)
        return [folder]

    def trained(
        self, texts: Texts, rounded: Sequence[Path], types: Mapping[str, str], effort: Effort, seed: int
    ) -> list[Path]:
        """The folders of `rounded` after one with trained scales, if there is memory to train them."""
        from tenth.quantization.scales import BYTES_PER_WEIGHT

        weights = sum(spec.count for spec in self.checkpoint.specs())
        needed, free = BYTES_PER_WEIGHT * weights, _free_memory()
        if self._device["device"] == "cpu" and needed > free:
            self.reporter.say(
                f"scales are not trained: that needs {megabytes(needed)} MB, {megabytes(free)} MB are free"
            )
            return list(rounded)
        given = {
            "types": dict(types),
            "rounded": str(rounded[0]),
            "steps": effort.steps,
            "batch": BATCH,
            "seed": seed,
        }

        def build(folder: Path) -> None:
            tokens = {"tokens": str(texts.calibration), "further": str(texts.further)}
            arguments = {**self._common, **self._device, **tokens, **given}
            found = self._child(
                "train scales", "tenth.quantization.scales:run", {**arguments, "folder": str(folder)}
            )
            write_text(folder / "trained.json", json.dumps(found))

        made_from = {**given, "rounded": rounded[0].name, "texts": texts.folder.name}
        return [self._stage("trained", made_from, build), *rounded]

    def write(
        self,
        types: Mapping[str, str],
        calibration: Path | None,
        path: Path,
        label: str,
        rounded: Sequence[Path] = (),
    ) -> Path:
        """A GGUF of those types: what the folders of `rounded` have, the rest by ggml's encoders."""
        given = {
            **self._common,
            "types": dict(types),
            "destination": str(path),
            "calibration": str(calibration) if calibration else None,
            "rounded": [str(folder) for folder in rounded],
        }
        total = sum(tensor_bytes(spec, storage(spec, types)) for spec in self.checkpoint.specs())
        self._child(label, "tenth.quantization.write:run", given, total=total)
        return path

    def prove(self, gguf: Path, decision: Decision, budget: int) -> Proof:
        """Run the file under the limit and see what it held."""
        with self.reporter.step("prove that it fits", 1.0) as advance:
            return prove(gguf, decision.runtime, budget, decision.memory.total, self.log, advance)

    def measure(self, gguf: Path, name: str, reference: Path, runtime: Runtime) -> list[Reading]:
        """Quality against the original, and speed."""
        windows = json.loads((reference / "reference.json").read_text())["windows"]
        with self.reporter.step(f"measure {name}", windows, "windows") as advance:
            readings = quality(gguf, reference, runtime, on_progress=advance, log=self.log)
        return readings + speed(gguf, runtime, SPEED_REPEATS, log=self.log)

    def stock(self, recipe: str, importance: bool = True) -> dict[str, str]:
        """The types that llama-quantize would give this model's matrices."""
        heads, shared = self.checkpoint.arch.heads(self.checkpoint.config)
        return recipes.types(recipe, self.checkpoint.specs(), heads // shared, importance)

    def baselines(
        self,
        problem: Problem,
        ours: Decision,
        budget: int,
        reference: Path,
        calibration: Path,
        folder: Path,
        count: int,
    ) -> list[Candidate]:
        """What a person would take otherwise, run as ours is: stock recipes that fit, and plain Q4_0.

        Of the recipes that fit, the `count` with the least predicted KL are made and measured; none of
        them and no Q4_0 where it is 0.
        """
        if not count:
            return []
        stock = {name: self.stock(name) for name in recipes.BASES if name not in ("F16", "Q4_0")}
        fitting = [
            name for name, types in stock.items() if problem.memory(types, ours.runtime).total <= budget
        ]

        def predicted(name: str) -> float:
            return sum(problem.sensitivities[tensor][kind] for tensor, kind in stock[name].items())

        def candidate(name: str, types: dict[str, str], importance: bool) -> Candidate:
            path = folder / "baseline.gguf"
            self.write(types, calibration if importance else None, path, f"store {name}")
            memory = problem.memory(types, ours.runtime)
            try:
                readings = self.measure(path, name, reference, ours.runtime)
                return Candidate(
                    name=name,
                    file_bytes=path.stat().st_size,
                    fits=memory.total <= budget,
                    memory=memory,
                    readings=readings,
                )
            finally:
                path.unlink()

        best = sorted(fitting, key=predicted)[:count]
        measured = [candidate(name, stock[name], True) for name in best]
        return [*measured, candidate("Q4_0", self.stock("Q4_0", importance=False), False)]

    def _pruned(self, texts: Texts, calibration: Path) -> dict[str, Any]:
        """What the stages of pruning have in common."""
        return {
            "model": self.checkpoint.path,
            "tokens": (texts.calibration, texts.further),
            "calibration": calibration,
            **self._device,
            "threads": self._common["threads"],
        }

    def _stage(self, name: str, inputs: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """The finished folder of a stage of this model, built now where it is not there."""
        inputs = {**inputs, "model": self.model_hash, "metrics": METRICS}
        self.used[name] = self.store.stage(name, inputs, build)
        return self.used[name]

    def _child(self, label: str, function: str, arguments: dict[str, Any], total: float = 1.0) -> Any:
        """The result of a function run in a child process, with a progress bar."""
        with self.reporter.step(label, total, "B" if total > 1 else "") as advance:

            def on_event(event: dict[str, Any]) -> None:
                advance(event["done"] * (total / event["total"] if "total" in event else 1.0))

            return jobs.call(function, arguments, on_event, self.log)

    def _run_job(self, label: str, job: Job[Result], total: float = 1.0) -> Result:
        """The result of a job run in a child process, with a progress bar."""
        with self.reporter.step(label, total, "B" if total > 1 else "") as advance:

            def on_event(event: jobs.Event) -> None:
                advance(event["done"] * (total / event["total"] if "total" in event else 1.0))

            return jobs.run(job, on_event, jobs.Surroundings(self.log))


def _free_memory() -> int:
    """Bytes of memory that could be had."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _stamp(path: Path | None) -> list[int] | None:
    if path is None:
        return None
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
