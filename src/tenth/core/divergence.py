"""KL divergence between two distributions given as logits or log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tenth.core.errors import NativeError


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis, in float32 with the sum in float64. x: [n, vocabulary]."""
    x = x.astype(np.float32)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return x


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) of each row, float64 [n], in nats; p and q are log-probabilities [n, vocabulary]."""
    terms = np.exp(p)
    terms *= p - q
    return np.asarray(terms.sum(axis=-1, dtype=np.float64))


def log_probability(row: np.ndarray, token: int) -> float:
    """log softmax(row)[token]; NativeError for logits that are not finite."""
    top = float(row.max())
    total = float(np.exp(row - top, dtype=np.float32).sum(dtype=np.float64))
    value = float(row[token]) - top - float(np.log(total))
    if not (np.isfinite(value) and np.isfinite(total)):
        raise NativeError("llama.cpp gave logits that are not finite; the file is damaged")
    return value


def difference(mine: Sequence[float], other: Sequence[float]) -> float:
    """Mean distance of two lists of log-probabilities of the same tokens, nats."""
    return sum(abs(a - b) for a, b in zip(mine, other, strict=True)) / max(len(mine), 1)
