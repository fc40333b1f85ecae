"""How far the file is from the original: KL divergence, agreement, perplexity, from llama.cpp's own logits.

For a position with the original's distribution p and the file's q, both over the vocabulary,

    KL = sum p (log p - log q)      nats      (what `llama-perplexity --kl-divergence` reports)

Means go over all positions of all windows, each window a fresh context. The original's log-probabilities were
stored as float16 and are renormalised here. With a changed vocabulary only bits per byte compares.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenth.core import jobs, metrics
from tenth.core.divergence import divergence, log_softmax
from tenth.core.errors import InputError, NativeError
from tenth.core.records import Reading, Runtime

if TYPE_CHECKING:
    import numpy as np

_ROWS_BYTES = 64 << 20  # of logits in memory at a time
_RESAMPLES = 200


@dataclass(frozen=True)
class Reference:
    """The original's answers on a held-out text, memory-mapped.

    tokens: int32 [windows, T]. logprobs: float16 [windows, T - 1, vocabulary], of the token after each of the
    first T - 1. bytes: UTF-8 length of all predicted tokens.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    bytes: int

    @classmethod
    def open(cls, folder: Path) -> Reference:
        """Read tokens.npy, logprobs.npy and reference.json. Raises InputError for anything malformed."""
        import numpy as np

        try:
            tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
            logprobs = np.load(folder / "logprobs.npy", mmap_mode="r", allow_pickle=False)
            size = int(json.loads((folder / "reference.json").read_text(encoding="utf-8"))["bytes"])
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(
                f"the reference in {folder} cannot be read: {error}; remove it, to compute it anew"
            ) from None
        windows, length = (*tokens.shape, 0, 0)[:2]
        if (
            tokens.ndim != 2
            or tokens.dtype != np.int32
            or logprobs.dtype != np.float16
            or logprobs.ndim != 3
            or logprobs.shape[:2] != (windows, length - 1)
            or not windows
            or length < 2
            or size < 1
        ):
            raise InputError(
                f"the reference in {folder} has arrays {tokens.shape} {tokens.dtype} and {logprobs.shape}"
                f" {logprobs.dtype}; remove it, to compute it anew"
            )
        return cls(tokens, logprobs, size)


def quality(
    gguf: Path,
    reference: Path,
    runtime: Runtime,
    windows: int | None = None,
    on_progress: Callable[[float], None] | None = None,
    log: Path | None = None,
) -> list[Reading]:
    """Readings kl, kl_median, kl_p99 (nats/token), top1 (share), perplexity, bits_per_byte.

    reference: a folder as `Reference` describes. Cache types, flash attention and repacking are those of
    `runtime`, the context is the reference's. windows: how many to use, None for all. on_progress receives
    the number done. spread is the standard error over windows (of quantiles: by resampling windows).
    Raises InputError for an unusable reference, NativeError where llama.cpp fails or gives NaN.
    """
    arguments = {
        "path": str(gguf),
        "reference": str(reference),
        "runtime": runtime.model_dump(),
        "windows": windows,
        "threads": runtime.threads,
    }
    on_event = (lambda event: on_progress(event["window"])) if on_progress else None
    found = jobs.call("tenth.measurement.quality:score", arguments, on_event, log)
    attention = "on" if runtime.flash_attention else "off"
    conditions = (
        f"{found['windows']} windows of {found['context']} tokens; KV {runtime.type_k}/{runtime.type_v},"
        f" flash attention {attention}; spread: standard error over windows"
    )
    return _readings(found, conditions)


def original(reference: Path) -> list[Reading]:
    """perplexity and bits_per_byte of the original itself, from its stored log-probabilities."""
    import numpy as np

    data = Reference.open(reference)
    windows, length = data.tokens.shape
    nll = []
    for window in range(windows):
        rows = log_softmax(data.logprobs[window])
        nll.append(-rows[np.arange(length - 1), data.tokens[window, 1:]])
    conditions = f"{windows} windows of {length} tokens; the original; spread: standard error over windows"
    return _readings(_nll_figures(np.array(nll), data.bytes), conditions)


