"""How far the file is from the original: KL divergence, agreement, perplexity, from llama.cpp's own logits.

For a position with the original's distribution p and the file's q, both over the vocabulary,

    KL = sum p (log p - log q)      nats      (what `llama-perplexity --kl-divergence` reports)

Means go over all positions of all windows, each window a fresh context of the plan's length: what llama.cpp
answers may depend on it (LongRoPE). Perplexity and bits per byte are of the windows of plain text alone, not
of those in a chat template. The original's log-probabilities were stored as float16 and are renormalised
here. With a changed vocabulary only bits per byte compares.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenth.core import jobs, metrics
from tenth.core.divergence import divergence, log_softmax
from tenth.core.errors import InputError, NativeError
from tenth.core.records import Reading, Record, Runtime
from tenth.runtime import llama

_ROWS_BYTES = 64 << 20  # of logits in memory at a time
_RESAMPLES = 200


@dataclass(frozen=True)
class Reference:
    """The original's answers on a held-out text, memory-mapped.

    tokens: int32 [windows, T]. logprobs: float16 [windows, T - 1, vocabulary], of the token after each of the
    first T - 1. plain: how many windows, the first ones, are plain text; the others are in the chat template.
    bytes: UTF-8 length of all predicted tokens of the plain ones.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    bytes: int
    plain: int

    @classmethod
    def open(cls, folder: Path) -> Reference:
        """Read tokens.npy, logprobs.npy and reference.json. Raises InputError for anything malformed."""
        try:
            tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
            logprobs = np.load(folder / "logprobs.npy", mmap_mode="r", allow_pickle=False)
            sizes = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
            size, plain = int(sizes["bytes"]), int(sizes.get("plain", len(tokens)))
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
            or not 1 <= plain <= windows
        ):
            raise InputError(
                f"the reference in {folder} has arrays {tokens.shape} {tokens.dtype} and {logprobs.shape}"
                f" {logprobs.dtype}; remove it, to compute it anew"
            )
        return cls(tokens, logprobs, size, plain)

    def about(self, windows: int) -> str:
        """What the first so many windows are, in words."""
        chat = max(0, windows - self.plain)
        of_them = f", {chat} of them in the chat template (for KL and agreement alone)" if chat else ""
        return f"{windows} windows of {self.tokens.shape[1]} tokens{of_them}"


def quality(
    gguf: Path,
    reference: Path,
    runtime: Runtime,
    windows: int | None = None,
    on_progress: Callable[[float], None] | None = None,
    log: Path | None = None,
) -> list[Reading]:
    """Readings kl, kl_median, kl_p99 (nats/token), top1 (share), perplexity, bits_per_byte.

    reference: a folder as `Reference` describes. The context, cache types, flash attention and repacking are
    those of `runtime`. windows: how many to use, None for all. on_progress receives the number done. spread
    is the standard error over windows (of quantiles: by resampling windows). Raises InputError for an
    unusable reference, NativeError where llama.cpp fails or gives NaN.
    """
    job = ScoreWindows(gguf=gguf, reference=reference, runtime=runtime, windows=windows)
    on_event = (lambda event: on_progress(event["window"])) if on_progress else None
    figures = jobs.run(job, on_event, jobs.Surroundings(log))
    attention = "on" if runtime.flash_attention else "off"
    conditions = (
        f"{Reference.open(reference).about(figures.windows)}; context {runtime.n_ctx},"
        f" KV {runtime.type_k}/{runtime.type_v}, flash attention {attention};"
        " spread: standard error over windows"
    )
    return _readings(figures, conditions)


def original(reference: Path) -> list[Reading]:
    """perplexity and bits_per_byte of the original itself, from its stored log-probabilities."""
    data = Reference.open(reference)
    length = data.tokens.shape[1]
    nll = []
    for window in range(data.plain):
        rows = log_softmax(data.logprobs[window])
        nll.append(-rows[np.arange(length - 1), data.tokens[window, 1:]])
    conditions = f"{data.plain} windows of {length} tokens; the original; spread: standard error over windows"
    return _readings(_nll_figures(np.array(nll), data.bytes), conditions)


def between(reference: Path, other: Path) -> float:
    """KL in nats per token of another model's stored answers on the same windows to the reference's."""
    original, changed = Reference.open(reference), Reference.open(other)
    if not np.array_equal(original.tokens, changed.tokens):
        raise InputError(f"{reference} and {other} are of other texts; nothing compares")
    pairs = zip(original.logprobs, changed.logprobs, strict=True)
    return float(np.mean([divergence(log_softmax(p), log_softmax(q)).mean() for p, q in pairs]))


