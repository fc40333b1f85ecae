"""Shut the current process in: a hard memory limit and no network. Called in a child, before loading a model.

Each guard is the best that the machine allows, and says which that was; none of them is required.
Memory: a cgroup of version 2 (``memory.max``, ``memory.swap.max``) or 1 (``memory.limit_in_bytes``); pages
that were charged before entering stay with the old group. Otherwise the caller watches its own RSS.
Network: a new network namespace, whose only interface is a loopback that is down (``unshare(2)``).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import socket
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from tenth.core import jobs

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_CGROUPS = Path("/sys/fs/cgroup")
_STALE = 60  # seconds; a group is empty for microseconds only, between being made and entered

WATCHED = "watched RSS"
ISOLATED = "namespace without interfaces"


@dataclass(frozen=True)
class Cgroup:
    """A memory group that this process has entered."""

    path: Path
    version: int

    @property
    def name(self) -> str:
        """The name that a Proof calls this limit by."""
        return f"cgroup v{self.version}"

    def event(self) -> dict[str, str | int]:
        """What a child emits of its group, so that the parent can remove it; `from_event` reads it."""
        return {"group": str(self.path), "version": self.version}

    @classmethod
    def from_event(cls, event: jobs.Event) -> Cgroup | None:
        """The group that an event tells of, or None."""
        return cls(Path(event["group"]), int(event["version"])) if "group" in event else None

    def hits(self) -> int:
        """How often an allocation met the limit (and was served by dropping pages, or not at all)."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            if self.version == 1:  # an allocation that ended the process is not always counted as failed
                control = (self.path / "memory.oom_control").read_text().splitlines()
                killed = dict(line.split() for line in control).get("oom_kill", 0)
                return int((self.path / "memory.failcnt").read_text()) + int(killed)
            lines = (self.path / "memory.events").read_text().splitlines()
            return int(dict(line.split() for line in lines)["max"])
        return 0


def limit_memory(limit: int) -> Cgroup | None:
    """Put this process into a new cgroup that may hold `limit` bytes; None where no cgroup can be made.

    Nor is one made where the variable TENTH_NO_CGROUP is set.
    """
    if os.environ.get("TENTH_NO_CGROUP"):
        return None
    name = f"tenth-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    for version, parent in _parents():
        path = parent / name
        _sweep(parent)
        try:
            path.mkdir()
        except OSError:
            continue
        try:
            _restrict(path, version, limit)
            _set(path / "cgroup.procs", os.getpid())
        except OSError:
            remove(path)
            continue
        return Cgroup(path, version)
    return None


def _sweep(parent: Path) -> None:
    """Remove the empty groups of runs that were killed; none that is in use can go."""
    for path in parent.glob("tenth-*-*"):
        with contextlib.suppress(OSError):
            alive = Path("/proc", path.name.split("-")[1]).exists()
            if not alive and time.time() - path.stat().st_mtime > _STALE:
                path.rmdir()


def _restrict(path: Path, version: int, limit: int) -> None:
    """Set the limits. The swap files are absent on a kernel without swap accounting."""
    if version == 2:
        _set(path / "memory.max", limit)
        with contextlib.suppress(OSError):
            _set(path / "memory.swap.max", 0)
    else:
        _set(path / "memory.limit_in_bytes", limit)
        with contextlib.suppress(OSError):
            _set(path / "memory.memsw.limit_in_bytes", limit)


def _set(file: Path, value: int) -> None:
    """Write a control file that exists: a plain folder would let us create one that limits nothing."""
    with file.open("r+") as control:
        control.write(str(value))


def _parents() -> list[tuple[int, Path]]:
    """(version, folder) under which a memory cgroup might be made: our own group and the one above it."""
    parents: list[tuple[int, Path]] = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                roots = [(2, _CGROUPS), (2, _CGROUPS / "unified")]
            elif "memory" in controllers.split(","):
                roots = [(1, _CGROUPS / controllers)]
            else:
                continue
            for version, root in roots:
                own = root / group.lstrip("/")
                parents += [(version, own), (version, own.parent)] if own != root else [(version, root)]
    usable = [parent for parent in parents if parent[1].is_dir() and parent[1].is_relative_to(_CGROUPS)]
    return sorted(usable, key=lambda parent: -parent[0])


def remove(path: Path) -> None:
    """Remove an empty cgroup; the kernel may need a moment to let go of a process that just ended."""
    for _ in range(50):
        try:
            path.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            time.sleep(0.02)
        else:
            return


def isolate_network() -> str:
    """Leave the network for good: `ISOLATED`, or "not isolated: reason".

    Without root a user namespace is made first, which the kernel only allows a process of one thread.
    """
    if sys.platform != "linux":
        return f"not isolated: {sys.platform} has no network namespaces"
    libc = ctypes.CDLL(None, use_errno=True)
    for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET):
        if libc.unshare(flags) == 0:
            return ISOLATED if not _reaches_out() else "not isolated: the namespace has a route"
    return f"not isolated: {os.strerror(ctypes.get_errno())}"


def _reaches_out() -> bool:
    """Whether a route out exists. Connecting a datagram socket sends nothing; 192.0.2.0/24 is no one's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class Resident:
    """Resident bytes of a process: anonymous (with shared memory) and file-backed pages."""

    anonymous: int
    file_backed: int

    @property
    def total(self) -> int:
        """Anonymous and file-backed bytes together."""
        return self.anonymous + self.file_backed


def resident(exact: bool = False) -> Resident:
    """What this process holds now.

    exact walks the page tables (milliseconds); otherwise the kernel's counters, off by some hundred KB.
    Where there is no /proc, the peak so far, all of it called anonymous.
    """
    try:
        if exact:
            fields = _fields("/proc/self/smaps_rollup")
            anonymous = fields["Anonymous"]
            return Resident(anonymous, fields["Rss"] - anonymous)
        fields = _fields("/proc/self/status")
        return Resident(fields["RssAnon"] + fields["RssShmem"], fields["RssFile"])
    except (OSError, KeyError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Resident(peak if sys.platform == "darwin" else peak * 1024, 0)


def baseline() -> Resident:
    """What this process holds before its work, without free heap that the work could use unseen.

    An interpreter keeps up to some MB that it has freed (the more, the more it compiled); what llama.cpp then
    puts there would not count. The exact size; the heap is given back where the C library can (glibc).
    """
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return resident(exact=True)


def _fields(path: str) -> dict[str, int]:
    """The "Name: N kB" lines of a file under /proc, in bytes."""
    fields = {}
    with Path(path).open(encoding="ascii", errors="replace") as file:
        for line in file:
            words = line.split()
            if len(words) == 3 and words[2] == "kB":
                fields[words[0].rstrip(":")] = int(words[1]) * 1024
    return fields


def data_size() -> int:
    """What RLIMIT_DATA counts of this process, bytes: all private memory that may be written, used or not."""
    return _fields("/proc/self/status")["VmData"]


def forget_peak() -> None:
    """Let the kernel start the highest resident size of this process anew, where it can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def highest() -> int:
    """The highest resident size of this process since `forget_peak` or its start, bytes."""
    with contextlib.suppress(OSError, KeyError):
        return _fields("/proc/self/status")["VmHWM"]
    return resident().total