def between(reference: Path, other: Path) -> float:
    """KL in nats per token of another model's stored answers on the same windows to the reference's."""
    import numpy as np

    wanted, found = Reference.open(reference), Reference.open(other)
    if not np.array_equal(wanted.tokens, found.tokens):
        raise InputError(f"{reference} and {other} are of other texts; nothing compares")
    pairs = zip(wanted.logprobs, found.logprobs, strict=True)
    return float(np.mean([divergence(log_softmax(p), log_softmax(q)).mean() for p, q in pairs]))


def score(
    emit: jobs.Emit, path: str, reference: str, runtime: dict[str, Any], windows: int | None, threads: int
) -> dict[str, Any]:
    """The child's side of `quality`: name -> [value, spread], and the counts."""
    import numpy as np

    from tenth.runtime import llama

    settings = Runtime(**runtime)
    data = Reference.open(Path(reference))
    used = min(windows or len(data.tokens), len(data.tokens))
    length, vocab = data.tokens.shape[1], data.logprobs.shape[2]
    if data.tokens.min() < 0 or data.tokens.max() >= vocab:
        raise InputError(f"the reference in {reference} has tokens outside its own vocabulary of {vocab}")
    rows = max(1, min(length - 1, _ROWS_BYTES // (4 * vocab)))
    kl, agree, nll = (np.empty((used, length - 1)) for _ in range(3))
    with llama.Session.open(
        path,
        n_ctx=length,
        n_batch=rows,
        n_ubatch=min(rows, 512),
        type_k=settings.type_k,
        type_v=settings.type_v,
        flash_attention=settings.flash_attention,
        repack=settings.repack,
        threads=threads,
    ) as session:
        if session.n_vocab != vocab:
            raise InputError(f"{path} has {session.n_vocab} tokens, the reference in {reference} {vocab}")
        for window in range(used):
            session.clear()
            for piece, logits in _pieces(session, data.tokens[window], rows):
                if not np.isfinite(logits).all():
                    raise NativeError(f"{path} gives NaN or infinite logits (window {window}); do not use it")
                q = log_softmax(logits)
                p = log_softmax(data.logprobs[window, piece])
                kl[window, piece] = divergence(p, q)
                agree[window, piece] = p.argmax(axis=1) == q.argmax(axis=1)
                targets = data.tokens[window, 1:][piece]
                nll[window, piece] = -q[np.arange(len(targets)), targets]
            emit({"window": window + 1})
    figures = _nll_figures(nll, data.bytes * used / len(data.tokens))
    figures["kl"] = _mean(kl)
    figures["top1"] = _mean(agree)
    for name, share in (("kl_median", 50), ("kl_p99", 99)):
        figures[name] = [float(np.percentile(kl, share)), _resampled(kl, share)]
    return figures


def _pieces(session: Any, tokens: np.ndarray, rows: int) -> Iterator[tuple[slice, np.ndarray]]:
    """(positions, logits) for all tokens but the last."""
    for begin in range(0, len(tokens) - 1, rows):
        piece = slice(begin, min(begin + rows, len(tokens) - 1))
        yield piece, session.decode(tokens[piece], begin)


def _mean(values: np.ndarray) -> list[float | None]:
    """[mean over all positions, standard error over windows]; values: [windows, positions]."""
    means = values.mean(axis=1)
    error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
    return [float(means.mean()), error]


def _resampled(values: np.ndarray, share: float) -> float | None:
    """Standard error of a percentile, by drawing windows with replacement."""
    import numpy as np

    if len(values) < 2:
        return None
    draws = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    return float(np.std([np.percentile(values[draw], share) for draw in draws]))


def _nll_figures(nll: np.ndarray, size: float) -> dict[str, Any]:
    """Perplexity and bits per byte, with spreads; nll: nats [windows, positions] of `size` bytes together."""
    mean, error = _mean(nll)
    assert mean is not None
    perplexity, per_byte = math.exp(min(mean, 700)), nll.size / size / math.log(2)
    return {
        "windows": nll.shape[0],
        "context": nll.shape[1] + 1,
        "perplexity": [perplexity, None if error is None else perplexity * error],
        "bits_per_byte": [mean * per_byte, None if error is None else error * per_byte],
    }


_FIGURES = ("kl", "kl_median", "kl_p99", "top1", "perplexity", "bits_per_byte")


def _readings(figures: dict[str, Any], conditions: str) -> list[Reading]:
    return [
        metrics.reading(name, figures[name][0], conditions, spread=figures[name][1], count=figures["windows"])
        for name in _FIGURES
        if name in figures
    ]
