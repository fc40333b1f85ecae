"""The text that everybody is judged on, and what a model makes of it.

    bits per byte = sum over passages of -log2 p(tokens of the passage | begin token) / bytes of the passages

Passages are cut by bytes, so that they are the same for every tokenizer; the bytes are counted by the judge;
the tokens must spell the bytes, else their probabilities say nothing about them (`spelt`). With fewer than a
passage's tokens of context it is read in pieces, each from the begin token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tenth.core import jobs
from tenth.core.divergence import divergence, log_softmax
from tenth.core.errors import InputError
from tenth.core.records import Runtime
from tenth.leaderboard.probes import TokenPiece, rows

if TYPE_CHECKING:
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
    end, found = len(raw), list[str]()
    while end >= BYTES and len(found) < count:
        begin = end - BYTES
        while raw[begin] & 0xC0 == 0x80:
            begin += 1
        found.append(raw[begin:end].decode())
        end = begin
    if len(found) < FEWEST:
        raise InputError(
            f"the text is too short to judge on: {len(raw)} bytes, at least {FEWEST * BYTES} needed"
        )
    return found[::-1]


def opened(path: str, runtime: Runtime, threads: int) -> Session:
    """A session that gives all logits, in batches of `ROWS` or fewer, with the submission's settings."""
    from tenth.runtime import llama

    update = {"n_ubatch": min(ROWS, runtime.n_ubatch), "threads": threads}
    return llama.Session.open(path, runtime.model_copy(update=update))


def pieces(session: Session, n_ctx: int, text_chunks: Sequence[str]) -> tuple[list[TokenPiece], str]:
    """(pieces of all passages, the first passage's beginning that its tokens do not spell; else "")."""
    begin = session.tokenize("")[:1]
    start = int(begin[0]) if len(begin) else max(session.end, 0)
    found, misspelt = [], ""
    for index, text_chunk in enumerate(text_chunks):
        ids = session.tokenize(text_chunk, special=False, parse=False)
        said, wanted = b"".join(session.piece(int(i)) for i in ids), text_chunk.encode()
        if said not in (wanted, b" " + wanted) and not misspelt:
            same = next((i for i, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), 0)
            misspelt = wanted[max(0, same - 20) : same + 20].decode("utf-8", "replace")
        found += [TokenPiece(index, start, ids[at : at + n_ctx]) for at in range(0, len(ids), n_ctx)]
    return found, misspelt


