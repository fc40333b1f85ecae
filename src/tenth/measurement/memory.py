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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tenth.core import jobs
from tenth.core.errors import InputError
from tenth.core.records import Proof, Runtime
from tenth.runtime import limits, llama, lockdown
from tenth.runtime.watch import Watch

_PIECES = 50  # of the context, between two signs of progress
_LAST = 4  # tokens decoded one by one at the end of the context
# One BLAS thread: a user namespace can only be entered by a process of a single thread.
# Passive waiting: speed is no matter here, and spinning threads stall each other on a busy machine.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


@dataclass(frozen=True)
class ProofSettings:
    """How the proof is run: its log, its time limit, and how far it is trusted."""

    log: Path | None = None  # the file for the child's noise
    timeout: float | None = None  # seconds; by default what the slowest plausible machine needs
    # The file is a stranger's: the child gives up all rights that it has no need of (runtime/lockdown.py).
    strict: bool = False


def prove(
    gguf: Path,
    runtime: Runtime,
    budget: int,
    predicted: int,
    settings: ProofSettings = ProofSettings(),
    on_progress: Callable[[float], None] | None = None,
) -> Proof:
    """Load `gguf`, fill the context, decode the last tokens; return what was held.

    budget, predicted: bytes. on_progress receives the share of the context that is filled. Going over the
    budget is not an error: the
    Proof says so (`fits` is False), with the peak that was last seen. parts: llama.cpp's report of its
    buffers (the keys of `tenth.runtime.llama.Session.buffers`), "code" (held before the model is loaded),
    "hits" (how often the limit was met) and "peak". Raises NativeError where llama.cpp refuses the file or
    dies of anything else.
    """
    if not gguf.is_file():
        raise InputError(f"no GGUF file at {gguf}")
    forget_pages(gguf)
    timeout = settings.timeout or 120 + 2 * gguf.stat().st_size / 1e6 + runtime.n_ctx
    seconds = 4 * timeout if settings.strict else None
    job = FillContext(gguf=gguf, runtime=runtime, budget=budget, seconds=seconds)
    observed = _Observed(on_progress)
    try:
        jobs.run(job, observed.on_event, jobs.Surroundings(settings.log, _ENVIRONMENT, timeout))
    except jobs.ChildDied as death:
        # By the kernel, by the watch, or by the time limit because it lived on pages dropped and read again.
        over = (observed.group is not None and observed.group.hits() > 0) or observed.peaks["peak"] > budget
        if death.signal != signal.SIGKILL or not over:
            raise
        observed.peaks["peak"] = max(observed.peaks["peak"], budget + 1)  # it wanted more than was seen last
    finally:
        if observed.group:
            limits.remove(observed.group.path)
    return Proof(
        budget=budget,
        limit=observed.group.name if observed.group else limits.WATCHED,
        network=observed.network,
        interpreter=observed.interpreter,
        predicted=predicted,
        parts=observed.parts,
        **observed.peaks,
    )


@dataclass
class _Observed:
    """What the child's events have told so far."""

    on_progress: Callable[[float], None] | None
    network: str = "not isolated: not reached"
    interpreter: int = 0
    group: limits.Cgroup | None = None
    parts: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, int] = field(
        default_factory=lambda: {"peak": 0, "peak_file_backed": 0, "peak_anonymous": 0}
    )

    def on_event(self, event: jobs.Event) -> None:
        """Take note of an event of `FillContext`."""
        if self.on_progress and "filled" in event:
            self.on_progress(event["filled"])
        self.network = event.get("network", self.network)
        self.interpreter = event.get("interpreter", self.interpreter)
        self.group = limits.Cgroup.from_event(event) or self.group
        self.parts |= event.get("parts", {})
        self.peaks |= {name: event[name] for name in self.peaks if name in event}


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
    hashed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((hashed >> np.uint64(33)) % np.uint64(n_vocab)).astype(np.int32)


class FillContext(jobs.Job[None]):
    """The child's side of `prove`: its events are those fields of the Proof that it can know.

    budget: bytes. seconds: of processor time, for a stranger's file; None leaves the child its rights.
    """

    gguf: Path
    runtime: Runtime
    budget: int
    seconds: float | None

    def run(self, emit: jobs.Emit) -> None:
        """Shut this process in, load the file and fill the context."""
        network = limits.isolate_network()
        start = limits.baseline()
        group = limits.limit_memory(self.budget + start.total)
        emit({"interpreter": start.total, "network": network})
        if group:
            emit(group.event())
        if self.seconds is not None:
            lockdown.shut([str(self.gguf)], seconds=self.seconds)
        watch = Watch(start, None if group else self.budget, emit)
        watch.start()
        llama.library()
        watch.look(exact=True)
        emit({"parts": {"code": watch.peak}})
        with llama.Session.serving(self.gguf, self.runtime) as session:
            emit({"parts": session.buffers})
            self._fill(session, watch, emit)
            watch.finish()
        emit({"parts": {"peak": watch.peak, "hits": group.hits() if group else 0}} | watch.report())

    def _fill(self, session: llama.Session, watch: Watch, emit: jobs.Emit) -> None:
        n_ctx = self.runtime.n_ctx
        ids = any_tokens(session.n_vocab, n_ctx)
        prefill = max(n_ctx - _LAST, 1)
        # As a host reads a prompt: many batches without a row of logits, whose graph llama.cpp keeps beside.
        each = max(-(-prefill // _PIECES), 4 * self.runtime.n_ubatch)
        for begin in range(0, prefill, each):
            end = min(begin + each, prefill)
            session.decode(ids[begin:end], begin, all_logits=False)
            emit({"filled": end / n_ctx})
        watch.look(exact=True)
        for position in range(prefill, n_ctx):
            session.decode(ids[position : position + 1], position, all_logits=False)
        watch.look(exact=True)
