"""What the student is taught: the original's distributions, computed beside it or kept on disk.

Kept ones are samples. To keep the most likely tokens only teaches a distribution without a tail (Anshumann et
al. 2025, arXiv 2503.16870, who sample tokens from the original's distribution instead). With counts c of N
samples, the cross-entropy -sum c/N log q has the gradient q - c/N in the logits, whose expectation is that of
the KL, q - p. We sample systematically: N evenly spaced points of the distribution function behind one random
offset, so c is N p rounded up or down, and the noise of N (p - floor) tokens is all that is left.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tenth.calibration.layerwise import LayerwiseModel, moved
from tenth.core.digests import Growing
from tenth.distillation.training import Forward

SAMPLES = 64  # a position
HIDDEN_BYTES = 256_000_000  # of hidden states that walk through the blocks together
POSITIONS = 64  # whose distribution functions, in double precision, are in memory together


class Live:
    """The original beside the student. Memory: its weights, and a few [B, T, V] of float32 more."""

    def __init__(self, forward: Forward, windows: np.ndarray) -> None:
        self._forward, self.windows = forward, windows

    def divergence(self, logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """KL of the student's logits on those rows to the target, nats (training.Targets)."""
        with torch.no_grad():
            log_p = self._forward(self.windows[rows])[:, :-1].float().log_softmax(-1)
        log_q = logits[:, :-1].float().log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


class Sampled:
    """SAMPLES tokens of every position and the mean of their log-probabilities, in a file.

    132 bytes a token where the vocabulary has at most 65,536, else 260. The KL is the mean of log p - log q
    over the samples: unbiased, and without noise where the two are equal.
    """

    def __init__(self, path: Path, windows: np.ndarray, vocabulary: int, device: torch.device | str) -> None:
        self._path, self.windows, self._device = path, windows, device
        places = windows.shape[1] - 1
        ids = ("ids", "<u2" if vocabulary <= 1 << 16 else "<u4", (places, SAMPLES))
        self.record = np.dtype([("mean", "<f4", (places,)), ids])
        self._data: np.ndarray | None = None

    @property
    def done(self) -> int:
        """Windows whose samples are in the file."""
        return self._path.stat().st_size // self.record.itemsize if self._path.exists() else 0

    def divergence(self, logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """KL of the student's logits on those rows to the target, nats (training.Targets)."""
        if self._data is None:
            self._data = np.memmap(self._path, self.record, "r")
        part = self._data[rows]
        ids = moved(part["ids"].astype(np.int64), self._device)
        mean = moved(part["mean"].copy(), self._device)
        logits = logits[:, :-1].float()
        log_q = logits.gather(-1, ids).mean(-1) - logits.logsumexp(-1)
        return (mean - log_q).mean()

    def fill(
        self,
        original: LayerwiseModel,
        kept: np.ndarray | None,
        seed: int,
        emit: Callable[[int], None] | None = None,
    ) -> None:
        """Walk the original over the windows, from where the file ends; emits windows done.

        kept: the original's ids of the student's ids. Peak memory: one block, or the embedding, or the head;
        256 MB of hidden states; the log-probabilities of one window twice.
        """
        group = max(1, HIDDEN_BYTES // (4 * self.windows.shape[1] * original.width))
        first, upto = self.done, len(self.windows)
        if first < upto:
            with self._path.open("ab") as file:
                os.truncate(file.fileno(), first * self.record.itemsize)
        listed = Growing(self._path)
        for start in range(first, upto, group):
            numbers = range(start, min(start + group, upto))
            self._fill(original, kept, seed, numbers)
            listed.note()
            if emit is not None:
                emit(numbers[-1] + 1)

    def _fill(self, original: LayerwiseModel, kept: np.ndarray | None, seed: int, numbers: range) -> None:
        with torch.no_grad():
            with original.embed() as embed:
                hidden = [embed(translated(self.windows[n], kept)) for n in numbers]
            for index in range(len(original.blocks)):
                with original.block(index):
                    hidden = [original.run(index, state) for state in hidden]
            with original.head(), self._path.open("ab") as file:
                for number, state in zip(numbers, hidden, strict=True):
                    record = np.zeros(1, self.record)
                    logits = chosen(original.logits(state), kept)[0, :-1]
                    offsets = np.random.default_rng([seed, number]).random(len(logits))
                    ids, mean = sample(logits.float().log_softmax(-1), offsets)
                    record["ids"][0], record["mean"][0] = ids.cpu().numpy(), mean.cpu().numpy()
                    record.tofile(file)


def sample(
    logp: torch.Tensor, offsets: np.ndarray, count: int = SAMPLES
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids [positions, count], the mean of their log-probabilities [positions]) of [positions, vocabulary].

    offsets: a number in [0, 1) for each position, the only randomness.
    """
    parts = []
    evenly = torch.arange(count, device=logp.device)
    for start in range(0, len(logp), POSITIONS):
        part = logp[start : start + POSITIONS]
        offset = torch.from_numpy(offsets[start : start + POSITIONS]).to(logp.device)
        below = part.double().exp().cumsum(-1)
        points = (evenly + offset[:, None]) / count
        ids = torch.searchsorted(below, points * below[:, -1:], right=True)
        parts.append(ids.clamp_(max=part.shape[1] - 1))
    ids = torch.cat(parts)
    return ids, logp.gather(-1, ids).mean(-1)


def translated(tokens: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
    """The student's ids as the original's."""
    return tokens if kept is None else kept[tokens]


def chosen(logits: torch.Tensor, kept: np.ndarray | None) -> torch.Tensor:
    """The original's logits of the student's ids."""
    return logits if kept is None else logits[..., torch.from_numpy(kept).to(logits.device)]
