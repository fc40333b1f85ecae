"""What a model with a trimmed vocabulary is taught: the original's distributions over the same text.

The original must read its own tokens. Read in the pieces of the trimmed vocabulary, a text is as strange to
it as to the model that is to be healed. So a window is the original's, and the student's is the same with
every token replaced by its pieces (vocabulary.retokenize). Behind the first pieces a of a token the student
cannot know whether it ends there. The original's distribution p, where the token begins, says how likely:

    end(a) = p(a) / sum of p(t) over the tokens t whose pieces begin with a,
    q(b | a) = sum of p(t) over those of them that go on with b / the same sum
             + end(a) * sum of p'(t) over the tokens t whose first piece is b,

where p' is the original's distribution behind the token with the pieces a. It is known where the text has
that token, and the loss is KL(q || student). Where the text's token goes on, the second line is known only as
a whole: the student is to give end(a) to all pieces that do not go on, for no text that the tokenizer cuts
has a token and then what would have made it a longer one. The KLs are summed and divided by the original's
tokens. (Teaching each position the one of the two that the text has is the same in the mean, but the student
learns by heart where: docs/log.md.)

Peak memory: 16 bytes a weight of the student, 4 a weight of the original, and student.activations.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from tenth.calibration.layerwise import LayerwiseModel, moved
from tenth.core import digests
from tenth.core.errors import InputError
from tenth.core.jobs import Emit
from tenth.distillation.settings import TrainingResult, TrainingSettings
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
from tenth.distillation.training import Schedule, train
from tenth.models.edit import replaced
from tenth.models.formats.folder import write_folder
from tenth.pruning.vocabulary import KEPT, retokenize
from tenth.quantization.scales import whole
from tenth.runtime.tokens import tokenizer

RATE = 1e-3
STEPS = 200  # wanted before one takes more windows
TINY = 1e-30  # a sum of probabilities that is none


class Aligned:
    """Targets of training.py, the original beside the student.

    forward: the original, its ids [B, T] -> logits [B, T, vocabulary]. originals: windows of its ids, int32
    [count, T]. pieces: vocabulary.retokenize; what the embedding has behind those ids counts as never said.
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
        token = {part: number for number, part in enumerate(pieces)}
        self._exact = [
            np.array([token.get(part[:depth], -1) for part in pieces]) for depth in range(1, most + 1)
        ]  # the token that ends after so many pieces of another; -1 for none

    def divergence(self, logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Nats per token of the original, of windows `rows`, from logits [B, longest, its size]."""
        logits = logits.float()
        with torch.no_grad():
            target, inside, other = self._target(rows, logits)
            negative_entropy = torch.xlogy(target, target).sum() + torch.xlogy(other, other).sum()
        logits = logits.flatten(0, 1)
        cross_entropy = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        inner = logits.index_select(0, inside)
        log_other = inner.masked_fill(target[inside] > 0, -torch.inf).logsumexp(-1) - inner.logsumexp(-1)
        tokens = len(rows) * (self._starts.shape[1] - 1)
        total: torch.Tensor = (negative_entropy + cross_entropy - (other * log_other).sum()) / tokens
        return total

    def _target(
        self, rows: np.ndarray, logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What each position is to say next, [B * longest, size], zeros where there is nothing to say; the
        positions inside tokens, and what each of those is to leave to other pieces than it is to say.
        """
        batch, longest, size = logits.shape
        before = self._forward(self._originals[rows])[:, :-1, : len(self._lengths)]
        before = before.float().softmax(-1).flatten(0, 1)  # of all tokens but the first of each window
        tokens, lengths = self._originals[rows][:, 1:], self._lengths[self._originals[rows][:, 1:]]
        starts = self._starts[rows][:, 1:] + longest * np.arange(batch)[:, None]
        target = torch.zeros(batch * longest, size, device=self._device)
        ends = torch.ones(tokens.size, device=self._device)
        inside, other = [torch.empty(0, dtype=torch.int64, device=self._device)], [ends[:0]]
        for depth, going in enumerate(self._going[1:], 1):
            some = lengths >= depth
            some[:, -1] &= lengths[:, -1] > depth  # nothing is known behind the last one
            token, place = tokens[some], self._to(starts[some] + depth - 1)
            row, exact = self._to(np.flatnonzero(some)), self._exact[depth - 1][token]
            chances = before[row[:, None], going]
            for earlier in self._pieces[:depth]:
                chances *= earlier[going] == earlier[self._to(token)][:, None]
            ending = before[row, self._to(exact)] * self._to(exact >= 0)
            every = (ending + chances.sum(-1)).clamp_min(TINY)
            ending /= every
            pieces = torch.zeros(len(row), size, device=self._device)
            pieces.index_add_(1, self._pieces[depth][going], chances.div_(every[:, None]))
            target.index_add_(0, place, pieces)
            over = self._to(np.flatnonzero(lengths[some] == depth))
            on = self._to(np.flatnonzero(lengths[some] > depth))
            ends[row[over]] = ending[over]
            inside.append(place[on])
            other.append(ending[on])
        ends = ends.view(batch, -1).roll(1, 1)
        ends[:, 0] = 1  # the first token's own distribution is not known
        firsts = torch.zeros(tokens.size, size, device=self._device)
        firsts.index_add_(1, self._pieces[0][self._going[0]], before[:, self._going[0]])
        target.index_add_(0, self._to(starts.ravel() - 1), firsts.mul_(ends.view(-1, 1)))
        return target, torch.cat(inside), torch.cat(other)

    def _to(self, places: np.ndarray) -> torch.Tensor:
        return moved(places.astype(np.int64), self._device)


def distil_vocabulary(settings: TrainingSettings, emit: Emit) -> TrainingResult:
    """Train a model with a trimmed vocabulary and write it as a float32 folder; resumes.

    The model is a folder that vocabulary.write_trimmed wrote, the windows are in the ids of the ORIGINAL, and
    the training budget is in tokens. Divergences are per token of the original. Emits {"done", "total"} in
    windows. InputError for files that do not belong together.
    """
    folder = settings.folder / "healing"
    folder.mkdir(parents=True, exist_ok=True)
    student, original = opened(settings)
    windows, pieces = _inputs(student, original, settings.tokens)
    length, micro_batch = windows.shape[1], 1
    if settings.device == "cuda":
        memory = round(USABLE * torch.cuda.mem_get_info()[1])
        micro_batch = Means.within(memory, student, original, length, 0).micro_batch
    schedule = _schedule(settings, length, micro_batch)
    judging, learning = split(windows, settings.seed)
    with ExitStack() as stack:
        for layerwise in (student, original):
            stack.enter_context(whole(layerwise))
        total = schedule.steps * schedule.batch
        if total * length >= FUSED:
            fuse(student, original)
        trainable = Trainable(student, 0, settings.seed)
        judge, targets = (
            Aligned(forward_of(original), part, pieces, settings.device) for part in (judging, learning)
        )
        trained = train(
            forward_of(student),
            trainable.parameters,
            targets,
            judge,
            schedule,
            folder,
            lambda step: emit({"done": step * schedule.batch, "total": total}),
        )
        write_folder(replaced(student.checkpoint, trainable.values()), settings.folder)
    shutil.copyfile(settings.model / KEPT, settings.folder / KEPT)
    digests.forget(folder)
    return TrainingResult(**asdict(trained), tokens=trained.steps * schedule.batch * length)


def _schedule(settings: TrainingSettings, length: int, micro_batch: int) -> Schedule:
    """The steps that the budget allows; InputError where that is none."""
    count = settings.training_budget.tokens // length
    if not count:
        raise InputError(f"healing of a vocabulary is given in tokens, such as 5Mtok, at least {length}")
    batch = min(BATCH, max(1, count // STEPS))
    steps = max(1, count // batch)
    every = max(1, steps // JUDGEMENTS)
    return Schedule(steps, batch, settings.rate or RATE, every, settings.seed, even(batch, micro_batch))


def begun(windows: np.ndarray, start: int | None) -> np.ndarray:
    """Every second window moved on by one, behind the token that a text begins behind."""
    if start is None:
        return windows
    moved_on = windows.copy()
    moved_on[::2, 1:], moved_on[::2, 0] = windows[::2, :-1], start
    return moved_on


def _inputs(
    student: LayerwiseModel, original: LayerwiseModel, tokens: Path
) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """(windows of the original's ids, half of them or all as the beginning of a text, what each of those ids
    becomes), which belong to the two models.
    """
    whole_size, size = original.checkpoint.shape.vocab, student.checkpoint.shape.vocab
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
    tokens_of_original = tokenizer(original.checkpoint.path)
    if not tokens_of_original.begin:  # else every window begins as a text does
        windows = begun(windows, tokens_of_original.start)
    pieces = retokenize(original.checkpoint.path, kept.tolist())
    is_token = np.array([bool(part) for part in pieces])
    if windows.min() < 0 or windows.max() >= len(is_token) or not is_token[windows].all():
        raise InputError(f"{tokens} holds ids that are no tokens of {original.checkpoint.path}")
    return windows, pieces