def original(
    emit: jobs.Emit, path: str, runtime: dict[str, Any], threads: int, text: str, folder: str
) -> dict[str, Any]:
    """In a child: the original's answers. Writes ids.npy (all pieces' tokens), lengths.json and logprobs.npy
    (float16 [tokens, vocabulary], of the first passages as far as `KEPT_AT_MOST` goes) to `folder`.
    """
    settings, here = Runtime(**runtime), Path(folder)
    text_chunks = json.loads(Path(text).read_text(encoding="utf-8"))
    with opened(path, settings, threads) as session:
        every, misspelt = pieces(session, settings.n_ctx, text_chunks)
        vocabulary = session.n_vocab
        most = max(1, KEPT_AT_MOST // (2 * vocabulary))
        kept, nats, bits = 0, np.zeros(len(text_chunks)), []
        for piece in every:
            if kept + len(piece.ids) > most and kept:
                break
            kept += len(piece.ids)
        array = np.lib.format.open_memmap(here / "logprobs.npy", "w+", np.float16, (kept, vocabulary))
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
    np.save(here / "ids.npy", np.concatenate([p.ids for p in every]), allow_pickle=False)
    (here / "lengths.json").write_text(json.dumps([[p.text_chunk, p.start, len(p.ids)] for p in every]))
    bits = [n / math.log(2) / len(p.encode()) for n, p in zip(nats, text_chunks, strict=True)]
    return {"bits": bits, "misspelt": misspelt, "kept": kept}


class OriginalAnswers:
    """What `original` wrote. Rows are used where the same tokens come in the same pieces."""

    def __init__(self, folder: Path) -> None:
        self.logprobs = np.load(folder / "logprobs.npy", mmap_mode="r", allow_pickle=False)
        self.ids = np.load(folder / "ids.npy", allow_pickle=False)
        self.shape = json.loads((folder / "lengths.json").read_text())

    def fits(self, session: Session, every: Sequence[TokenPiece]) -> bool:
        """Whether a model splits the text into the very same tokens, of as large a vocabulary."""
        return (
            session.n_vocab == self.logprobs.shape[1]
            and [[p.text_chunk, p.start, len(p.ids)] for p in every] == self.shape
            and np.array_equal(self.ids, np.concatenate([p.ids for p in every]))
        )


def judge(
    emit: jobs.Emit, path: str, runtime: dict[str, Any], threads: int, text: str, reference: str | None
) -> dict[str, Any]:
    """In a cell: all that one reading of the text gives, and the probes (probes.py).

    bits: [passages]. kl, top1: [passages with all of their tokens in the reference], absent where the
    tokenizer is another. timed: log-probabilities, in nats, of the tokens of the first TIMED passages.
    """
    from tenth.leaderboard import probes

    settings = Runtime(**runtime)
    text_chunks = json.loads(Path(text).read_text(encoding="utf-8"))
    told = OriginalAnswers(Path(reference)) if reference else None
    with opened(path, settings, threads) as session:
        every, misspelt = pieces(session, settings.n_ctx, text_chunks)
        same = told is not None and told.fits(session, every)
        watch = probes.DistributionProbe(session.n_vocab)
        nats, kl, agree, counts = (np.zeros(len(text_chunks)) for _ in range(4))
        timed: dict[int, list[float]] = {}
        at = 0
        for number, piece in enumerate(every):
            for part, logits in rows(session, piece):
                if not watch.sees(logits, number):
                    return {"probes": [watch.finite().model_dump()]}
                q, ids = log_softmax(logits), piece.ids[part]
                watch.add(q)
                mine = -q[np.arange(len(ids)), ids].astype(np.float64)
                nats[piece.text_chunk] += mine.sum()
                if number < TIMED:
                    timed.setdefault(number, []).extend((-mine).tolist())
                if same and told is not None and at + len(ids) <= len(told.logprobs):
                    p = log_softmax(told.logprobs[at : at + len(ids)])
                    kl[piece.text_chunk] += divergence(p, q).sum()
                    agree[piece.text_chunk] += (p.argmax(axis=1) == q.argmax(axis=1)).sum()
                    counts[piece.text_chunk] += len(ids)
                at += len(ids)
            emit({"done": (number + 1) / len(every)})
        asked = probes.run(session, every[: max(TIMED, 2)], timed)
    sizes = np.bincount([p.text_chunk for p in every], [len(p.ids) for p in every], len(text_chunks))
    whole = (counts == sizes) & (sizes > 0)
    found: dict[str, Any] = {
        "bits": [n / math.log(2) / len(p.encode()) for n, p in zip(nats, text_chunks, strict=True)],
        "probes": [p.model_dump() for p in (watch.finite(), probes.spelt(misspelt), watch.varied(), *asked)],
        "timed": [timed[i] for i in sorted(timed)],
        "tokens": int(sizes.sum()),
        "same_tokenizer": bool(same),
    }
    if whole.any():
        found["kl"] = (kl[whole] / sizes[whole]).tolist()
        found["top1"] = (agree[whole] / sizes[whole]).tolist()
    return found


def timed(
    emit: jobs.Emit, path: str, runtime: dict[str, Any], threads: int, text: str, prefill: int, decode: int
) -> dict[str, Any]:
    """In a cell: load, prefill and decode of the first TIMED pieces, as they are served (one row of logits).

    Returns lists "load" (s), "prefill", "decode" (tokens/s), and "scored": for each piece the place of its
    first scored token and the log-probabilities of the tokens from there.
    """
    import time

    from tenth.core.divergence import log_probability
    from tenth.runtime import llama

    settings = Runtime(**runtime | {"threads": threads})
    text_chunks = json.loads(Path(text).read_text(encoding="utf-8"))
    figures: dict[str, Any] = {"load": [], "prefill": [], "decode": [], "scored": [], "build": llama.build()}
    for number in range(-1, TIMED):  # one run before the first brings the file into the page cache
        begin = time.perf_counter()
        with llama.Session.serving(path, settings) as session:
            loaded = time.perf_counter()
            piece = pieces(session, settings.n_ctx, text_chunks[:TIMED])[0][max(number, 0)]
            given = piece.given
            first = max(1, min(prefill, len(given) // 2))
            last = min(len(given), first + decode)
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
        figures["load"].append(loaded - begin)
        figures["prefill"].append(first / (filled - start))
        if last > first:
            figures["decode"].append((last - first) / spent)
        figures["scored"].append([first - 1, nats])
        emit({"done": (number + 1) / TIMED})
    return figures
