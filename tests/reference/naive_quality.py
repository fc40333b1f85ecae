"""KL, agreement and negative log-likelihood with one loop per position and one per token."""

from __future__ import annotations

import math

import numpy as np


def _normalised(row: np.ndarray) -> list[float]:
    top = float(max(row))
    total = sum(math.exp(float(x) - top) for x in row)
    return [float(x) - top - math.log(total) for x in row]


def figures(logits: np.ndarray, logprobs: np.ndarray, tokens: np.ndarray) -> tuple[list[float], float, float]:
    """(KL of every position, share agreeing, mean nats) over windows; logits [windows, T - 1, vocabulary]."""
    divergences, agreeing, nats = [], 0, 0.0
    for window in range(len(tokens)):
        for position in range(tokens.shape[1] - 1):
            q = _normalised(logits[window, position])
            p = _normalised(logprobs[window, position].astype(np.float64))
            divergences.append(sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
            agreeing += p.index(max(p)) == q.index(max(q))
            nats -= q[tokens[window, position + 1]]
    return divergences, agreeing / len(divergences), nats / len(divergences)
