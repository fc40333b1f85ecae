"""What a model with a trimmed vocabulary is taught: the original's distributions over the same text.

The original must read its own tokens. Read in the pieces of the trimmed vocabulary, a text is as strange to
it as to the model that is to be healed. So a window is the original's, and the student's is the same with
every token replaced by its pieces (vocabulary.fallen). Where a token begins, the original's distribution over
tokens is one over first pieces,

    q(a) = sum of p(t) over the tokens t whose first piece is a,

and the loss is KL(q || student). Inside a token that fell apart, behind pieces a, the original's distribution
is that over tokens which begin with these pieces and go on:

    q(b | a) = sum of p(t) over the tokens t whose pieces begin with a, b / the same over those with a.

The KLs are summed and divided by the original's tokens. (That a piece may also be a whole token, behind which
another begins, the student learns from how often the text has either.)

Peak memory: 16 bytes a weight of the student, 4 a weight of the original, and heal.activations.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenth.checkpoint import open_checkpoint
from tenth.distil import whole
from tenth.errors import InputError
from tenth.formats.folder import write_folder
from tenth.methods import heal
from tenth.methods.amount import Amount
from tenth.methods.training import Schedule, train
from tenth.methods.vocabulary import KEPT, fallen
from tenth.surgery import replaced
from tenth.walk import Walk, moved

RATE = 3e-4
STEPS = 200  # wanted before one takes more windows
TINY = 1e-30  # a sum of probabilities that is none


class Aligned:
    """Targets of training.py, the original beside the student.

    forward: the original, its ids [B, T] -> logits [B, T, vocabulary]. originals: windows of its ids, int32
    [count, T]. pieces: vocabulary.fallen; what the embedding has behind those ids counts as never said.
    windows: the student's, int32 [count, longest], padded behind. device: of the logits.
    Memory: the original, and a few [B, T, vocabulary] of float32.
    """

    def __init__(
        self,
        forward: Callable[[np.ndarray], torch.Tensor],
        originals: np.ndarray,
        pieces: Sequence[tuple[int, ...]],
        device: str = "cpu",
    ) -> None:
        self._forward, self._originals, self._device = forward, originals, device
        self._lengths = np.array([len(part) for part in pieces])
        ends = self._lengths[originals].cumsum(1)
        self._starts = ends - self._lengths[originals]  # where each token's first piece stands
        self.windows = np.zeros((len(originals), ends.max()), np.int32)
        every = np.array([piece for part in pieces for piece in part])
        firsts = self._lengths.cumsum() - self._lengths
        for row, window, starts in zip(self.windows, originals, self._starts, strict=True):
            places = np.repeat(firsts[window] - starts, self._lengths[window])
            row[: len(places)] = every[places + np.arange(len(places))]
        most = int(self._lengths.max())
        padded = np.array([(*part, *[-1] * (most - len(part))) for part in pieces])
        self._pieces = self._to(padded.T)  # [most, tokens]
        self._going = [self._to(np.flatnonzero(self._lengths > depth)) for depth in range(most)]

    def divergence(self, logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Nats per token of the original, of windows `rows`, from logits [B, longest, its size]."""
        with torch.no_grad():
            wanted = self._wanted(rows, logits)
            known = torch.xlogy(wanted, wanted).sum()
        said = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), wanted, reduction="sum")
        total: torch.Tensor = (known + said) / (len(rows) * (self._starts.shape[1] - 1))
        return total

    def _wanted(self, rows: np.ndarray, logits: torch.Tensor) -> torch.Tensor:
        """What each position is to say next, [B * longest, size]; zeros where there is nothing to say."""
        batch, longest, size = logits.shape
        before = self._forward(self._originals[rows])[:, :-1, : len(self._lengths)]
        before = before.float().softmax(-1).flatten(0, 1)
        said = self._originals[rows][:, 1:].ravel()
        place = (self._starts[rows][:, 1:] - 1 + longest * np.arange(batch)[:, None]).ravel()
        wanted = torch.zeros(batch * longest, size, device=self._device)
        for depth, (piece, going) in enumerate(zip(self._pieces, self._going, strict=True)):
            inside = np.flatnonzero(self._lengths[said] > depth)
            chances = (before[self._to(inside)] if depth else before)[:, going]
            if depth:
                token = self._to(said[inside])
                for earlier in self._pieces[:depth]:
                    chances *= earlier[going] == earlier[token][:, None]
                chances /= chances.sum(-1, keepdim=True).clamp_min(TINY)
            found = torch.zeros(len(inside), size, device=self._device)
            found.index_add_(1, piece[going], chances)
            wanted.index_copy_(0, self._to(place[inside] + depth), found)
        return wanted

    def _to(self, places: np.ndarray) -> torch.Tensor:
        return moved(places.astype(np.int64), self._device)


