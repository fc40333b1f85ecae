"""How fast the file answers: loading, the first token, and both speeds at several depths of context.

    load | first token | fresh context: depth 0: decode, prefill | fill | depth 512: decode, prefill | ...

once with the file dropped from the page cache before, whose load and first token are told apart, then again.
Decoding is greedy in the first pass. Later passes are given the same tokens and must give them the same
log-probabilities, and so must an independent run (check.py): a fast wrong run does not count. Only llama.cpp
and the choice of the likeliest token are on the clock. Memory is that of the first session.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenth.core.divergence import difference, log_probability
from tenth.core.errors import NativeError
from tenth.core.records import Runtime

if TYPE_CHECKING:
    import numpy as np

    from tenth.core import jobs
    from tenth.runtime.llama import Session

PREFILL, DECODE = 256, 32  # tokens at every depth, at most
ROUND = 256  # tokens decoded before the context starts anew, in long runs: the same depths all the time
BINS = 60  # of the picture over time
MINUTE = 60.0


def sizes(n_ctx: int) -> tuple[int, int]:
    """(tokens of prefill, tokens of decoding) measured at every depth of a context of that length."""
    return max(1, min(PREFILL, n_ctx // 4)), max(1, min(DECODE, n_ctx // 4))


@dataclass
class Pass:
    """One context from its start: what it holds, and the log-probability of every token that was chosen.

    given: the tokens of an earlier pass, to be repeated; else `text` is read and the likeliest token follows.
    """

    session: Session
    text: np.ndarray
    given: np.ndarray | None = None
    ids: list[int] = field(default_factory=list)
    scored: list[tuple[int, int, float]] = field(default_factory=list)  # (position, chosen token, nats)
    _next: int | None = None

    def fill(self, count: int) -> float:
        """Read `count` tokens of text; returns the seconds that took."""
        if count < 1:
            return 0.0
        at = len(self.ids)
        source = self.text if self.given is None else self.given
        tokens = source[at : at + count]
        begin = time.perf_counter()
        row = self.session.decode(tokens, at, all_logits=False)[0]
        best = int(row.argmax())
        spent = time.perf_counter() - begin
        self.ids += tokens.tolist()
        self._next = best
        return spent

    def decode(self, count: int, chosen: Sequence[int] = ()) -> float:
        """Decode `count` tokens one by one; returns the seconds that took.

        chosen: for a pass that repeats another, what that chose after each of them.
        """
        spent = 0.0
        for i in range(count):
            at = len(self.ids)
            token = int(self.text[0]) if self._next is None else self._next
            if self.given is not None:
                token = int(self.given[at])
            begin = time.perf_counter()
            row = self.session.decode([token], at, all_logits=False)[0]
            best = int(row.argmax())
            spent += time.perf_counter() - begin
            self.ids.append(token)
            self._next = int(chosen[i]) if chosen else best
            self.scored.append((at, self._next, log_probability(row, self._next)))
        return spent


def run(
    emit: jobs.Emit,
    path: str,
    runtime: dict[str, Any],
    threads: int,
    text: str,
    prompt: str,
    depths: list[int],
    repeats: int,
    sustained: float,
    energy: float | None,
) -> dict[str, Any]:
    """The child's side of `tenth.measurement.measure`; all figures, one entry a repeat.

    text: to fill the context with. prompt: for the first token. sustained: seconds to keep decoding, 0 for
    not. energy: seconds that a phase must last for the parent's energy counter, None where it has none; their
    begin and end are events.
    """
    import numpy as np

    from tenth.measurement.memory import any_tokens, forget_pages
    from tenth.runtime import limits, llama
    from tenth.runtime.watch import Watch

    settings = Runtime(**runtime)
    prefill, decode = sizes(settings.n_ctx)
    start = limits.baseline()
    limits.forget_peak()
    watch = Watch(start, None, emit)
    figures: dict[str, Any] = {"load": [], "ttft": [], "difference": 0.0, "interpreter": start.total}
    figures["build"] = llama.build()

    def opened() -> tuple[Session, float, float]:
        """(session, seconds to load, seconds from the prompt to the first token)."""
        begin = time.perf_counter()
        session = llama.Session.serving(path, settings, threads)
        loaded = time.perf_counter()
        ids = session.tokenize(prompt)[: settings.n_ctx]
        int(session.decode(ids, 0, all_logits=False)[0].argmax())
        answered = time.perf_counter()
        figures["prompt_tokens"] = len(ids)
        session.clear()
        return session, loaded - begin, answered - loaded

    first: Pass | None = None
    rows: list[dict[str, Any]] = [{"depth": depth, "decode": [], "prefill": []} for depth in depths]
    forget_pages(Path(path))
    for repeat in range(repeats + 1):  # the first session is cold, the last only loads and answers
        session, load, ttft = opened()
        with session:
            if first is None:
                # Before later sessions grow the heap, and filled as the proof is: the peaks can be compared.
                session.decode(any_tokens(session.n_vocab, settings.n_ctx), 0, all_logits=False)
                watch.look(exact=True)
                figures |= watch.report() | {"peak": max(watch.peak, limits.highest() - start.total)}
                session.clear()
                figures |= {"load_cold": load, "ttft_cold": ttft, "cold_faults": _major_faults()}
                ids = np.resize(session.tokenize(text), settings.n_ctx)
                run_through = Pass(session, ids)
            else:
                figures["load"].append(load)
                figures["ttft"].append(ttft)
                run_through = Pass(session, ids, np.array(first.ids, np.int32))
            if repeat == repeats:
                break
            told = [] if first is None else [token for _, token, _ in first.scored]
            for i, row in enumerate(rows):
                run_through.fill(row["depth"] - len(run_through.ids))
                row["decode"].append(decode / run_through.decode(decode, told[i * decode : (i + 1) * decode]))
                end = depths[i + 1] if i + 1 < len(depths) else settings.n_ctx
                row["prefill_tokens"] = min(prefill, end - len(run_through.ids))
                if row["prefill_tokens"] > 0:
                    row["prefill"].append(row["prefill_tokens"] / run_through.fill(row["prefill_tokens"]))
                emit({"done": (repeat + (i + 1) / len(rows)) / repeats})
            first = first or run_through
            apart = difference([p for *_, p in first.scored], [p for *_, p in run_through.scored])
            figures["difference"] = max(figures["difference"], apart)
    assert first is not None
    figures["faults"] = _major_faults() - figures["cold_faults"]
    if sustained or energy is not None:
        session, *_ = opened()
        with session:
            if energy is not None:
                for _ in range(repeats):
                    _prefill_for(session, ids[: max(prefill, 1)], energy, emit)
                    decode_for(session, ids, energy, emit, "decode")
            if sustained:
                figures["sustained"] = decode_for(session, ids, sustained, emit, "sustained")
    walked = {"ids": first.ids, "scored": first.scored, "prefill": prefill, "decode": decode}
    return figures | walked | {"depths": rows}


def _prefill_for(session: Session, ids: np.ndarray, seconds: float, emit: jobs.Emit) -> None:
    count = 0
    emit({"begin": "prefill"})
    begin = time.perf_counter()
    while not count or time.perf_counter() - begin < seconds:
        session.clear()
        session.decode(ids, 0, all_logits=False)
        count += ids.size
    emit({"end": "prefill", "tokens": count})


def decode_for(
    session: Session, ids: np.ndarray, seconds: float, emit: jobs.Emit, name: str
) -> dict[str, Any]:
    """Decode for that long, ROUND tokens at a time from an empty context, so that only the machine changes.

    Returns "first" and "last" (tokens/s of the first and the last minute, or half of less than two), "window"
    (seconds), "tokens", and "series": [seconds since the start, tokens/s] of up to BINS parts. Rounds after
    the first repeat its tokens, and NativeError is raised where their log-probabilities are others.
    """
    import numpy as np

    from tenth.measurement.check import TOLERANCE

    size = min(ROUND, session.n_ctx)
    window, width = min(MINUTE, seconds / 2), seconds / BINS
    bins = np.zeros((BINS, 2))  # tokens, seconds of decoding
    ends = np.zeros((2, 2))
    first: Pass | None = None
    told: list[int] = []
    now, tokens = 0.0, 0
    emit({"begin": name})
    begin = time.perf_counter()
    while now < seconds:
        session.clear()
        run_through = Pass(session, ids, None if first is None else np.array(first.ids, np.int32))
        while len(run_through.ids) < size and now < seconds:
            spent = run_through.decode(1, told[len(run_through.ids) : len(run_through.ids) + 1])
            now = time.perf_counter() - begin
            tokens += 1
            bins[min(int(now / width), BINS - 1)] += 1, spent
            if now <= window:
                ends[0] += 1, spent
            if now >= seconds - window:
                ends[1] += 1, spent
        if first is None:
            first, told = run_through, [token for _, token, _ in run_through.scored]
        apart = difference(
            [p for *_, p in run_through.scored], [p for *_, p in first.scored][: len(run_through.scored)]
        )
        if not apart <= TOLERANCE:
            raise NativeError(f"a long run changed its answers (by {apart:.3g} nats): the machine miscounts")
        emit({"kept": min(now / seconds, 1.0)})
    emit({"end": name, "tokens": tokens})
    series = [[(i + 0.5) * width, n / spent] for i, (n, spent) in enumerate(bins.tolist()) if n]
    speeds = [n / spent if n else 0.0 for n, spent in ends.tolist()]
    return {"first": speeds[0], "last": speeds[1], "window": window, "tokens": tokens, "series": series}


def _major_faults() -> int:
    """Pages of this process that had to come from storage."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
