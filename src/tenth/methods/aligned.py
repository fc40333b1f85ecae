"""What a model with a trimmed vocabulary is taught: the original's distributions over the same text.

The original must read its own tokens. Read in the pieces of the trimmed vocabulary, a text is as strange to
it as to the model that is to be healed. So a window is the original's, and the student's is the same with
every token replaced by its pieces (vocabulary.fallen). Where a token begins, the original's distribution over
tokens is one over first pieces,

    q(a) = sum of p(t) over the tokens t whose first piece is a,

and the loss is KL(q || student). Inside a token that fell apart the original says nothing; the piece that the
text has is learnt, by its negative log-probability. Both are summed and divided by the original's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch


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
        self._inner = np.zeros((len(originals), longest), bool)  # pieces behind a first one
        for number, window in enumerate(originals):
            parts = [pieces[token] for token in window]
            row = [piece for part in parts for piece in part]
            self.windows[number, : len(row)] = row
            self._starts[number] = np.cumsum([0, *(len(part) for part in parts)])[:-1]
            self._inner[number, len(parts[0]) : len(row)] = True
            self._inner[number, self._starts[number]] = False
        self._first = torch.tensor([part[0] if part else 0 for part in pieces])

    def divergence(self, logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Nats per token of the original, of windows `rows`, from logits [B, longest, its size]."""
        found = logits.float().log_softmax(-1)
        with torch.no_grad():
            before = self._forward(self._originals[rows])[:, :-1].float().softmax(-1)
            wanted = torch.zeros(*before.shape[:2], found.shape[-1], device=found.device)
            wanted.index_add_(-1, self._first.to(found.device), before[..., : len(self._first)])
        starts = torch.from_numpy(self._starts[rows][:, 1:]).to(found.device)
        begun = found.gather(1, (starts - 1)[..., None].expand(*starts.shape, found.shape[-1]))
        total = torch.xlogy(wanted, wanted).sum() - (wanted * begun).sum()
        batch, place = np.nonzero(self._inner[rows])
        ids = self.windows[rows][batch, place]
        learnt = found[
            torch.from_numpy(batch), torch.from_numpy(place - 1), torch.from_numpy(ids.astype(np.int64))
        ]
        return (total - learnt.sum()) / starts.numel()
