"""How long llama.cpp takes: loading, prefill and decoding, in a child process, on this machine.

These are times of the machine that measures. They depend on what else it does: every figure is a median of
repeated runs, with half their range as the spread.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tenth.core import jobs, metrics
from tenth.core.records import Reading, Runtime

_PREFILL, _DECODE = 256, 32  # tokens, at most


def speed(gguf: Path, runtime: Runtime, repeats: int = 3, log: Path | None = None) -> list[Reading]:
    """Readings "load" (s), "prefill" and "decode" (tokens/s, batch of one, right after the prefill).

    The context is at most half filled. Raises NativeError where llama.cpp refuses the file.
    """
    arguments = {
        "path": str(gguf),
        "runtime": runtime.model_dump(),
        "repeats": repeats,
        "threads": runtime.threads,
    }
    runs = jobs.call("tenth.measurement.speed:run", arguments, log=log)
    threads = runtime.threads or "all"
    state = (
        f"{runs['machine']}, {threads} threads, n_ubatch {runtime.n_ubatch}, warm file; median, half range"
    )
    details = {
        "load": "open the file and make the context",
        "prefill": f"{runs['prefill_tokens']} tokens",
        "decode": f"{runs['decode_tokens']} tokens after {runs['prefill_tokens']}",
    }
    return [metrics.repeated(name, runs[name], f"{detail}; {state}") for name, detail in details.items()]


def run(emit: jobs.Emit, path: str, runtime: dict[str, Any], repeats: int, threads: int) -> dict[str, Any]:
    """The child's side of `speed`: the three figures of every repetition."""
    import platform

    import numpy as np

    from tenth.runtime import llama

    settings = Runtime(**runtime)
    prefill = max(1, min(_PREFILL, settings.n_ctx // 2))
    decode = max(1, min(_DECODE, settings.n_ctx - prefill))
    figures: dict[str, Any] = {"load": [], "prefill": [], "decode": []}
    for repeat in range(-1, repeats):  # one run before the first brings the file into the page cache
        begin = time.perf_counter()
        with llama.Session.serving(path, settings, threads) as session:
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
        figures["load"].append(loaded - begin)
        figures["prefill"].append(prefill / (filled - loaded))
        figures["decode"].append(decode / (done - filled))
        emit({"repeat": repeat + 1})
    return figures | {"machine": platform.machine(), "prefill_tokens": prefill, "decode_tokens": decode}
