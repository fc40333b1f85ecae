"""The loop of healing, for any torch model: AdamW down KL(original || student) at T = 1 and nothing else.

Gradients are those of whole steps, clipped to norm 1; the learning rate rises over a tenth of the steps and
falls to a tenth along a cosine. Held-back windows are judged on at the start, every few steps and at the end,
and the weights that did best there are what is left; a run that diverges stops.

A killed run goes on from its last save to the same result, bit for bit where torch computes alike (one
processor, the same threads). Memory: 16 bytes a trained parameter (weight, gradient, two moments); saving
takes no more, but 12 bytes of the host's memory for what is on a GPU. On disk: 12 bytes for the state, 4 for
the best weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from tenth.core.store import atomic

Forward = Callable[[np.ndarray], torch.Tensor]  # int32 ids [B, T] -> logits [B, T, vocabulary]

WARM_UP, FLOOR = 0.1, 0.1  # of the steps; of the rate
BETAS, EPSILON = (0.9, 0.95), 1e-8
CLIP = 1.0  # norm of the whole gradient
LOOK = 16  # steps between looks at whether a GPU's gradients are finite: each waits for it
PATIENCE, RISE = 3, 0.25  # judgements in a row, and the share they rise by, before a run is stopped
SAVE_SECONDS = 30.0  # between saves; and ten times what a save takes


class Targets(Protocol):
    """The original's distributions on some windows (targets.py)."""

    windows: np.ndarray  # int32 [count, T]

    def divergence(self, logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """KL(original || student) in nats per predicted token, of windows `rows`, from logits [B, T, V]."""


@dataclass(frozen=True)
class Schedule:
    """How many steps a training takes, and its learning rate at each."""

    steps: int
    batch: int  # windows of a step
    rate: float  # of AdamW, at its highest
    every: int  # steps between judgements
    seed: int = 0
    micro_batch: int = 1  # windows that go through the model together

    def at(self, step: int) -> float:
        """The learning rate of step 0..steps - 1."""
        warm = max(1, round(WARM_UP * self.steps))
        if step < warm:
            return self.rate * (step + 1) / warm
        down = (step - warm) / max(1, self.steps - warm)
        return self.rate * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * down)) / 2)

    def rows(self, step: int, count: int) -> np.ndarray:
        """Which of `count` windows a step takes: each once an epoch, mixed by seed and epoch."""
        places = np.arange(step * self.batch, (step + 1) * self.batch)
        orders = {
            e: np.random.default_rng([self.seed, int(e)]).permutation(count) for e in set(places // count)
        }
        return np.array([orders[place // count][place % count] for place in places])


@dataclass(frozen=True)
class TrainingOutcome:
    """How a training went; KL in nats per token on the held-back windows."""

    before: float
    after: float  # of the weights that are left
    step: int  # theirs
    steps: int  # that were made
    judged: tuple[tuple[int, float], ...]  # (step, KL there)
    notes: tuple[str, ...] = ()  # for the person


def train(
    forward: Forward,
    parameters: Sequence[torch.nn.Parameter],
    targets: Targets,
    judge: Targets,
    schedule: Schedule,
    folder: Path,
    emit: Callable[[int], None] | None = None,
    before: float = math.nan,
) -> TrainingOutcome:
    """Train the parameters that `forward` computes with; they end as the best ones judged.

    folder: keeps state.npz and best.npz, from which the same call resumes; the caller removes them. emit:
    called with the steps made. before: the KL of what was to be healed, if something was done to it already.
    """
    state = _TrainingState(parameters, folder)
    if not state.judged:
        state.judge(evaluate(forward, judge, schedule.micro_batch))
    before = state.judged[0][1] if math.isnan(before) else before
    reason, watched = state.diverged(before), torch.zeros(())
    while state.step < schedule.steps and not reason:
        rows = schedule.rows(state.step, len(targets.windows))
        loss = gradient(forward, parameters, targets, rows, schedule.micro_batch)
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        state.move(schedule.at(state.step))
        watched = watched + loss + norm  # once not finite, always
        if (loss.is_cpu or state.step % LOOK == 0) and not math.isfinite(float(watched)):
            reason = f"the gradient is not finite (KL {float(loss):.3g})"
            break
        if state.step % schedule.every == 0 or state.step == schedule.steps:
            state.judge(evaluate(forward, judge, schedule.micro_batch))
            reason = state.diverged(before)
        elif state.due():
            state.save()
        if emit is not None:
            emit(state.step)
    for parameter in parameters:
        parameter.grad = None
    trained = state.finish(before)
    if not reason:
        return trained
    note = (
        f"healing stopped at step {trained.steps} of {schedule.steps}: {reason};"
        f" the weights of step {trained.step} are kept"
        f" (KL {trained.after:.4f}, before healing {before:.4f})"
    )
    return replace(trained, notes=(note,))


def adam(parameters: Sequence[torch.nn.Parameter]) -> torch.optim.AdamW:
    """The optimiser, without weight decay; the rate is set at each step."""
    return torch.optim.AdamW(parameters, lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True)


def gradient(
    forward: Forward,
    parameters: Sequence[torch.nn.Parameter],
    targets: Targets,
    rows: np.ndarray,
    micro_batch: int,
) -> torch.Tensor:
    """Leave the gradient of the mean KL over windows `rows` in the parameters, `micro_batch` windows at a
    time; returns the KL, [], on the parameters' device, so that nobody waits for it.
    """
    for parameter in parameters:
        parameter.grad = None
    total = torch.zeros((), device=parameters[0].device)
    for start in range(0, len(rows), micro_batch):
        part = rows[start : start + micro_batch]
        loss = targets.divergence(forward(targets.windows[part]), part) * (len(part) / len(rows))
        torch.autograd.backward(loss)
        total += loss.detach()
    return total


def evaluate(forward: Forward, targets: Targets, micro_batch: int = 1) -> float:
    """The mean KL over all windows; infinite where it is not a number."""
    total, rows = 0.0, np.arange(len(targets.windows))
    with torch.no_grad():
        for start in range(0, len(rows), micro_batch):
            part = rows[start : start + micro_batch]
            total += float(targets.divergence(forward(targets.windows[part]), part)) * len(part)
    return total / len(rows) if math.isfinite(total) else math.inf


class _TrainingState:
    """Where training stands; in files since the last save."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], folder: Path) -> None:
        self._parameters, self._folder = parameters, folder
        self.step = 0
        self.judged: list[tuple[int, float]] = []
        self._optimiser = adam(parameters)
        self._pause, self._saved = SAVE_SECONDS, time.monotonic()
        if (folder / "state.npz").exists():
            self._load()

    def move(self, rate: float) -> None:
        """Take one step of AdamW."""
        self._optimiser.param_groups[0]["lr"] = rate
        self._optimiser.step()
        self.step += 1

    def judge(self, kl: float) -> None:
        """Note the KL of the present weights; keep them if they are the best so far."""
        best = min((value for _, value in self.judged), default=math.inf)
        self.judged.append((self.step, kl))
        if kl < best or self.step == 0:
            self._write("best.npz", {}, {"weight": self._parameters})
            self.save()

    def diverged(self, before: float) -> str:
        """Why the run should stop; empty while it should not."""
        last = [value for _, value in self.judged[-PATIENCE - 1 :]]
        if len(last) > PATIENCE:
            kls = ", ".join(f"{value:.4f}" for value in last)
            if all(b > a for a, b in pairwise(last)) and last[-1] > (1 + RISE) * last[0]:
                return f"the KL on held-back windows rose {PATIENCE} times in a row ({kls})"
            if min(last[1:]) > before:
                return f"the KL on held-back windows was worse than before healing {PATIENCE} times ({kls})"
        return ""

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self._pause

    def save(self) -> None:
        """Write everything that resuming needs to state.npz."""
        start = time.monotonic()
        moments = {
            name: [self._optimiser.state[p].get(name, torch.zeros_like(p)) for p in self._parameters]
            for name in ("exp_avg", "exp_avg_sq")
        }
        scalars: dict[str, int | np.ndarray] = {
            "step": self.step,
            "judged": np.array(self.judged, np.float64),
        }
        self._write("state.npz", scalars, {"weight": self._parameters, **moments})
        self._saved = time.monotonic()
        self._pause = max(SAVE_SECONDS, 10 * (self._saved - start))

    def finish(self, before: float) -> TrainingOutcome:
        """Give the parameters the best weights."""
        with np.load(self._folder / "best.npz", allow_pickle=False) as data:
            _fill(self._parameters, data, "weight")
        step, least = min(self.judged, key=lambda pair: pair[1])
        return TrainingOutcome(before, least, step, self.step, tuple(self.judged))

    def _write(
        self, name: str, scalars: Mapping[str, int | np.ndarray], groups: Mapping[str, Sequence[torch.Tensor]]
    ) -> None:
        views = {f"{g}{i}": t.detach().cpu().numpy() for g, ts in groups.items() for i, t in enumerate(ts)}
        with atomic(self._folder / name) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **scalars, **views)

    def _load(self) -> None:
        with np.load(self._folder / "state.npz", allow_pickle=False) as data:
            self.step = int(data["step"])
            self.judged = [(int(step), float(kl)) for step, kl in data["judged"]]
            _fill(self._parameters, data, "weight")
            if self.step:
                for p in self._parameters:
                    zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                    self._optimiser.state[p] = {
                        "step": torch.tensor(float(self.step), device=p.device),
                        **zeros,
                    }
                for name in ("exp_avg", "exp_avg_sq"):
                    _fill([self._optimiser.state[p][name] for p in self._parameters], data, name)


def _fill(tensors: Sequence[torch.Tensor], data: Mapping[str, np.ndarray], group: str) -> None:
    with torch.no_grad():
        for i, tensor in enumerate(tensors):
            tensor.copy_(torch.from_numpy(data[f"{group}{i}"]))
