"""Run a program of a model's making: no network, no file to write or to read beside Python's own, no second
process, little memory and time.

    this process -> _cell.py: new namespaces (mounts, processes, network, System V objects), a root of empty
                    memory with Python's and the system's libraries read-only, no rights, limits
                 -> Python, isolated, with the program on its standard input; it may make the system calls
                    of a list only (runtime/syscalls.py)

It ends with this process, whoever kills that, and after its time. It fails closed: where the system has no
such namespaces or no seccomp, nothing is run. What is left: a program may lie about its own tests, which run
in the same interpreter, by finding the word that says they passed.
"""

from __future__ import annotations

import os
import platform
import secrets
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tenth.core.errors import NativeError
from tenth.runtime import syscalls

SECONDS = 10.0
MEMORY = 512_000_000  # bytes of address space
_STARTING = 10.0  # seconds more for the cell itself
_WORD_BYTES = 32
_WORD_AT_MOST = 2000


@dataclass(frozen=True)
class ProgramResult:
    """Whether a program ran to its end."""

    passed: bool
    reason: str  # why not: the last line of its error, "time", or the signal


def run_program(program: str, seconds: float = SECONDS, memory: int = MEMORY) -> ProgramResult:
    """Run a program. seconds: of its wall clock, and of processor time. memory: bytes of address space.

    Raises NativeError where the cell cannot be made.
    """
    word = secrets.token_hex(_WORD_BYTES // 2)
    ours, theirs = os.pipe()
    os.set_inheritable(theirs, True)
    command = [
        sys.executable,
        "-I",
        "-S",
        "-B",
        str(Path(__file__).with_name("_cell.py")),
        str(theirs),
        repr(seconds),
        str(memory),
        sys.base_prefix,
        str(os.getpid()),
        _filter(),
    ]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[theirs],
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
    except OSError as error:
        os.close(ours)
        os.close(theirs)
        raise NativeError(f"the sandbox cannot be started: {error}") from error
    os.close(theirs)
    trouble = b""
    try:
        with suppress(subprocess.TimeoutExpired):
            source = f"{word}\n{program}".encode("utf-8", "replace")
            trouble = child.communicate(source, seconds + _STARTING)[1]
    finally:
        child.kill()
        child.communicate()
    os.set_blocking(ours, False)
    with os.fdopen(ours, "rb") as pipe:
        output = (pipe.read(_WORD_AT_MOST) or b"").decode("utf-8", "replace")
    if trouble:
        reason = " ".join(trouble.decode("utf-8", "replace").split())
        raise NativeError(f"this machine cannot shut a program in: {reason}")
    if output == word:
        return ProgramResult(True, "")
    return ProgramResult(False, " ".join(output.split())[:200] or "it was ended: time, memory or a signal")


@cache
def _filter() -> str:
    """The system calls that a program may make, as hex. In its own namespace it is the first process."""
    machine = platform.machine()
    if machine not in syscalls.ARCHITECTURES:
        raise NativeError(f"this machine cannot shut a program in: no list of system calls for {machine}")
    return syscalls.filter_code(machine, 1, syscalls.Rights(threads=False)).hex()


@cache
def trouble() -> str:
    """Why programs cannot be run here; empty where they can."""
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces"
    try:
        result = run_program("pass")
    except NativeError as error:
        return str(error)
    return "" if result.passed else result.reason


def require() -> None:
    """NativeError where programs cannot be run."""
    if why := trouble():
        raise NativeError(f"HumanEval runs programs, and there is no safe place for them: {why}")
