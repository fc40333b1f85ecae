"""Log-likelihoods and greedy answers the slow way: the whole text through the model for every token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Logits = Callable[[Sequence[int]], np.ndarray]  # ids -> [ids, vocabulary]


def log_probability(row: np.ndarray, token: int) -> float:
    values = [float(v) for v in row]
    top = max(values)
    return values[token] - top - math.log(math.fsum(math.exp(v - top) for v in values))


def loglikelihood(
    logits: Logits, ids: Sequence[int], first: int, n_ctx: int, begun: bool = False
) -> tuple[float, bool]:
    """Of ids[first:], each token from at most n_ctx before the last one; begun: the first stays in front."""
    window = list(ids)[max(0, len(ids) - 1 - n_ctx) :]
    if begun:
        window[0] = ids[0]
    first -= len(ids) - len(window)
    rows = logits(window[:-1])
    total, greedy = 0.0, True
    for place in range(max(1, first), len(window)):
        total += log_probability(rows[place - 1], window[place])
        greedy = greedy and int(np.argmax(rows[place - 1])) == window[place]
    return total, greedy


def rolling(logits: Logits, ids: Sequence[int], n_ctx: int, begun: bool = False) -> float:
    """Of ids[1:]: windows of n_ctx side by side; the last is pulled back to be full; begun: as above."""
    total, place = 0.0, 1
    while place < len(ids):
        end = min(place + n_ctx, len(ids))
        start = max(0, end - 1 - n_ctx)
        window = list(ids[start : end - 1])
        if begun:
            window[0] = ids[0]
        rows = logits(window)
        for target in range(place, end):
            total += log_probability(rows[target - 1 - start], ids[target])
        place = end
    return total


def greedy(logits: Logits, ids: Sequence[int], count: int) -> list[int]:
    made: list[int] = []
    for _ in range(count):
        made.append(int(np.argmax(logits([*ids, *made])[-1])))
    return made
