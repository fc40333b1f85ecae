"""The text that everybody is judged on, and what a model makes of it.

    bits per byte = sum over passages of -log2 p(tokens of the passage | begin token) / bytes of the passages

Passages are cut by bytes, so that they are the same for every tokenizer; the bytes are counted by the judge;
the tokens must spell the bytes, else their probabilities say nothing about them (`spelt`). With fewer than a
passage's tokens of context it is read in pieces, each from the begin token.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from tenth.core import jobs
from tenth.core.divergence import divergence, log_probability, log_softmax
from tenth.core.errors import InputError
from tenth.core.records import Record, Runtime
from tenth.leaderboard import probes
from tenth.leaderboard.probes import TokenPiece, rows
from tenth.leaderboard.records import Probe
from tenth.runtime.llama import Session

BYTES = 2048  # of a passage
PASSAGES = 32
FEWEST = 4
ROWS = 64  # of logits in memory at a time
KEPT_AT_MOST = 1_000_000_000  # bytes of the original's log-probabilities
TIMED = 3  # passages whose tokens are scored while the clock runs


def cut(text: str, count: int = PASSAGES) -> list[str]:
    """Passages of about BYTES bytes in whole letters, from the text's end; InputError for too few."""
    raw = text.encode()
    end, passages = len(raw), list[str]()
    while end >= BYTES and len(passages) < count:
        begin = end - BYTES
        while raw[begin] & 0xC0 == 0x80:
            begin += 1
        passages.append(raw[begin:end].decode())
        end = begin
    if len(passages) < FEWEST:
        raise InputError(
            f"the text is too short to judge on: {len(raw)} bytes, at least {FEWEST * BYTES} needed"
        )
    return passages[::-1]


def pieces(session: Session, n_ctx: int, text_chunks: Sequence[str]) -> tuple[list[TokenPiece], str]:
    """(pieces of all passages, the first passage's beginning that its tokens do not spell; else "")."""
    start = session.begin[0] if session.begin else max(session.end, 0)
    every: list[TokenPiece] = []
    misspelt = ""
    for index, text_chunk in enumerate(text_chunks):
        ids = session.tokenize(text_chunk, special=False, parse=False)
        spelt, text = b"".join(session.piece(int(i)) for i in ids), text_chunk.encode()
        if spelt not in (text, b" " + text) and not misspelt:
            same = next((i for i, (a, b) in enumerate(zip(spelt, text, strict=False)) if a != b), 0)
            misspelt = text[max(0, same - 20) : same + 20].decode("utf-8", "replace")
        every += [TokenPiece(index, start, ids[at : at + n_ctx]) for at in range(0, len(ids), n_ctx)]
    return every, misspelt


class _Reading(Record):
    """What the jobs that read the text have in common."""

    gguf: Path
    runtime: Runtime
    text: Path  # a JSON list of passages

    def passages(self) -> list[str]:
        """Read the passages of the judge's own text."""
        passages: list[str] = json.loads(self.text.read_text(encoding="utf-8"))
        return passages

    def session(self) -> Session:
        """A session that gives all logits, in batches of `ROWS` or fewer, with the submission's settings."""
        update = {"n_ubatch": min(ROWS, self.runtime.n_ubatch)}
        return Session.open(self.gguf, self.runtime.model_copy(update=update))


class OriginalRead(Record):
    """What `ReadOriginal` tells of its reading."""

    bits: list[float]  # per byte, of each passage
    misspelt: str  # a place that the tokens do not spell, or ""


