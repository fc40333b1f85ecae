"""Healing: what structural edits hurt is trained back towards the original's distribution.

First block by block (local.py), then as a whole (training.py): forward KL at temperature 1 on mixed windows
of a text, with nothing beside it. All weights are trained in float32, or adapters of low rank on the matrices
of the blocks (lora.py) where the moments of all find no room. The original is computed beside the student,
which has no sampling noise, where it finds room, else its samples are put on disk first (targets.py); in the
first epoch both cost the same time.

Peak memory: of training, 16 bytes a trained and 4 a frozen weight, 4 a weight of an original beside the
student, and `activations`; of what comes before and of writing, no more than that, or the weights and what
`Sampled.fill` says. Disk: 16 bytes a trained weight, the samples, and the healed folder.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenth.calibration.layerwise import LayerwiseModel
from tenth.core.errors import InputError
from tenth.core.format import megabytes
from tenth.core.jobs import Emit
from tenth.core.store import write_text
from tenth.distillation.blockwise import reconstruct
from tenth.distillation.lora import adapt
from tenth.distillation.settings import DistilResult, DistilSettings
from tenth.distillation.targets import Live, Sampled, chosen, translated
from tenth.distillation.training import Forward, Schedule, Targets, evaluate, gradient, train
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.models.edit import replaced
from tenth.models.formats.folder import write_folder
from tenth.quantization.scales import whole

RATE, LORA_RATE = 3e-4, 2e-3
LOCAL, LOCAL_RATE = 0.3, 3.0  # of the tokens, by blocks, at so many times the rate; adapters go without
RANK = 16  # of adapters, where none is given
HELD_BACK, HELD_SHARE = 16, 16  # windows to judge on: at most so many, and one in so many of those given
STEPS, BATCH = 1000, 64  # steps wanted before one takes more windows; windows of a step at most
JUDGEMENTS, JUDGING = 20, 2.5  # at most; windows trained on between two, for each window judged on
FUSED = 20_000_000  # tokens from which on compiling a GPU's blocks pays: it takes 15 s, and halves a step
TIMED = 3  # gradients that are timed to plan minutes
FORWARD = 1 / 3  # of the time of a gradient


def distil(settings: DistilSettings, emit: Emit) -> DistilResult:
    """Train the model and write it as a float32 Hugging Face folder; resumes.

    Windows are trained on again and again while the training budget lasts. Emits {"done", "total"} in
    windows. InputError for files that do not belong together, and too little memory.
    """
    seed, device, lora, rate = settings.seed, settings.device, settings.lora, settings.rate
    start, here = time.monotonic(), settings.folder / "healing"
    here.mkdir(exist_ok=True)
    student, teacher = (
        LayerwiseModel(open_checkpoint(path), settings.threads, device)
        for path in (settings.model, settings.original)
    )
    windows, ids = _inputs(student.checkpoint, teacher.checkpoint, settings.tokens, settings.kept)
    memory = settings.memory
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        memory = torch.cuda.mem_get_info()[0]
    vocabulary, length = int(student.checkpoint.config["vocab_size"]), windows.shape[1]
    rank, live, together = _once(here / "means.json", lambda: means(student, teacher, length, memory, lora))
    order = np.random.default_rng(seed).permutation(len(windows))
    held = min(HELD_BACK, len(windows) // HELD_SHARE + 1)
    judging, learning = windows[order[:held]], windows[order[held:]]
    with ExitStack() as stack:
        stack.enter_context(whole(student))
        weights = parameters(student)
        adapters = adapt(student, rank, seed) if rank else []
        learnt = [p for a in adapters for p in (a.down, a.up)] if rank else list(weights.values())
        for parameter in learnt:
            parameter.requires_grad_(True)
        if live:
            stack.enter_context(whole(teacher))
        forward, beside = forward_of(student), forward_of(teacher, ids)

        def targets(name: str, windows: np.ndarray, done: Callable[[int], None] | None = None) -> Targets:
            if live:
                return Live(beside, windows)
            sampled = Sampled(here / f"{name}.bin", windows, vocabulary, device)
            sampled.fill(teacher, ids, seed, done)
            return sampled

        begun = time.monotonic()
        judge = targets("judging", judging)
        once = 0.0 if live else (time.monotonic() - begun) / held

        def planned() -> dict[str, Any]:
            wanted = settings.training_budget
            count = wanted.tokens // length
            if wanted.seconds:
                each = _seconds(forward, learnt, judge, together)
                count = _windows_within(
                    wanted.seconds - (time.monotonic() - start), each, once, len(learning)
                )
            states = 12 * length * student.width  # bytes of a window in `reconstruct`
            room = 8 * sum(weight.numel() for weight in learnt) // states  # where moments will be
            local = 0 if rank else min(int(LOCAL * count), len(learning), room)
            made = _schedule(count - local, held, rate or (LORA_RATE if rank else RATE), seed, together)
            return {"local": local, **asdict(made)}

        plan = _once(here / "plan.json", planned)
        local, schedule = plan.pop("local"), Schedule(**plan)
        batches = schedule.steps * schedule.batch
        rest = np.roll(learning, -local, 0)[:batches]
        sampled = 0.0 if live else FORWARD * len(rest)  # the work of it, in windows trained on
        total = local + sampled + batches
        before = _once(here / "before.json", lambda: evaluate(forward, judge, together))
        if schedule.steps * schedule.batch * length >= FUSED:
            fuse(student, *([teacher] if live else []))
        if local and not (here / "state.npz").exists():
            blocks = len(student.blocks)
            reconstruct(
                student,
                teacher,
                live,
                learning[:local],
                ids,
                Schedule(local, 1, LOCAL_RATE * schedule.rate, local, seed),
                here,
                lambda n: emit({"done": local * n / blocks, "total": total}),
            )
        outcome = train(
            forward,
            learnt,
            targets("learning", rest, lambda n: emit({"done": local + FORWARD * n, "total": total})),
            judge,
            schedule,
            here,
            lambda step: emit({"done": local + sampled + step * schedule.batch, "total": total}),
            before,
        )
        for adapter in adapters:
            adapter.merge()
        values = {source: weight.detach().cpu().numpy() for source, weight in weights.items()}
        if outcome.after >= before:
            values = {}
            outcome.notes.append(
                f"healing did not help (KL {before:.4f}, then {outcome.after:.4f}) and is left out"
            )
        write_folder(replaced(student.checkpoint, values), settings.folder)
    shutil.rmtree(here)
    return DistilResult(
        before=before,
        after=min(before, outcome.after),
        judged=tuple(outcome.judged),
        local=local,
        step=outcome.step,
        steps=outcome.steps,
        tokens=(local + outcome.steps * schedule.batch) * length,
        lora=rank,
        original="computed beside it" if live else "sampled",
        notes=tuple(outcome.notes),
    )


def forward_of(layerwise: LayerwiseModel, kept: np.ndarray | None = None) -> Forward:
    """A filled model as a function of the student's ids; on a GPU the blocks compute in bfloat16."""
    cuda = layerwise.device.type == "cuda"

    def forward(tokens: np.ndarray) -> torch.Tensor:
        hidden = layerwise.embedded(translated(tokens, kept))
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            for index in range(len(layerwise.blocks)):
                hidden = layerwise.run(index, hidden)
        return chosen(layerwise.logits(hidden.float()), kept)

    return forward


