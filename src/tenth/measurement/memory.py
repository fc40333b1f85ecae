"""The proof: run the file to full context in a child under a hard memory limit, and see what it held.

The limit is the budget plus what the Python interpreter of the child holds just before llama.cpp is loaded;
everything above that (code, vocabulary, weights, caches, buffers) is what a C++ process would hold, and is
the measured peak. The file's pages are first dropped from the page cache, so that reading them back is
charged to the child's group: pages that another group has paid for would be free.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenth.core import jobs
from tenth.core.errors import InputError
from tenth.core.records import Proof, Runtime
from tenth.runtime import limits, lockdown
from tenth.runtime.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

_PIECES = 50  # of the context, between two signs of progress
_LAST = 4  # tokens decoded one by one at the end of the context


def prove(
    gguf: Path,
    runtime: Runtime,
    budget: int,
    predicted: int,
    log: Path | None = None,
    on_progress: Callable[[float], None] | None = None,
    timeout: float | None = None,
    strict: bool = False,
) -> Proof:
    """Load `gguf`, fill the context, decode the last tokens; return what was held.

    budget, predicted: bytes. on_progress receives the share of the context that is filled. timeout: seconds;
    by default what the slowest plausible machine needs. strict: the file is a stranger's, and the child gives
    up all rights that it has no need of (runtime/lockdown.py). Going over the budget is not an error: the
    Proof says so (`fits` is False), with the peak that was last seen. parts: llama.cpp's report of its
    buffers (the keys of `tenth.runtime.llama.Session.buffers`), "code" (held before the model is loaded),
    "hits" (how often the limit was met) and "peak". Raises NativeError where llama.cpp refuses the file or
    dies of anything else.
    """
    seen: dict[str, Any] = {"limit": limits.WATCHED, "network": "not isolated: not reached", "parts": {}}

    def on_event(event: dict[str, Any]) -> None:
        if on_progress and "filled" in event:
            on_progress(event.pop("filled"))
        seen["parts"].update(event.pop("parts", {}))
        seen.update(event)

    if not gguf.is_file():
        raise InputError(f"no GGUF file at {gguf}")
    forget_pages(gguf)
    arguments: dict[str, Any] = {
        "path": str(gguf),
        "runtime": runtime.model_dump(),
        "budget": budget,
        "threads": runtime.threads,
    }
    timeout = timeout or 120 + 2 * gguf.stat().st_size / 1e6 + runtime.n_ctx
    arguments["strict"] = 4 * timeout if strict else None
    # One BLAS thread: a user namespace can only be entered by a process of a single thread.
    # Passive waiting: speed is no matter here, and spinning threads stall each other on a busy machine.
    env = {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    killed = False
    try:
        jobs.call("tenth.measurement.memory:hold", arguments, on_event, log, env, timeout)
    except jobs.ChildDied as death:
        # By the kernel, by the watch, or by the time limit because it lived on pages dropped and read again.
        over = _hits(seen) > 0 or seen.get("peak", 0) > budget
        killed = death.signal == signal.SIGKILL and over
        if not killed:
            raise
    finally:
        if "group" in seen:
            limits.remove(Path(seen["group"]))
    if killed:  # whatever was seen last, it wanted more
        seen["peak"] = max(seen.get("peak", 0), budget + 1)
    return Proof(
        budget=budget,
        limit=seen["limit"],
        network=seen["network"],
        interpreter=seen["interpreter"],
        peak=seen["peak"],
        peak_file_backed=seen.get("peak_file_backed", 0),
        peak_anonymous=seen.get("peak_anonymous", 0),
        predicted=predicted,
        parts=seen["parts"],
    )


def _hits(seen: dict[str, Any]) -> int:
    """How often the child met its limit, after its death."""
    if "group" not in seen:
        return 0
    return limits.Cgroup(Path(seen["group"]), int(seen["limit"][-1])).hits()


def forget_pages(path: Path) -> None:
    """Drop a file from the page cache where the system can."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file, contextlib.suppress(OSError):
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def any_tokens(n_vocab: int, count: int) -> np.ndarray:
    """Ids as if by chance, always the same: unlike text they reach all over the embedding's pages.

    A multiplicative hash, since importing numpy.random would take 2.5 MB that no host of llama.cpp holds.
    """
    import numpy as np

    hashed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((hashed >> np.uint64(33)) % np.uint64(n_vocab)).astype(np.int32)


def hold(
    emit: jobs.Emit, path: str, runtime: dict[str, Any], budget: int, threads: int, strict: float | None
) -> dict[str, Any]:
    """The child's side of `prove`; its events and result are those fields of the Proof that it can know.

    strict: seconds of processor time, for a stranger's file.
    """
    from tenth.runtime import llama

    settings = Runtime(**runtime)
    network = limits.isolate_network()
    start = limits.baseline()
    group = limits.limit_memory(budget + start.total)
    emit({"interpreter": start.total, "network": network})
    if group:
        emit({"group": str(group.path), "limit": group.name})
    if strict is not None:
        lockdown.shut([path], seconds=strict)
    watch = Watch(start, None if group else budget, emit)
    watch.start()
    llama.library()
    watch.look(exact=True)
    emit({"parts": {"code": watch.peak}})
    with llama.Session.serving(path, settings, threads) as session:
        emit({"parts": session.buffers})
        ids = any_tokens(session.n_vocab, settings.n_ctx)
        prefill = max(settings.n_ctx - _LAST, 1)
        # As a host reads a prompt: many batches without a row of logits, whose graph llama.cpp keeps beside.
        each = max(-(-prefill // _PIECES), 4 * settings.n_ubatch)
        for begin in range(0, prefill, each):
            end = min(begin + each, prefill)
            session.decode(ids[begin:end], begin, all_logits=False)
            emit({"filled": end / settings.n_ctx})
        watch.look(exact=True)
        for position in range(prefill, settings.n_ctx):
            session.decode(ids[position : position + 1], position, all_logits=False)
        watch.look(exact=True)
        watch.finish()
    emit({"parts": {"peak": watch.peak, "hits": group.hits() if group else 0}} | watch.report())
    return {"platform": sys.platform}
