"""How long llama.cpp takes: loading, prefill and decoding, in a child process, on this machine.

These are times of the machine that measures. They depend on what else it does: every figure is a median of
repeated runs, with half their range as the spread.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path

import numpy as np

from tenth.core import jobs, metrics
from tenth.core.records import Reading, Record, Runtime
from tenth.runtime import llama

_PREFILL, _DECODE = 256, 32  # tokens, at most


def speed(gguf: Path, runtime: Runtime, repeats: int = 3, log: Path | None = None) -> list[Reading]:
    """Readings "load" (s), "prefill" and "decode" (tokens/s, batch of one, right after the prefill).

    The context is at most half filled. Raises NativeError where llama.cpp refuses the file.
    """
    runs = jobs.run(TimeRuns(gguf=gguf, runtime=runtime, repeats=repeats), around=jobs.Surroundings(log))
    threads = runtime.threads or "all"
    state = f"{runs.machine}, {threads} threads, n_ubatch {runtime.n_ubatch}, warm file; median, half range"
    after = f"{runs.decode_tokens} tokens after {runs.prefill_tokens}"
    return [
        metrics.repeated("load", runs.load, f"open the file and make the context; {state}"),
        metrics.repeated("prefill", runs.prefill, f"{runs.prefill_tokens} tokens; {state}"),
        metrics.repeated("decode", runs.decode, f"{after}; {state}"),
    ]


class Runs(Record):
    """The figures of `TimeRuns`: lists have one entry a repetition."""

    load: list[float]  # seconds
    prefill: list[float]  # tokens/s
    decode: list[float]  # tokens/s
    prefill_tokens: int
    decode_tokens: int
    machine: str


class TimeRuns(jobs.Job[Runs]):
    """Load a file, read random tokens and decode some more, several times."""

    gguf: Path
    runtime: Runtime
    repeats: int

    def run(self, emit: jobs.Emit) -> Runs:
        """Measure; emits the number of the repetition that is done."""
        n_ctx = self.runtime.n_ctx
        prefill = max(1, min(_PREFILL, n_ctx // 2))
        decode = max(1, min(_DECODE, n_ctx - prefill))
        runs = Runs(
            load=[],
            prefill=[],
            decode=[],
            prefill_tokens=prefill,
            decode_tokens=decode,
            machine=platform.machine(),
        )
        for repeat in range(-1, self.repeats):  # one run before the first brings the file into the page cache
            begin = time.perf_counter()
            with llama.Session.serving(self.gguf, self.runtime) as session:
                loaded = time.perf_counter()
                ids = np.random.default_rng(0).integers(0, session.n_vocab, prefill + decode).astype(np.int32)
                if repeat < 0:
                    session.decode(ids[:1], 0, all_logits=False)
                    continue
                session.decode(ids[:prefill], 0, all_logits=False)
                filled = time.perf_counter()
                for position in range(prefill, prefill + decode):
                    session.decode(ids[position : position + 1], position, all_logits=False)
                done = time.perf_counter()
            runs.load.append(loaded - begin)
            runs.prefill.append(prefill / (filled - loaded))
            runs.decode.append(decode / (done - filled))
            emit({"repeat": repeat + 1})
        return runs
