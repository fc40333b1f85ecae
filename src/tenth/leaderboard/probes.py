"""Whether an artifact's figures mean anything. Every probe can fail, and one that does disqualifies.

finite        every logit of the whole text is a number, every distribution sums to one
spelt         the tokens spell the text's bytes: otherwise bits per byte count something else
varied        distributions depend on the input
deterministic the same again, the same answer
order         passages the other way round, with others before them, the same answer
causal        other tokens later on change nothing before
batch         token by token, the same answer as many at once
timed         the run on the clock gave the answers of the run that was judged
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tenth.core.divergence import log_softmax
from tenth.leaderboard.records import Probe
from tenth.runtime.llama import Session

SUM = 1e-3  # of a distribution, from one
LEAST = 1e-3  # nats per token between a context's distribution and the mean of all: less is a constant
SAME = 1e-4  # nats, of the same arithmetic
CLOSE, APART = 0.05, 0.25  # nats, of a mean that is always allowed, and that never is
_ALONE = 192  # tokens that are evaluated one by one
_RESULT = "log-probabilities of the text's tokens; mean difference in nats"


@dataclass(frozen=True)
class TokenPiece:
    """Tokens that are evaluated in one go: the begin token and `ids`, which are what is predicted."""

    text_chunk: int
    start: int
    ids: np.ndarray

    @property
    def given(self) -> np.ndarray:
        """All but the last, after the begin token."""
        return np.concatenate([[self.start], self.ids[:-1]]).astype(np.int32)


def rows(session: Session, piece: TokenPiece) -> Iterator[tuple[slice, np.ndarray]]:
    """(which of piece.ids, logits that predict them), `ROWS` at a time, from an empty context."""
    session.clear()
    given = piece.given
    for begin in range(0, len(given), session.n_batch):
        part = slice(begin, min(begin + session.n_batch, len(given)))
        yield part, session.decode(given[part], begin)


class DistributionProbe:
    """Looks at all distributions of the text as they come."""

    def __init__(self, vocabulary: int) -> None:
        self._mean = np.zeros(vocabulary)
        self._entropy, self._count, self._apart = 0.0, 0, 0.0
        self._broken = ""

    def sees(self, logits: np.ndarray, piece: int) -> bool:
        """Note logits [n, vocabulary] that are no numbers; False once any was."""
        if not np.isfinite(logits).all():
            self._broken = f"piece {piece} of the text gave NaN or infinite logits"
        return not self._broken

    def add(self, q: np.ndarray) -> None:
        """Take log-probabilities [n, vocabulary] into account."""
        p = np.exp(q.astype(np.float64))
        self._apart = max(self._apart, float(np.abs(p.sum(axis=1) - 1).max()))
        self._mean += p.sum(axis=0)
        self._entropy -= float((p * q).sum())
        self._count += len(q)

    def finite(self) -> Probe:
        """The verdict, after all of the text, on whether every distribution sums to one."""
        if self._broken:
            return Probe(name="finite", passed=False, allowed=SUM, detail=self._broken)
        detail = f"{self._count} distributions: all logits numbers; largest distance of a sum from one"
        return Probe(name="finite", passed=self._apart <= SUM, value=self._apart, allowed=SUM, detail=detail)

    def varied(self) -> Probe:
        """Entropy of the mean distribution minus the mean entropy: what the context tells about the token."""
        mean = self._mean / max(self._count, 1)
        whole = -float((mean * np.log(np.maximum(mean, 1e-300))).sum())
        value = max(0.0, whole - self._entropy / max(self._count, 1))
        detail = "nats that the context tells about the next token, at least; a constant answer tells none"
        return Probe(name="varied", passed=value >= LEAST, value=value, allowed=LEAST, detail=detail)


def spelt(misspelt: str) -> Probe:
    """Whether tokens and text are the same; misspelt: a place where they are not (`text_chunk.pieces`)."""
    detail = (
        f"the tokens do not spell the text near {misspelt!r}" if misspelt else "the tokens spell the text"
    )
    return Probe(name="spelt", passed=not misspelt, detail=detail)


def ask_again(session: Session, pieces: Sequence[TokenPiece], judged: dict[int, list[float]]) -> list[Probe]:
    """Read the first pieces again, in other ways. judged: log-probabilities as first read, by piece."""
    first = [np.array(judged[i]) if i in judged else scored(session, p) for i, p in enumerate(pieces)]
    again = scored(session, pieces[0])
    there = scored(session, pieces[0])
    backwards = [scored(session, piece) for piece in reversed(pieces)][::-1]
    return [
        _compared("deterministic", [again], [there], SAME, f"twice in a row; {_RESULT}"),
        _compared("order", first, backwards, SAME, f"passages in reverse order; {_RESULT}"),
        _causal(session, pieces[0], pieces[-1]),
        _alone(session, pieces[0], first[0]),
    ]


def scored(session: Session, piece: TokenPiece) -> np.ndarray:
    """Log-probability of every token of a piece, nats."""
    return np.concatenate(
        [
            log_softmax(logits)[np.arange(len(logits)), piece.ids[part]]
            for part, logits in rows(session, piece)
        ]
    ).astype(np.float64)


def _causal(session: Session, piece: TokenPiece, other: TokenPiece) -> Probe:
    """Within one batch the second half is replaced by another passage's tokens."""
    given = piece.given[: session.n_batch]
    half = len(given) // 2
    changed = given.copy()
    later = np.resize(other.ids[::-1], len(given) - half)
    changed[half:] = np.where(later == given[half:], (later + 1) % session.n_vocab, later)
    answers = []
    for tokens in (given, changed):
        session.clear()
        answers.append(log_softmax(session.decode(tokens, 0)[:half]))
    apart = float(np.abs(answers[0] - answers[1]).max()) if half else float("inf")
    detail = f"the last {len(given) - half} of {len(given)} tokens replaced; largest change before them, nats"
    return Probe(name="causal", passed=apart <= SAME, value=_number(apart), allowed=SAME, detail=detail)


