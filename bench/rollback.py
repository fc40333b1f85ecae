"""What the roll-back of the cache saves: a job for bench/tasks.py, which a child imports by its name."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from tenth.core import jobs
from tenth.core.records import Record
from tenth.evaluation import runtimes, scoring


class Saved(Record):
    """Seconds of both ways, medians of the runs, and how far apart the answers are."""

    choices: int
    contexts: int
    threads: int
    rolled_back: float
    afresh: float
    faster: float  # afresh over rolled back
    spans: tuple[list[float], list[float]]  # of every run, both ways
    largest_difference: float  # nats


class Rollback(jobs.Job[Saved]):
    """Score pairs with roll-back, and with every choice evaluated from its first token, in turns."""

    path: Path
    pairs: list[tuple[str, str]]
    repeats: int
    threads: int

    def run(self, emit: jobs.Emit) -> Saved:
        """In a child: both ways in turns."""
        del emit
        spans: dict[bool, list[float]] = {True: [], False: []}
        answers: dict[bool, list[tuple[float, bool]]] = {}
        with runtimes.opened(self.path, None, self.threads) as model:
            for _ in range(self.repeats):
                for reuse in (True, False):
                    begin = time.perf_counter()
                    answers[reuse] = scoring.loglikelihoods(model, self.pairs, reuse=reuse)
                    spans[reuse].append(time.perf_counter() - begin)
        once, afresh = (statistics.median(spans[reuse]) for reuse in (True, False))
        return Saved(
            choices=len(self.pairs),
            contexts=len({context for context, _ in self.pairs}),
            threads=self.threads,
            rolled_back=once,
            afresh=afresh,
            faster=afresh / once,
            spans=(spans[True], spans[False]),
            largest_difference=max(
                abs(a[0] - b[0]) for a, b in zip(answers[True], answers[False], strict=True)
            ),
        )