def run(
    emit: Callable[[dict[str, Any]], None], model: str, original: str, tokens: str, folder: str, amount: str,
    seed: int, threads: int, device: str = "cpu", rate: float = RATE,
) -> dict[str, Any]:  # fmt: skip
    """In a child process: a model with a trimmed vocabulary, healed, as a float32 folder; resumes.

    model: the trimmed folder, as vocabulary.run wrote it. tokens: a file of int32 [windows, T] in the ids of
    the ORIGINAL; some are judged on, the others trained on. amount: in tokens. Emits {"done", "total"} in
    windows. Returns the loss before and after in nats per token of the original, and notes for the person.
    InputError for files that do not belong together.
    """
    here = Path(folder) / "healing"
    here.mkdir(parents=True, exist_ok=True)
    student, teacher = (Walk(open_checkpoint(Path(path)), threads, device) for path in (model, original))
    windows, pieces = _inputs(student, teacher, tokens)
    length = windows.shape[1]
    together = 1
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        together = heal.means(student, teacher, length, torch.cuda.mem_get_info()[0], 0)[2]
    order = np.random.default_rng(seed).permutation(len(windows))
    held = min(heal.HELD_BACK, len(windows) // heal.HELD_SHARE + 1)
    count = Amount.parse(amount).tokens // length
    if not count:
        raise InputError(f"healing of a vocabulary is given in tokens, at least {length}: not {amount!r:.40}")
    batch = min(heal.BATCH, max(1, count // STEPS))
    steps = max(1, count // batch)
    every = max(1, steps // heal.JUDGEMENTS)
    schedule = Schedule(steps, batch, rate, every, seed, heal.even(batch, together))
    with ExitStack() as stack:
        for walk in (student, teacher):
            stack.enter_context(whole(walk))
        if count * length >= heal.FUSED:
            heal.fuse(student, teacher)
        weights = heal.parameters(student)
        for parameter in weights.values():
            parameter.requires_grad_(True)
        beside = heal.forward_of(teacher)
        judge = Aligned(beside, windows[order[:held]], pieces, device)
        targets = Aligned(beside, windows[order[held:]], pieces, device)
        outcome = train(
            heal.forward_of(student), list(weights.values()), targets, judge, schedule, here,
            lambda step: emit({"done": step * batch, "total": steps * batch}),
        )  # fmt: skip
        values = {source: weight.detach().cpu().numpy() for source, weight in weights.items()}
        write_folder(replaced(student.checkpoint, values), Path(folder))
    shutil.copyfile(Path(model) / KEPT, Path(folder) / KEPT)
    shutil.rmtree(here)
    return {
        "before": outcome.before, "after": outcome.after, "step": outcome.step, "steps": outcome.steps,
        "tokens": outcome.steps * batch * length, "judged": outcome.judged, "notes": outcome.notes,
    }  # fmt: skip


def _inputs(student: Walk, teacher: Walk, tokens: str) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """(windows of the original's ids, what each of those becomes), which belong to the two models."""
    whole_size, size = (int(walk.checkpoint.config["vocab_size"]) for walk in (teacher, student))
    file = student.checkpoint.path / KEPT
    if not file.is_file():
        raise InputError(
            f"{student.checkpoint.path} has no {KEPT}; give a folder whose vocabulary was trimmed"
        )
    kept = np.load(file, allow_pickle=False)
    if kept.shape != (size,) or kept.dtype != np.int64 or kept.min() < 0 or kept.max() >= whole_size:
        raise InputError(f"{file} must hold, as int64, the id in the original of each of {size} tokens")
    windows = np.load(tokens, allow_pickle=False)
    if windows.ndim != 2 or windows.dtype != np.int32 or windows.shape[0] < 2 or windows.shape[1] < 2:
        raise InputError(f"{tokens}: healing needs two windows of tokens or more, as int32 [windows, tokens]")
    pieces = fallen(teacher.checkpoint.path, kept.tolist())
    known = np.array([bool(part) for part in pieces])
    if windows.min() < 0 or windows.max() >= len(known) or not known[windows].all():
        raise InputError(f"{tokens} holds ids that are no tokens of {teacher.checkpoint.path}")
    return windows, pieces
