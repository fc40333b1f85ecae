"""A child process that can do little: for everything that touches a stranger's file.

Memory: a cgroup, or else a watch on its own size. Network: a namespace without interfaces. The rest is
runtime/lockdown.py. What could not be had is said in `Isolation.lines`, and printed with every verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from tenth.core import jobs
from tenth.core.errors import NativeError
from tenth.core.records import Record
from tenth.runtime import limits, lockdown
from tenth.runtime.watch import Watch

# A user namespace can only be entered, and Landlock only be laid on, by a process of a single thread.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}


_LATER = 10.0  # seconds after which the kernel ends a child that its parent did not end in time


class GreedError(NativeError):
    """The child was ended because it held more than it may."""


class Limits(Record):
    """How much memory, time and disk a child may use."""

    memory: int  # bytes above those of the bare interpreter
    seconds: float  # of wall clock; four times as much of processor time
    file_bytes: int = 16 << 20  # the log included


@dataclass
class Isolation:
    """What shut the children in, collected over them."""

    lines: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Remember a line, once."""
        if line not in self.lines:
            self.lines.append(line)


@dataclass(frozen=True)
class Sandbox:
    """What its children may use, what shut them in, and the file that their noise goes to."""

    limits: Limits
    isolation: Isolation = field(default_factory=Isolation)
    log: Path | None = None

    def run(
        self,
        job: jobs.Job[jobs.Result],
        readable: Sequence[Path] = (),
        writable: Path | None = None,
        on_event: jobs.Emit | None = None,
    ) -> jobs.Result:
        """`jobs.run` in the sandbox. Raises what that raises, `GreedError` for too much memory.

        readable, writable: files and folders beside Python's own, and the one folder to write to.
        """
        group: limits.Cgroup | None = None
        peak = 0

        def listen(event: jobs.Event) -> None:
            nonlocal group, peak
            for line in event.get("isolation", ()):
                self.isolation.note(line)
            group = limits.Cgroup.from_event(event) or group
            peak = event.get("peak", peak)
            if on_event and not event.keys() & {"isolation", "group", "peak"}:
                on_event(event)

        packed = job.pack()
        enclosed = _Sandboxed(
            job=packed,
            threads=packed.threads,
            limits=self.limits,
            readable=[str(path) for path in readable],
            writable=None if writable is None else str(writable),
        )
        around = jobs.Surroundings(self.log, ENVIRONMENT, self.limits.seconds)
        try:
            answer = jobs.run(enclosed, listen, around)
        except jobs.ChildDied as death:
            if death.killed and ((group and group.hits()) or peak > self.limits.memory):
                raise GreedError(
                    f"it took more than the {self.limits.memory:,} bytes of memory that it may have"
                ) from None
            raise jobs.ChildDied(packed.kind, death.status, death.last_line, death.timeout) from None
        finally:
            if group:
                limits.remove(group.path)
        return job.returned().validate_python(answer)


class _Sandboxed(jobs.Job[JsonValue]):
    """The child's side of `Sandbox.run`: shuts itself in, then does the job."""

    job: jobs.Packed
    threads: int
    limits: Limits
    readable: list[str]
    writable: str | None

    def run(self, emit: jobs.Emit) -> JsonValue:
        """Run the job with no more rights than it needs; emits what shut it in."""
        work = self.job.unpack()  # its module is imported while files may still be read
        network = limits.isolate_network()
        start = limits.baseline()
        group = limits.limit_memory(self.limits.memory + start.total)
        if group:
            emit(group.event())
        lines = lockdown.shut(
            self.readable,
            self.writable,
            seconds=4 * self.limits.seconds,
            file_bytes=self.limits.file_bytes,
            wall=self.limits.seconds + _LATER,
        )
        limited = group.name if group else limits.WATCHED
        emit({"isolation": [f"network: {network}", f"memory: {limited}", *lines]})
        if not group:
            Watch(start, self.limits.memory, emit).start()
        return work.plain(emit)
