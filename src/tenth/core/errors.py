"""The one error tree. Each error says what is wrong, where, and what to do, in one line.

TenthError            every error a person may meet; the command line prints it and exits with 2
├── InputError        a file, folder, name or value given to us is unusable
├── BudgetError       nothing fits; carries the smallest budget that would
├── NativeError       the runtime's child process died or refused
├── DeviceError       another device cannot be reached, refuses, broke off, or cannot run it
└── OutputError       the result cannot be written (folder exists, disk full)
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path


class TenthError(Exception):
    """Base of all errors shown to a person; exit status 2."""


class InputError(TenthError):
    """Something given to us is unusable."""


class BudgetError(TenthError):
    """No plan fits the budget. ``smallest`` is the least total in bytes that does, part by part."""

    def __init__(self, message: str, smallest: dict[str, int] | None = None) -> None:
        super().__init__(message)
        self.smallest = smallest or {}


class NativeError(TenthError):
    """The runtime's child process died or refused; the parent is unharmed."""


class DeviceError(TenthError):
    """Another device cannot be reached, refuses, broke off, or cannot run it; nothing is left there."""


class OutputError(TenthError):
    """The result cannot be written; nothing half-written is left."""


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> InputError:
    """An InputError for a name that is not in `known`: suggests the nearest and lists all."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(
        f"unknown {kind} {name!r}.{guess} Known: {', '.join(names)}.{' ' + hint if hint else ''}"
    )


def unwritten(path: Path, size: int, error: OSError) -> OutputError:
    """An OutputError for so many bytes that could not be written to `path`."""
    if error.errno == errno.ENOSPC:
        return OutputError(f"no space left for {size} bytes at {path}; free some, or give another place")
    return OutputError(f"{path} cannot be written: {error.strerror}")
