"""Processes that a process has started, by /proc."""

from __future__ import annotations

from pathlib import Path


def _parent(pid: str) -> int:
    try:
        return int(Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def below(pid: int) -> list[int]:
    """Its children and theirs, nearest first."""
    parents = {int(p.name): _parent(p.name) for p in Path("/proc").glob("[0-9]*")}
    found, at = [pid], 0
    while at < len(found):
        found += [child for child, parent in parents.items() if parent == found[at]]
        at += 1
    return found[1:]


def alive(pid: int) -> bool:
    """Whether it runs; what has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