def parameters(layerwise: LayerwiseModel) -> dict[str, torch.nn.Parameter]:
    """Every weight of a filled model by the checkpoint's name; a tied matrix is one parameter."""
    if layerwise.checkpoint.tied:
        layerwise.model.get_output_embeddings().weight = layerwise.embedding.weight
    known = {spec.source for spec in layerwise.checkpoint.specs()}
    return {
        f"{name}.{part}": parameter
        for name, module in layerwise.named_modules()
        for part, parameter in module.named_parameters(recurse=False)
        if f"{name}.{part}" in known
    }


def activations(layerwise: LayerwiseModel, tokens: int) -> int:
    """Bytes that a gradient of so many tokens takes beside the weights' own: what the blocks keep for it, and
    the vocabulary's logits and probabilities of both models.
    """
    kept = sum(
        linear.in_features + linear.out_features
        for index in range(len(layerwise.blocks))
        for linear in layerwise.linears(index)
    )
    return 4 * tokens * (2 * kept + 8 * int(layerwise.checkpoint.config["vocab_size"]))


def _inputs(
    edited: Checkpoint, original: Checkpoint, tokens: Path, kept: Path | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """(windows, the original's ids of the edited model's), which belong to the two."""
    size, whole_size = (int(c.config["vocab_size"]) for c in (edited, original))
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


def means(
    student: LayerwiseModel, teacher: LayerwiseModel, length: int, memory: int, lora: int | None
) -> tuple[int, bool, int]:
    """(the rank of adapters or 0, whether the original is computed beside the student, how many windows of
    `length` tokens go through at once) in so much memory.

    More than one only on a GPU. InputError where not even adapters find room.
    """
    weights, others = (sum(s.count for s in layerwise.checkpoint.specs()) for layerwise in (student, teacher))
    each = activations(student, length)
    room = memory - each
    rank = (0 if 16 * weights <= room else RANK) if lora is None else lora
    low = sum(
        rank * (linear.in_features + linear.out_features)
        for index in range(len(student.blocks))
        for linear in student.linears(index)
    )
    needed = 4 * weights + 16 * low if rank else 16 * weights
    if needed > room:
        raise InputError(
            f"healing {student.checkpoint.path.name} needs {megabytes(needed + memory - room)} MB"
            f" of memory{f' with adapters of rank {rank}' if rank else ''}; {megabytes(memory)} MB are free"
        )
    live = needed + 4 * others <= room
    left = room - needed - 4 * others * live
    return rank, live, min(BATCH, 1 + left // each) if student.device.type == "cuda" else 1


def fuse(*models: LayerwiseModel) -> None:
    """Let torch's compiler join the small operations of filled blocks on a GPU; blocks of one shape share the
    code. Where it cannot (no Triton, no C compiler), they stay as they are.
    """
    settings = torch._dynamo.config
    settings.suppress_errors = True
    settings.recompile_limit = max(
        settings.recompile_limit, 8 * sum(len(layerwise.blocks) for layerwise in models)
    )
    for layerwise in models:
        for block in layerwise.blocks if layerwise.device.type == "cuda" else ():
            block.compile(dynamic=False)


def even(batch: int, most: int) -> int:
    """Windows at once, at most `most`, that cut a batch into equal parts as far as can be."""
    return -(-batch // -(-batch // most))


def _once(path: Path, decide: Callable[[], Any]) -> Any:
    """What was decided when the run began, which a resumed one keeps to (JSON)."""
    if not path.exists():
        write_text(path, json.dumps(decide()))
    return json.loads(path.read_text())


def _seconds(forward: Forward, learnt: list[torch.nn.Parameter], judge: Targets, together: int) -> float:
    """Of the gradient of one window, with its part of the judging; the first one warms up."""
    rows, times = np.arange(min(together, len(judge.windows))), []
    for _ in range(1 + TIMED):
        start = time.monotonic()
        float(gradient(forward, learnt, judge, rows, together))
        times.append(time.monotonic() - start)
    return float(np.median(times[1:])) / len(rows) * (1 + FORWARD / JUDGING)


def _windows_within(seconds: float, each: float, once: float, count: int) -> int:
    """Windows to train on in that time; `count` different ones are sampled once each."""
    return int(max(seconds / (each + once), (seconds - count * once) / each))


def _schedule(total: int, held: int, rate: float, seed: int, together: int) -> Schedule:
    """About `total` windows in steps."""
    batch = min(BATCH, max(1, total // STEPS))
    steps = max(1, total // batch)
    every = max(math.ceil(steps / JUDGEMENTS), math.ceil(JUDGING * held / batch))
    return Schedule(steps, batch, rate, min(every, steps), seed, even(batch, together))