class QualityFigures(Record):
    """What the windows gave: name of a reading -> (value, its standard error where there are several)."""

    windows: int
    context: int  # tokens of each
    values: dict[str, tuple[float, float | None]]


class ScoreWindows(jobs.Job[QualityFigures]):
    """Read the windows of a reference with the file, and compare every distribution."""

    gguf: Path
    reference: Path
    runtime: Runtime
    windows: int | None  # None for all

    def run(self, emit: jobs.Emit) -> QualityFigures:
        """Score; emits the number of the window that is done."""
        data = Reference.open(self.reference)
        used = min(self.windows or len(data.tokens), len(data.tokens))
        length, vocab = data.tokens.shape[1], data.logprobs.shape[2]
        if data.tokens.min() < 0 or data.tokens.max() >= vocab:
            raise InputError(
                f"the reference in {self.reference} has tokens outside its own vocabulary of {vocab}"
            )
        rows = max(1, min(length - 1, _ROWS_BYTES // (4 * vocab)))
        kl, agree, nll = (np.empty((used, length - 1)) for _ in range(3))
        n_ctx = max(self.runtime.n_ctx, length)  # a person may ask for less than a window
        runtime = self.runtime.model_copy(update={"n_ctx": n_ctx, "n_ubatch": min(rows, 512)})
        with llama.Session.open(self.gguf, runtime, n_batch=rows) as session:
            if session.n_vocab != vocab:
                raise InputError(
                    f"{self.gguf} has {session.n_vocab} tokens, the reference in {self.reference} {vocab}"
                )
            for window, (tokens, logprobs) in enumerate(zip(data.tokens[:used], data.logprobs, strict=False)):
                session.clear()
                for piece, logits in _pieces(session, tokens, rows):
                    if not np.isfinite(logits).all():
                        raise NativeError(
                            f"{self.gguf} gives NaN or infinite logits (window {window}); do not use it"
                        )
                    p, q, targets = log_softmax(logprobs[piece]), log_softmax(logits), tokens[1:][piece]
                    kl[window, piece] = divergence(p, q)
                    agree[window, piece] = p.argmax(axis=1) == q.argmax(axis=1)
                    nll[window, piece] = -q[np.arange(len(targets)), targets]
                emit({"window": window + 1})
        plain = min(used, data.plain)
        figures = _nll_figures(nll[:plain], data.bytes * plain / data.plain).model_copy(
            update={"windows": used}
        )
        figures.values["kl"] = _mean(kl)
        figures.values["top1"] = _mean(agree)
        for name, share in (("kl_median", 50), ("kl_p99", 99)):
            figures.values[name] = float(np.percentile(kl, share)), _resampled(kl, share)
        return figures


def _pieces(session: llama.Session, tokens: np.ndarray, rows: int) -> Iterator[tuple[slice, np.ndarray]]:
    """(positions, logits) for all tokens but the last."""
    for begin in range(0, len(tokens) - 1, rows):
        piece = slice(begin, min(begin + rows, len(tokens) - 1))
        yield piece, session.decode(tokens[piece], begin)


def _mean(values: np.ndarray) -> tuple[float, float | None]:
    """(mean over all positions, standard error over windows); values: [windows, positions]."""
    means = values.mean(axis=1)
    error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
    return float(means.mean()), error


def _resampled(values: np.ndarray, share: float) -> float | None:
    """Standard error of a percentile, by drawing windows with replacement."""
    if len(values) < 2:
        return None
    draws = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    return float(np.std([np.percentile(values[draw], share) for draw in draws]))


def _nll_figures(nll: np.ndarray, size: float) -> QualityFigures:
    """Perplexity and bits per byte, with spreads; nll: nats [windows, positions] of `size` bytes together."""
    mean, error = _mean(nll)
    perplexity, per_byte = math.exp(min(mean, 700)), nll.size / size / math.log(2)
    values = {
        "perplexity": (perplexity, None if error is None else perplexity * error),
        "bits_per_byte": (mean * per_byte, None if error is None else error * per_byte),
    }
    return QualityFigures(windows=nll.shape[0], context=nll.shape[1] + 1, values=values)


_FIGURES = ("kl", "kl_median", "kl_p99", "top1", "perplexity", "bits_per_byte")


def _readings(figures: QualityFigures, conditions: str) -> list[Reading]:
    present = [(name, *figures.values[name]) for name in _FIGURES if name in figures.values]
    return [
        metrics.reading(name, value, conditions, spread=spread, count=figures.windows)
        for name, value, spread in present
    ]
