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

import numpy as np

from tenth.core import jobs
from tenth.core.divergence import difference, log_probability
from tenth.core.errors import NativeError
from tenth.core.records import Record, Runtime
from tenth.measurement.check import TOLERANCE
from tenth.measurement.memory import any_tokens, forget_pages
from tenth.runtime import limits, llama
from tenth.runtime.watch import Watch

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

    session: llama.Session
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

    @property
    def chosen(self) -> list[int]:
        """The tokens that were chosen, in order."""
        return [token for _, token, _ in self.scored]

    def again(self, session: llama.Session) -> Pass:
        """A pass that is to repeat this one in an empty context."""
        return Pass(session, self.text, np.array(self.ids, np.int32))

    def difference(self, other: Pass) -> float:
        """Mean distance in nats of the log-probabilities of what was decoded, from an equally long beginning
        of another pass.
        """
        nats = [nats for *_, nats in self.scored]
        return difference(nats, [nats for *_, nats in other.scored][: len(nats)])


class Held(Record):
    """Bytes that the process held at full context, above `interpreter`, and in front of that."""

    interpreter: int
    peak: int
    peak_file_backed: int
    peak_anonymous: int


class AtDepth(Record):
    """Tokens/s with `depth` tokens in the context, one entry a repetition."""

    depth: int
    prefill_tokens: int  # 0 where the context has no room left
    decode: list[float]
    prefill: list[float]


class LongRun(Record):
    """Speed of decoding without a pause, from its first to its last part."""

    first: float  # tokens/s of the first `window`
    last: float  # and of the last
    window: float  # seconds: a minute, or half of less than two
    tokens: int
    series: list[tuple[float, float]]  # seconds since the start, tokens/s of up to BINS parts


class DepthFigures(Record):
    """All that `MeasureDepths` found."""

    build: str  # of llama.cpp
    held: Held
    load_cold: float  # seconds, of the first session
    ttft_cold: float
    load: list[float]  # of each later one
    ttft: list[float]
    prompt_tokens: int
    cold_faults: int  # pages read from storage by the first session
    faults: int  # and by the later ones
    decode_tokens: int  # at every depth
    depths: list[AtDepth]
    ids: list[int]  # what the context held, and what was decoded there
    scored: list[tuple[int, int, float]]  # (position, chosen token, nats)
    difference: float  # nats, the largest of a later pass from the first
    long_run: LongRun | None


@dataclass(frozen=True)
class _Opened:
    """A session that was opened and asked for a first token, its context empty again."""

    session: llama.Session
    load: float  # seconds
    ttft: float  # seconds from the prompt to the first token
    prompt_tokens: int