class ReadOriginal(_Reading, jobs.Job[OriginalRead]):
    """The original's answers.

    Writes ids.npy (all pieces' tokens), lengths.json and logprobs.npy (float16 [tokens, vocabulary], of the
    first pieces as far as `KEPT_AT_MOST` goes) to `folder`; `OriginalAnswers` reads them.
    """

    folder: Path

    def run(self, emit: jobs.Emit) -> OriginalRead:
        """Read the text; emits the share that is done."""
        passages = self.passages()
        with self.session() as session:
            every, misspelt = pieces(session, self.runtime.n_ctx, passages)
            most = max(1, KEPT_AT_MOST // (2 * session.n_vocab))
            kept, nats = 0, np.zeros(len(passages))
            for piece in every:
                if kept + len(piece.ids) > most and kept:
                    break
                kept += len(piece.ids)
            shape = (kept, session.n_vocab)
            array = np.lib.format.open_memmap(self.folder / "logprobs.npy", "w+", np.float16, shape)
            at = 0
            for number, piece in enumerate(every):
                for part, logits in rows(session, piece):
                    q = log_softmax(logits)
                    ids = piece.ids[part]
                    nats[piece.text_chunk] -= q[np.arange(len(ids)), ids].sum(dtype=np.float64)
                    if at + len(ids) <= kept:
                        array[at : at + len(ids)] = q
                        at += len(ids)
                emit({"done": (number + 1) / len(every)})
            array.flush()
        ids = np.concatenate([piece.ids for piece in every])
        np.save(self.folder / "ids.npy", ids, allow_pickle=False)
        (self.folder / "lengths.json").write_text(json.dumps(_lengths(every)))
        return OriginalRead(bits=_bits(nats, passages), misspelt=misspelt)


def _lengths(every: Sequence[TokenPiece]) -> list[list[int]]:
    """[passage, begin token, tokens] of each piece."""
    return [[piece.text_chunk, piece.start, len(piece.ids)] for piece in every]


def _bits(nats: np.ndarray, passages: Sequence[str]) -> list[float]:
    """Bits per byte of each passage, from the nats of its tokens."""
    return [n / math.log(2) / len(p.encode()) for n, p in zip(nats, passages, strict=True)]


class OriginalAnswers:
    """What `ReadOriginal` wrote. Rows are used where the same tokens come in the same pieces."""

    def __init__(self, folder: Path) -> None:
        self.logprobs = np.load(folder / "logprobs.npy", mmap_mode="r", allow_pickle=False)
        self.ids = np.load(folder / "ids.npy", allow_pickle=False)
        self.lengths = json.loads((folder / "lengths.json").read_text())

    def fits(self, session: Session, every: Sequence[TokenPiece]) -> bool:
        """Whether a model splits the text into the very same tokens, of as large a vocabulary."""
        return (
            session.n_vocab == self.logprobs.shape[1]
            and _lengths(every) == self.lengths
            and np.array_equal(self.ids, np.concatenate([piece.ids for piece in every]))
        )


class _Tally:
    """Sums by passage of what one reading of the text gives."""

    def __init__(self, passages: int, original: OriginalAnswers | None) -> None:
        self.original = original  # None where its tokens are others
        self.nats, self.kl, self.agree, self.compared = (np.zeros(passages) for _ in range(4))
        self.timed: dict[int, list[float]] = {}  # piece -> log-probabilities of its tokens
        self._at = 0  # tokens before

    def add(self, number: int, passage: int, ids: np.ndarray, q: np.ndarray) -> None:
        """Count the tokens `ids` of the piece `number`; q: log-probabilities [ids, vocabulary]."""
        nats = -q[np.arange(len(ids)), ids].astype(np.float64)
        self.nats[passage] += nats.sum()
        if number < TIMED:
            self.timed.setdefault(number, []).extend((-nats).tolist())
        end = self._at + len(ids)
        if self.original is not None and end <= len(self.original.logprobs):
            p = log_softmax(self.original.logprobs[self._at : end])
            self.kl[passage] += divergence(p, q).sum()
            self.agree[passage] += (p.argmax(axis=1) == q.argmax(axis=1)).sum()
            self.compared[passage] += len(ids)
        self._at = end


class TextJudged(Record):
    """What one reading of the text gives, and the probes (probes.py). Without `bits` a probe has failed."""

    probes: list[Probe]
    # Per byte, of each passage.
    bits: list[float] = Field(default_factory=list)
    # Nats per token and share of tokens, of passages with all of their tokens in the reference.
    kl: list[float] = Field(default_factory=list)
    top1: list[float] = Field(default_factory=list)
    # Log-probabilities, in nats, of the tokens of the first TIMED pieces.
    timed: list[list[float]] = Field(default_factory=list)
    tokens: int = 0
    same_tokenizer: bool = False


class JudgeText(_Reading, jobs.Job[TextJudged]):
    """Read the text once, and its beginning again in other ways. reference: the folder of `ReadOriginal`."""

    reference: Path | None

    def run(self, emit: jobs.Emit) -> TextJudged:
        """Judge; emits the share that is done."""
        passages = self.passages()
        original = OriginalAnswers(self.reference) if self.reference else None
        with self.session() as session:
            every, misspelt = pieces(session, self.runtime.n_ctx, passages)
            check = probes.DistributionProbe(session.n_vocab)
            tally = _Tally(len(passages), original if original and original.fits(session, every) else None)
            for number, piece in enumerate(every):
                for part, logits in rows(session, piece):
                    if not check.sees(logits, number):
                        return TextJudged(probes=[check.finite()])
                    q = log_softmax(logits)
                    check.add(q)
                    tally.add(number, piece.text_chunk, piece.ids[part], q)
                emit({"done": (number + 1) / len(every)})
            again = probes.ask_again(session, every[: max(TIMED, 2)], tally.timed)
        sizes = np.bincount([s.text_chunk for s in every], [len(s.ids) for s in every], len(passages))
        whole = (tally.compared == sizes) & (sizes > 0)
        return TextJudged(
            probes=[check.finite(), probes.spelt(misspelt), check.varied(), *again],
            bits=_bits(tally.nats, passages),
            kl=(tally.kl[whole] / sizes[whole]).tolist(),
            top1=(tally.agree[whole] / sizes[whole]).tolist(),
            timed=[tally.timed[number] for number in sorted(tally.timed)],
            tokens=int(sizes.sum()),
            same_tokenizer=tally.original is not None,
        )


class TextTimed(Record):
    """Figures of the first TIMED pieces, one entry each."""

    load: list[float]  # seconds
    prefill: list[float]  # tokens/s
    decode: list[float]  # tokens/s; fewer entries where a piece is too short
    scored: list[tuple[int, list[float]]]  # (first scored token's place, log-probabilities from there on)


class TimeText(_Reading, jobs.Job[TextTimed]):
    """Load, prefill and decode of the first pieces, as they are served (one row of logits)."""

    prefill: int  # tokens, at most
    decode: int

    def run(self, emit: jobs.Emit) -> TextTimed:
        """Measure; emits the share that is done."""
        passages = self.passages()[:TIMED]
        figures = TextTimed(load=[], prefill=[], decode=[], scored=[])
        for number in range(-1, TIMED):  # one run before the first brings the file into the page cache
            begin = time.perf_counter()
            with Session.serving(self.gguf, self.runtime) as session:
                loaded = time.perf_counter()
                piece = pieces(session, self.runtime.n_ctx, passages)[0][max(number, 0)]
                given = piece.given
                first = max(1, min(self.prefill, len(given) // 2))
                last = min(len(given), first + self.decode)
                session.decode(given[:1], 0, all_logits=False)
                session.clear()
                start = time.perf_counter()
                row = session.decode(given[:first], 0, all_logits=False)[0]
                filled, spent = time.perf_counter(), 0.0
                nats = [log_probability(row, int(piece.ids[first - 1]))]
                for at in range(first, last):
                    before = time.perf_counter()
                    row = session.decode(given[at : at + 1], at, all_logits=False)[0]
                    spent += time.perf_counter() - before
                    nats.append(log_probability(row, int(piece.ids[at])))
            if number < 0:
                continue
            figures.load.append(loaded - begin)
            figures.prefill.append(first / (filled - start))
            if last > first:
                figures.decode.append((last - first) / spent)
            figures.scored.append((first - 1, nats))
            emit({"done": (number + 1) / TIMED})
        return figures
