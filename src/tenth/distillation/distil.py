"""Recovery distillation: a model with parts removed is trained back towards the original's distribution.

First block by block (blockwise.py), then as a whole (training.py): forward KL at temperature 1 on mixed
windows of a text, with nothing beside it. All weights are trained in float32, or adapters of low rank on the
matrices of the blocks (lora.py) where the moments of all find no room. The original is computed beside the
student, which has no sampling noise, where it finds room, else its samples are put on disk first
(targets.py); in the first epoch both cost the same time.

Peak memory: of training, 16 bytes a trained and 4 a frozen weight, 4 a weight of an original beside the
student, and `student.activations`; of what comes before and of writing, no more than that, or the weights and
what `Sampled.fill` says. Disk: 16 bytes a trained weight, the samples, and the healed folder.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter

from tenth.calibration.layerwise import LayerwiseModel
from tenth.core import digests
from tenth.core.errors import InputError
from tenth.core.jobs import Emit
from tenth.core.store import write_text
from tenth.distillation.blockwise import reconstruct
from tenth.distillation.settings import DistilResult, DistilSettings
from tenth.distillation.student import (
    BATCH,
    FUSED,
    JUDGEMENTS,
    USABLE,
    Means,
    Trainable,
    even,
    forward_of,
    fuse,
    opened,
    split,
)
from tenth.distillation.targets import Live, Sampled
from tenth.distillation.training import Schedule, Targets, TrainingOutcome, evaluate, gradient, train
from tenth.models.checkpoint import Checkpoint
from tenth.models.edit import replaced
from tenth.models.formats.folder import write_folder
from tenth.quantization.scales import whole

RATE, LORA_RATE = 3e-4, 2e-3
LOCAL, LOCAL_RATE = 0.3, 3.0  # of the tokens, by blocks, at so many times the rate; adapters go without
STEPS = 1000  # wanted before one takes more windows
JUDGING = 2.5  # windows trained on between two judgements, for each window judged on
TIMED = 3  # gradients that are timed to plan minutes
FORWARD = 1 / 3  # of the time of a gradient
Value = TypeVar("Value")


@dataclass(frozen=True)
class _Plan:
    """How a training budget is spent."""

    local: int  # windows that are trained on block by block
    schedule: Schedule  # of training the whole, after that


@dataclass(frozen=True)
class _Teacher:
    """The original, computed beside the student or sampled onto disk."""

    original: LayerwiseModel  # filled where it is beside the student
    kept: np.ndarray | None  # its ids of the student's ids
    beside: bool
    vocabulary: int  # the student's
    folder: Path  # for the samples
    seed: int

    def targets(self, name: str, windows: np.ndarray, emit: Callable[[int], None] | None = None) -> Targets:
        """Its distributions on some windows; emits how many are sampled."""
        if self.beside:
            return Live(forward_of(self.original, self.kept), windows)
        sampled = Sampled(self.folder / f"{name}.bin", windows, self.vocabulary, self.original.device)
        sampled.fill(self.original, self.kept, self.seed, emit)
        return sampled


@dataclass(frozen=True)
class _Training:
    """What the phases of a training work with."""

    settings: DistilSettings
    folder: Path  # for what a killed run resumes from
    means: Means
    student: LayerwiseModel  # filled
    trainable: Trainable
    teacher: _Teacher
    judge: Targets  # of the windows that are judged on
    learning: np.ndarray  # int32 [windows, T] to train on


def distil(settings: DistilSettings, emit: Emit) -> DistilResult:
    """Train the model and write it as a float32 Hugging Face folder; resumes.

    Windows are trained on again and again while the training budget lasts. Emits {"done", "total"} in
    windows. InputError for files that do not belong together, and too little memory.
    """
    start, folder = time.monotonic(), settings.folder / "healing"
    folder.mkdir(exist_ok=True)
    student, original = opened(settings)
    windows, kept = _inputs(student.checkpoint, original.checkpoint, settings.tokens, settings.kept)
    length, vocabulary = windows.shape[1], student.checkpoint.shape.vocab
    memory = round(USABLE * torch.cuda.mem_get_info()[1]) if settings.device == "cuda" else settings.memory
    means = _once(
        folder / "means.json", Means, lambda: Means.within(memory, student, original, length, settings.lora)
    )
    judging, learning = split(windows, settings.seed)
    with ExitStack() as stack:
        stack.enter_context(whole(student))
        trainable = Trainable(student, means.rank, settings.seed)
        if means.beside:
            stack.enter_context(whole(original))
        teacher = _Teacher(original, kept, means.beside, vocabulary, folder, settings.seed)
        begun = time.monotonic()
        judge = teacher.targets("judging", judging)
        sampling = 0.0 if means.beside else (time.monotonic() - begun) / len(judging)
        training = _Training(settings, folder, means, student, trainable, teacher, judge, learning)
        plan = _once(folder / "plan.json", _Plan, lambda: _planned(training, start, sampling))
        before = _once(
            folder / "before.json", float, lambda: evaluate(forward_of(student), judge, means.micro_batch)
        )
        trained = _train(training, plan, before, emit)
        values = trainable.values()
        if trained.after >= before:
            values = {}
            note = f"healing did not help (KL {before:.4f}, then {trained.after:.4f}) and is left out"
            trained = replace(trained, after=before, notes=(*trained.notes, note))
        write_folder(replaced(student.checkpoint, values), settings.folder)
    digests.forget(folder)
    return DistilResult(
        **asdict(trained),
        tokens=(plan.local + trained.steps * plan.schedule.batch) * length,
        local=plan.local,
        lora=means.rank,
        original="computed beside it" if means.beside else "sampled",
    )


def _planned(training: _Training, start: float, sampling: float) -> _Plan:
    """What the budget allows; start: when the run began; sampling: seconds that sampling a window takes."""
    settings, means, learning = training.settings, training.means, training.learning
    budget, length = settings.training_budget, learning.shape[1]
    count = budget.tokens // length
    if budget.seconds:
        gradient_seconds = _gradient_seconds(training)
        left = budget.seconds - (time.monotonic() - start)
        count = _windows_within(left, gradient_seconds, sampling, len(learning))
    states = 12 * length * training.student.width  # bytes of a window in `reconstruct`
    room = 8 * sum(parameter.numel() for parameter in training.trainable.parameters) // states
    local = 0 if means.rank else min(int(LOCAL * count), len(learning), room)  # there, moments come later
    rate = settings.rate or (LORA_RATE if means.rank else RATE)
    batch = min(BATCH, max(1, (count - local) // STEPS))
    steps = max(1, (count - local) // batch)
    every = max(math.ceil(steps / JUDGEMENTS), math.ceil(JUDGING * len(training.judge.windows) / batch))
    micro_batch = even(batch, means.micro_batch)
    return _Plan(local, Schedule(steps, batch, rate, min(every, steps), settings.seed, micro_batch))


def _train(training: _Training, plan: _Plan, before: float, emit: Emit) -> TrainingOutcome:
    """Train the student's blocks one by one, then the whole; before: its divergence before both."""
    student, teacher, folder = training.student, training.teacher, training.folder
    local, schedule = plan.local, plan.schedule
    windows = schedule.steps * schedule.batch
    rest = np.roll(training.learning, -local, 0)[:windows]
    sampled = 0.0 if teacher.beside else FORWARD * len(rest)  # the work of it, in windows trained on
    total = local + sampled + windows

    def report(done: float) -> None:
        emit({"done": done, "total": total})

    if windows * rest.shape[1] >= FUSED:
        fuse(student, *([teacher.original] if teacher.beside else []))
    if local and not (folder / "state.npz").exists():
        reconstruct(
            student,
            teacher.original,
            teacher.beside,
            training.learning[:local],
            teacher.kept,
            Schedule(local, 1, LOCAL_RATE * schedule.rate, local, training.settings.seed),
            folder,
            lambda blocks: report(local * blocks / len(student.blocks)),
        )
    targets = teacher.targets("learning", rest, lambda number: report(local + FORWARD * number))
    return train(
        forward_of(student),
        training.trainable.parameters,
        targets,
        training.judge,
        schedule,
        folder,
        lambda step: report(local + sampled + step * schedule.batch),
        before,
    )