class MeasureDepths(jobs.Job[DepthFigures]):
    """The child's side of `tenth.measurement.measure`: all figures of a file.

    text: to fill the context with. prompt: for the first token. seconds: to keep decoding, 0 for not. phase:
    seconds that a phase must last for the parent's energy counter, None where it has none; their begin and
    end are events.
    """

    gguf: Path
    runtime: Runtime
    text: str
    prompt: str
    depths: list[int]
    repeats: int
    seconds: float
    phase: float | None

    def run(self, emit: jobs.Emit) -> DepthFigures:
        """Measure; emits the share of the depths that is done."""
        start = limits.baseline()
        limits.forget_peak()
        watch = Watch(start, None, emit)
        build = llama.build()
        rows = self._rows()
        forget_pages(self.gguf)
        cold = self._open()
        with cold.session:
            # Before later sessions grow the heap, and filled as the proof is: the peaks can be compared.
            held = self._fill(cold.session, watch, start)
            cold_faults = _major_faults()
            first = Pass(cold.session, np.resize(cold.session.tokenize(self.text), self.runtime.n_ctx))
            self._pass_through(first, rows, [], emit)
        warm, apart = [], 0.0
        for repeat in range(1, self.repeats + 1):  # the last session only loads and answers
            opened = self._open()
            warm.append(opened)
            with opened.session:
                if repeat < self.repeats:
                    again = first.again(opened.session)
                    self._pass_through(again, rows, first.chosen, emit)
                    apart = max(apart, again.difference(first))
        faults = _major_faults() - cold_faults
        return DepthFigures(
            build=build,
            held=held,
            load_cold=cold.load,
            ttft_cold=cold.ttft,
            load=[opened.load for opened in warm],
            ttft=[opened.ttft for opened in warm],
            prompt_tokens=cold.prompt_tokens,
            cold_faults=cold_faults,
            faults=faults,
            decode_tokens=sizes(self.runtime.n_ctx)[1],
            depths=rows,
            ids=first.ids,
            scored=first.scored,
            difference=apart,
            long_run=self._long_phases(first.text, emit),
        )

    def _rows(self) -> list[AtDepth]:
        """Every depth, and how many tokens of prefill there is room for before the next."""
        prefill, decode = sizes(self.runtime.n_ctx)
        ends = [*self.depths[1:], self.runtime.n_ctx]
        return [
            AtDepth(depth=depth, prefill_tokens=min(prefill, end - depth - decode), decode=[], prefill=[])
            for depth, end in zip(self.depths, ends, strict=True)
        ]

    def _open(self) -> _Opened:
        begin = time.perf_counter()
        session = llama.Session.serving(self.gguf, self.runtime)
        loaded = time.perf_counter()
        ids = session.tokenize(self.prompt)[: self.runtime.n_ctx]
        int(session.decode(ids, 0, all_logits=False)[0].argmax())
        answered = time.perf_counter()
        session.clear()
        return _Opened(session, loaded - begin, answered - loaded, len(ids))

    def _fill(self, session: llama.Session, watch: Watch, start: limits.Resident) -> Held:
        """Fill the context, see what is held, and forget the tokens."""
        session.decode(any_tokens(session.n_vocab, self.runtime.n_ctx), 0, all_logits=False)
        watch.look(exact=True)
        peaks = watch.report() | {"peak": max(watch.peak, limits.highest() - start.total)}
        session.clear()
        return Held(interpreter=start.total, **peaks)

    def _pass_through(
        self, through: Pass, rows: Sequence[AtDepth], chosen: Sequence[int], emit: jobs.Emit
    ) -> None:
        """Both speeds at every depth. chosen: what the first pass chose, to be repeated; empty for it."""
        count = sizes(self.runtime.n_ctx)[1]
        for i, row in enumerate(rows):
            through.fill(row.depth - len(through.ids))
            row.decode.append(count / through.decode(count, chosen[i * count : (i + 1) * count]))
            if row.prefill_tokens > 0:
                row.prefill.append(row.prefill_tokens / through.fill(row.prefill_tokens))
            emit({"done": (len(row.decode) - 1 + (i + 1) / len(rows)) / self.repeats})

    def _long_phases(self, text: np.ndarray, emit: jobs.Emit) -> LongRun | None:
        """The phases for the energy counter, and decoding for long, where they are asked for."""
        if not self.seconds and self.phase is None:
            return None
        session = self._open().session
        with session:
            for _ in range(self.repeats if self.phase is not None else 0):
                _prefill_for(session, text[: sizes(self.runtime.n_ctx)[0]], self.phase or 0.0, emit)
                decode_for(session, text, self.phase or 0.0, emit, "decode")
            return decode_for(session, text, self.seconds, emit, "sustained") if self.seconds else None


def _prefill_for(session: llama.Session, ids: np.ndarray, seconds: float, emit: jobs.Emit) -> None:
    count = 0
    emit({"begin": "prefill"})
    begin = time.perf_counter()
    while not count or time.perf_counter() - begin < seconds:
        session.clear()
        session.decode(ids, 0, all_logits=False)
        count += ids.size
    emit({"end": "prefill", "tokens": count})


def decode_for(
    session: llama.Session, ids: np.ndarray, seconds: float, emit: jobs.Emit, name: str
) -> LongRun:
    """Decode for that long, ROUND tokens at a time from an empty context, so that only the machine changes.

    Rounds after the first repeat its tokens, and NativeError is raised where their log-probabilities are
    others.
    """
    size = min(ROUND, session.n_ctx)
    window, width = min(MINUTE, seconds / 2), seconds / BINS
    bins = np.zeros((BINS, 2))  # tokens, seconds of decoding
    ends = np.zeros((2, 2))
    first: Pass | None = None
    now, tokens = 0.0, 0
    emit({"begin": name})
    begin = time.perf_counter()
    while now < seconds:
        session.clear()
        through = Pass(session, ids) if first is None else first.again(session)
        chosen = [] if first is None else first.chosen
        while len(through.ids) < size and now < seconds:
            spent = through.decode(1, chosen[len(through.ids) : len(through.ids) + 1])
            now = time.perf_counter() - begin
            tokens += 1
            bins[min(int(now / width), BINS - 1)] += 1, spent
            if now <= window:
                ends[0] += 1, spent
            if now >= seconds - window:
                ends[1] += 1, spent
        first = first or through
        apart = through.difference(first)
        if not apart <= TOLERANCE:
            raise NativeError(f"a long run changed its answers (by {apart:.3g} nats): the machine miscounts")
        emit({"kept": min(now / seconds, 1.0)})
    emit({"end": name, "tokens": tokens})
    series = [((i + 0.5) * width, n / spent) for i, (n, spent) in enumerate(bins.tolist()) if n]
    speeds = [n / spent if n else 0.0 for n, spent in ends.tolist()]
    return LongRun(first=speeds[0], last=speeds[1], window=window, tokens=tokens, series=series)


def _major_faults() -> int:
    """Pages of this process that had to come from storage."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
