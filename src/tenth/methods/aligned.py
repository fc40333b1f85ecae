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
from tenth.methods.amount import Amount
from tenth.methods.heal import BATCH, HELD_BACK, HELD_SHARE, JUDGEMENTS, SHARE_BYTES, forward_of, parameters
from tenth.methods.training import Schedule, train
from tenth.methods.vocabulary import KEPT, fallen
from tenth.surgery import replaced
from tenth.walk import Walk

RATE = 3e-4
STEPS = 200  # wanted before one takes more windows
TINY = 1e-30  # a sum of probabilities that is none


class Aligned:
    """Targets of training.py, the original beside the student.

    forward: the original, its ids [B, T] -> logits [B, T, vocabulary]. originals: windows of its ids, int32
    [count, T]. pieces: vocabulary.fallen; what the embedding has behind those ids counts as never said.
    windows: the student's, int32 [count, longest], padded behind.
    Memory: the original, and a few [B, T, vocabulary] of float32.
    """

    def __init__(
        self,
        forward: Callable[[np.ndarray], torch.Tensor],
        originals: np.ndarray,
        pieces: Sequence[tuple[int, ...]],
    ) -> None:
        self._forward, self._originals = forward, originals
        longest = max(sum(len(pieces[token]) for token in window) for window in originals)
        self.windows = np.zeros((len(originals), longest), np.int32)
        self._starts = np.zeros(originals.shape, np.int64)  # where each token's first piece stands
        for number, window in enumerate(originals):
            parts = [pieces[token] for token in window]
            row = [piece for part in parts for piece in part]
            self.windows[number, : len(row)] = row
            self._starts[number] = np.cumsum([0, *(len(part) for part in parts)])[:-1]
        self._lengths = np.array([len(part) for part in pieces])
        most = int(self._lengths.max())
        self._pieces = torch.tensor([(*part, *[-1] * (most - len(part))) for part in pieces]).T.contiguous()

    def divergence(self, logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Nats per token of the original, of windows `rows`, from logits [B, longest, its size]."""
        found, pieces = logits.float().log_softmax(-1), self._pieces.to(logits.device)
        count = pieces.shape[1]
        with torch.no_grad():
            before = self._forward(self._originals[rows])[:, :-1, :count].float().softmax(-1)
        starts = torch.from_numpy(self._starts[rows][:, 1:]).to(found.device)
        begun = found.gather(1, (starts - 1)[..., None].expand(*starts.shape, found.shape[-1]))
        first = torch.zeros_like(begun).index_add_(-1, pieces[0].clamp_min(0), before)
        total = _divergence(first, begun)
        said = self._originals[rows][:, 1:]
        for depth in range(1, len(pieces)):
            batch, place = np.nonzero(self._lengths[said] > depth)
            token = torch.from_numpy(said[batch, place].astype(np.int64)).to(found.device)
            going_on = pieces[depth] >= 0
            for earlier in pieces[:depth]:
                going_on = going_on & (earlier == earlier[token][:, None])
            chances = before[batch, place] * going_on
            chances /= chances.sum(-1, keepdim=True).clamp_min(TINY)
            inner = found[batch, self._starts[rows][:, 1:][batch, place] - 1 + depth]
            total = total + _divergence(
                torch.zeros_like(inner).index_add_(-1, pieces[depth].clamp_min(0), chances), inner
            )
        return total / starts.numel()


def _divergence(wanted: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
    """The sum of KL(wanted || exp(said)) over all but the last axis."""
    return torch.xlogy(wanted, wanted).sum() - (wanted * said).sum()


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
    length, size = windows.shape[1], int(teacher.checkpoint.config["vocab_size"])
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    share = max(1, SHARE_BYTES // (4 * length * size)) if device == "cuda" else 1
    order = np.random.default_rng(seed).permutation(len(windows))
    held = min(HELD_BACK, len(windows) // HELD_SHARE + 1)
    count = Amount.parse(amount).tokens // length
    if not count:
        raise InputError(f"healing of a vocabulary is given in tokens, at least {length}: not {amount!r:.40}")
    batch = min(BATCH, max(1, count // STEPS))
    steps = max(1, count // batch)
    schedule = Schedule(steps, batch, rate, max(1, steps // JUDGEMENTS), seed, share)
    with ExitStack() as stack:
        for walk in (student, teacher):
            stack.enter_context(whole(walk))
        weights = parameters(student)
        for parameter in weights.values():
            parameter.requires_grad_(True)
        beside = forward_of(teacher)
        judge = Aligned(beside, windows[order[:held]], pieces)
        targets = Aligned(beside, windows[order[held:]], pieces)
        outcome = train(
            forward_of(student), list(weights.values()), targets, judge, schedule, here,
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
