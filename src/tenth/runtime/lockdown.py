"""Give up, for good, what a process that runs a stranger's file has no need of (Linux; no root needed).

    seccomp    a list of system calls that may be made (runtime/syscalls.py), threads among them
    Landlock   no file is read but the interpreter's, the system's libraries and the given ones; none is
               written but below the given folder
    rights     root's, but for reading
    time       a timer of the kernel ends the process; it also ends with the process that started it
    rlimits    processor time, size of a file, open files, no core dump

Each says where it could not be had. Threads that exist already stay free: call it before there are any.
Sources: the kernel's Documentation/userspace-api/landlock.rst; timer_create(2), capabilities(7).
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import signal
import struct
import sys
import sysconfig
import time
from collections.abc import Iterable
from pathlib import Path

from tenth.runtime import syscalls

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 1, 22, 38, 2
_CAPABILITIES = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_READING = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_FILES = 1024  # open at a time
_LATER = 10  # seconds between the limits of processor time and wall clock, so that the first one tells

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ = 1 << 2 | 1 << 3
_READ_FILE = 1 << 2
_WRITE = 1 << 1 | sum(1 << bit for bit in range(4, 13))  # write, remove, make
_BY_VERSION = {2: 1 << 13, 3: 1 << 14}  # refer, truncate
_SYSTEM = (
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/null",
    "/dev/urandom",
    "/dev/random",
    "/dev/zero",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/vm",
    "/sys/devices",
)


def shut(
    readable: Iterable[Path | str] = (),
    writable: Path | str | None = None,
    seconds: float = 3600.0,
    file_bytes: int = 16 << 20,
    wall: float | None = None,
) -> list[str]:
    """Shut this process in; returns what now holds, or why it does not, one line each.

    readable: files and folders that may be read. writable: the only folder that may be written. seconds: of
    processor time. file_bytes: the largest that a file may grow, the log that is open already included.
    wall: seconds until the kernel ends the process, whatever became of its parent; by default 10 more.
    """
    guards = [_limit(seconds, file_bytes)]
    if sys.platform != "linux":
        return [*guards, f"files and processes: not shut in, {sys.platform} is not Linux"]
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    guards += [_restrict_files(readable, writable), _end_after(seconds + _LATER if wall is None else wall)]
    if trouble := _drop_capabilities():
        guards.append(trouble)
    _die_with_parent()
    return [*guards, _restrict_calls(writable is not None)]


def _limit(seconds: float, file_bytes: int) -> str:
    try:
        import resource
    except ImportError:
        return f"limits: {sys.platform} has none"
    for what, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, max(1, int(seconds))),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, _FILES),
    ):
        hard = resource.getrlimit(what)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        # At the soft limit of time comes SIGXCPU, which tells; at the hard one SIGKILL, which does not.
        more = 5 if what == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else 0
        resource.setrlimit(what, (value, value + more))
    return f"limits: {seconds:.0f} s of processor time, files of {file_bytes:,} bytes"


class _Event(ctypes.Structure):
    """struct sigevent."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_int * 12),
    )


class _Spec(ctypes.Structure):
    """struct itimerspec."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "after_s", "after_ns"))


def _end_after(seconds: float) -> str:
    """Let the kernel send SIGKILL, which nobody can block, so many seconds from now.

    Afterwards seccomp refuses all calls that could change the timer.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    timer, event = ctypes.c_void_p(), _Event(None, signal.SIGKILL, 0)
    spec = _Spec(0, 0, max(1, math.ceil(seconds)), 0)
    try:
        failed = libc.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer))
        failed = failed or libc.timer_settime(timer, 0, ctypes.byref(spec), None)
    except AttributeError:  # before glibc 2.34 these are in a library of their own
        return "time: the wall clock's limit holds only as long as the judge runs (no timer_create)"
    if failed:
        why = os.strerror(ctypes.get_errno())
        return f"time: the wall clock's limit holds only as long as the judge runs ({why})"
    return f"time: ended by the kernel after {spec.after_s} s, or with the process that started it"


def _drop_capabilities() -> str:
    """Of root's rights keep that to read any file; returns why they are all still there, else nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", _CAPABILITIES, 0)
    held = ctypes.create_string_buffer(24)  # effective, permitted, inheritable; twice
    if libc.capget(header, held) == 0:
        words = list(struct.unpack("=6I", held.raw))
        words = [words[0] & _READING, words[1] & _READING, 0, 0, 0, 0]
        if libc.capset(header, struct.pack("=6I", *words)) == 0:
            return ""
    return f"rights: not given up, {os.strerror(ctypes.get_errno())}"


def _die_with_parent() -> None:
    """A change of user or namespace may have cleared the signal that jobs.py asked for."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _restrict_files(readable: Iterable[Path | str], writable: Path | str | None) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return f"files: not shut in, Landlock: {os.strerror(ctypes.get_errno())}"
    write = _WRITE | sum(bit for least, bit in _BY_VERSION.items() if version >= least)
    handled = struct.pack("=Q", _READ | write)
    ruleset = libc.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    if ruleset < 0:
        return f"files: not shut in, Landlock: {os.strerror(ctypes.get_errno())}"
    try:
        own = {
            *_SYSTEM,
            sys.prefix,
            sys.base_prefix,
            *sysconfig.get_paths().values(),
            *filter(None, sys.path),
        }
        for path in (*sorted(own), *map(str, readable)):
            _allow(libc, ruleset, path, _READ)
        _allow(libc, ruleset, "/dev/null", _READ | 1 << 1)
        if writable is not None:
            _allow(libc, ruleset, str(writable), _READ | write)
        if libc.syscall(_RESTRICT_SELF, ruleset, 0):
            return f"files: not shut in, Landlock: {os.strerror(ctypes.get_errno())}"
    finally:
        os.close(ruleset)
    where = "one private folder" if writable is not None else "nothing"
    return f"files: Landlock {version}; reads the artifact and the system's libraries, writes {where}"


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    """Grant rights below a path; one that is not there grants nothing."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not Path(path).is_dir():
            rights &= _READ_FILE | 1 << 1 | 1 << 14
        libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _restrict_calls(writes: bool) -> str:
    machine = platform.machine()
    if machine not in syscalls.ARCHITECTURES:
        return f"processes: not shut in, no list of system calls for {machine}"
    rights = syscalls.Rights(threads=True, writes=writes)
    code = syscalls.filter_code(machine, os.getpid(), rights)
    program = _Program(len(code) // 8, ctypes.cast(ctypes.c_char_p(code), ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0):
        return f"processes: not shut in, seccomp: {os.strerror(ctypes.get_errno())}"
    count = len(syscalls.numbers(machine, rights))
    return f"processes: seccomp, {count} system calls; no new process, program or socket, no signal to others"
