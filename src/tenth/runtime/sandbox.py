"""A child process that can do little: for everything that touches a stranger's file.

Memory: a cgroup, or else a watch on its own size. Network: a namespace without interfaces. The rest is
runtime/lockdown.py. What could not be had is said in `Isolation.said`, and printed with every verdict.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenth.core import jobs
from tenth.core.errors import NativeError
from tenth.runtime import limits as seal
from tenth.runtime import lockdown
from tenth.runtime.watch import Watch

# A user namespace can only be entered, and Landlock only be laid on, by a process of a single thread.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}


class GreedError(NativeError):
    """The child was ended because it held more than it may."""


@dataclass(frozen=True)
class Limits:
    """What a child may use."""

    memory: int  # bytes above those of the bare interpreter
    seconds: float  # of wall clock; four times as much of processor time
    file_bytes: int = 16 << 20  # the log included


@dataclass
class Isolation:
    """What shut the children in, collected over them."""

    said: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Once each."""
        if line not in self.said:
            self.said.append(line)


def call(
    function: str,
    arguments: dict[str, Any],
    limits: Limits,
    isolation: Isolation,
    log: Path | None,
    readable: Sequence[Path] = (),
    writable: Path | None = None,
    on_event: jobs.Emit | None = None,
) -> Any:
    """`worker.call` of a function in the cell. Raises what that raises, `GreedError` for too much memory."""
    seen: dict[str, Any] = {}

    def listen(event: dict[str, Any]) -> None:
        for line in event.get("isolation", ()):
            isolation.note(line)
        if on_event and not event.keys() & {"isolation", "group", "peak"}:
            on_event(event)
        seen.update(event)

    request = {
        "function": function,
        "arguments": arguments,
        "memory": limits.memory,
        "seconds": limits.seconds,
        "file_bytes": limits.file_bytes,
        "readable": [str(path) for path in readable],
        "writable": None if writable is None else str(writable),
        "threads": arguments.get("threads", 0),
    }
    try:
        return jobs.call("tenth.runtime.sandbox:enter", request, listen, log, ENVIRONMENT, limits.seconds)
    except jobs.ChildDied as death:
        group = Path(seen["group"]) if "group" in seen else None
        hits = seal.Cgroup(group, int(seen["version"])).hits() if group else 0
        if death.signal == 9 and (hits or seen.get("peak", 0) > limits.memory):
            raise GreedError(
                f"it took more than the {limits.memory:,} bytes of memory that it may have"
            ) from None
        raise
    finally:
        if "group" in seen:
            seal.remove(Path(seen["group"]))


def enter(
    emit: jobs.Emit,
    function: str,
    arguments: dict[str, Any],
    memory: int,
    seconds: float,
    file_bytes: int,
    readable: list[str],
    writable: str | None,
    threads: int,  # noqa: ARG001
) -> Any:
    """The child's side of `call`."""
    module, _, name = function.partition(":")
    work = getattr(importlib.import_module(module), name)
    network = seal.isolate_network()
    start = seal.baseline()
    group = seal.limit_memory(memory + start.total)
    if group:
        emit({"group": str(group.path), "version": group.version})
    said = lockdown.shut(readable, writable, 4 * seconds, file_bytes)
    limited = group.name if group else seal.WATCHED
    emit({"isolation": [f"network: {network}", f"memory: {limited}", *said]})
    if not group:
        Watch(start, memory, emit).start()
    return work(emit=emit, **arguments)