def _inputs(
    edited: Checkpoint, original: Checkpoint, tokens: Path, kept: Path | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """(windows, the original's ids of the edited model's), which belong to the two."""
    size, whole_size = edited.shape.vocab, original.shape.vocab
    windows = np.load(tokens, allow_pickle=False)
    if windows.ndim != 2 or windows.dtype != np.int32 or windows.shape[0] < 2 or windows.shape[1] < 2:
        raise InputError(f"{tokens}: healing needs two windows of tokens or more, as int32 [windows, tokens]")
    if windows.min() < 0 or windows.max() >= size:
        raise InputError(f"{tokens} holds tokens that are not in the vocabulary of {size} of {edited.path}")
    if kept is None:
        if size != whole_size:
            raise InputError(
                f"{edited.path} has {size} tokens, {original.path} {whole_size}; say which were kept"
            )
        return windows, None
    ids = np.load(kept, allow_pickle=False)
    if ids.shape != (size,) or ids.dtype != np.int64 or ids.min() < 0 or ids.max() >= whole_size:
        raise InputError(f"{kept} must hold, as int64, the id in {original.path} of each of {size} tokens")
    return windows, ids


def _once(path: Path, kind: type[Value], decide: Callable[[], Value]) -> Value:
    """What was decided when the run began, which a resumed one keeps to (JSON)."""
    adapter = TypeAdapter(kind)
    if not path.exists():
        write_text(path, json.dumps(adapter.dump_python(decide(), mode="json")))
    return adapter.validate_python(json.loads(path.read_text()))


def _gradient_seconds(training: _Training) -> float:
    """Of the gradient of one window, with its part of the judging; the first one warms up."""
    judge, micro_batch = training.judge, training.means.micro_batch
    forward, parameters = forward_of(training.student), training.trainable.parameters
    rows, times = np.arange(min(micro_batch, len(judge.windows))), []
    for _ in range(1 + TIMED):
        start = time.monotonic()
        float(gradient(forward, parameters, judge, rows, micro_batch))
        times.append(time.monotonic() - start)
    return float(np.median(times[1:])) / len(rows) * (1 + FORWARD / JUDGING)


def _windows_within(seconds: float, gradient: float, sampling: float, count: int) -> int:
    """Windows to train on in that time; `count` different ones are sampled once each."""
    return int(max(seconds / (gradient + sampling), (seconds - count * sampling) / gradient))