def _alone(session: Session, piece: TokenPiece, judged: np.ndarray) -> Probe:
    count = min(_ALONE, len(piece.ids))
    session.clear()
    nats = []
    for at in range(count):
        row = session.decode(piece.given[at : at + 1], at, all_logits=False)
        nats.append(float(log_softmax(row)[0, piece.ids[at]]))
    return _served("batch", np.array(nats), judged[:count], "one by one")


def compare_timed(scored: Sequence[tuple[int, Sequence[float]]], judged: Sequence[Sequence[float]]) -> Probe:
    """scored: (first place, log-probabilities) of each timed piece; judged: of all their tokens."""
    here = [np.asarray(nats) for _, nats in scored]
    there = [
        np.asarray(every[first : first + len(nats)])
        for (first, nats), every in zip(scored, judged, strict=True)
    ]
    return _served("timed", np.concatenate(here), np.concatenate(there), "on the clock")


def _served(name: str, here: np.ndarray, judged: np.ndarray, how: str) -> Probe:
    """Whether log-probabilities as served are in the mean those of the judged run."""
    if here.shape != judged.shape or here.size < 2:
        return Probe(name=name, passed=False, detail=f"{here.size} tokens scored {how}, {judged.size} judged")
    apart = judged - here
    value = float(abs(apart.mean()))
    error = float(apart.std(ddof=1) / np.sqrt(apart.size))
    allowed = min(APART, max(CLOSE, 4 * error))
    detail = (
        f"{apart.size} tokens scored {how}; difference of the mean log-probability, nats"
        f" (standard error {error:.2g}; a single token is {np.abs(apart).mean():.2g} off)"
    )
    return Probe(name=name, passed=value <= allowed, value=value, allowed=allowed, detail=detail)


def _compared(
    name: str, one: Sequence[np.ndarray], other: Sequence[np.ndarray], allowed: float, detail: str
) -> Probe:
    a, b = np.concatenate(one), np.concatenate(other)
    apart = float(np.abs(a - b).mean()) if a.shape == b.shape and a.size else float("inf")
    return Probe(name=name, passed=apart <= allowed, value=_number(apart), allowed=allowed, detail=detail)


def _number(value: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if np.isfinite(value) else None
