"""Give up, for good, what a process that runs a stranger's file has no need of (Linux; no root needed).

    seccomp    no new process, no other program, no socket, no signal to others, nothing of the system's
               administration: those calls fail with EPERM. Threads can be made.
    Landlock   no file is read but the interpreter's, the system's libraries and the given ones; none is
               written but below the given folder
    rlimits    processor time, size of a file, no core dump

Each says where it could not be had. Threads that exist already stay free: call it before there are any.
Sources: Documentation/userspace-api/{seccomp_filter,landlock}.rst of the kernel, and its unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_CLONE_THREAD = 0x10000
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _LEAST, _SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of classic BPF
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16  # bytes in struct seccomp_data
_X32 = 0x40000000

# machine -> (AUDIT_ARCH, clone, kill-like calls whose first argument is a process, calls that always fail)
_CALLS: dict[str, tuple[int, int, tuple[int, ...], tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        56,
        (62, 234),  # kill, tgkill
        (
            57,
            58,
            59,
            322,  # fork, vfork, execve, execveat
            41,
            53,
            425,  # socket, socketpair, io_uring_setup
            101,
            310,
            311,
            200,
            129,
            297,
            424,
            434,  # ptrace, process_vm_*, tkill, *_sigqueueinfo, pidfd_*
            165,
            166,
            155,
            161,
            272,
            308,  # mount, umount2, pivot_root, chroot, unshare, setns
            321,
            298,
            323,
            248,
            250,
            175,
            313,
            246,
            169,  # bpf, perf, userfaultfd, keys, modules, reboot
            29,
            64,
            68,  # shmget, semget, msgget
        ),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        (129, 131),
        (
            221,
            281,
            198,
            199,
            425,
            117,
            270,
            271,
            130,
            138,
            240,
            424,
            434,
            40,
            39,
            41,
            51,
            97,
            268,
            280,
            241,
            282,
            217,
            219,
            105,
            273,
            104,
            142,
            194,
            190,
            186,
        ),
    ),
}
_CLONE3 = 435  # fails with ENOSYS, whereupon the C library uses clone

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
) -> list[str]:
    """Shut this process in; returns what now holds, or why it does not, one line each.

    readable: files and folders that may be read. writable: the only folder that may be written. seconds: of
    processor time. file_bytes: the largest that a file may grow, the log that is open already included.
    """
    guards = [_limit(seconds, file_bytes)]
    if sys.platform != "linux":
        return [*guards, f"files and processes: not shut in, {sys.platform} is not Linux"]
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return [*guards, _restrict_files(readable, writable), _restrict_calls()]


def _limit(seconds: float, file_bytes: int) -> str:
    try:
        import resource
    except ImportError:
        return f"limits: {sys.platform} has none"
    for what, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, max(1, int(seconds))),
        (resource.RLIMIT_FSIZE, file_bytes),
    ):
        hard = resource.getrlimit(what)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        # At the soft limit of time comes SIGXCPU, which tells; at the hard one SIGKILL, which does not.
        more = 5 if what == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else 0
        resource.setrlimit(what, (value, value + more))
    return f"limits: {seconds:.0f} s of processor time, files of {file_bytes:,} bytes"


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


def _restrict_calls() -> str:
    calls = _CALLS.get(platform.machine())
    if calls is None:
        return f"processes: not shut in, no list of system calls for {platform.machine()}"
    code = b"".join(struct.pack("=HBBI", *line) for line in _filter(calls, os.getpid()))
    program = _Program(len(code) // 8, ctypes.cast(ctypes.c_char_p(code), ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0):
        return f"processes: not shut in, seccomp: {os.strerror(ctypes.get_errno())}"
    return "processes: seccomp; no new process, program or socket, no signal to others"


def _filter(
    calls: tuple[int, int, Sequence[int], Sequence[int]], own: int
) -> list[tuple[int, int, int, int]]:
    """Lines of classic BPF: (code, lines to skip if true, if false, constant)."""
    arch, clone, kills, denied = calls
    deny, allow = (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    lines = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, arch),
        deny,
        (_LOAD, 0, 0, _NUMBER),
        (_LEAST, 0, 1, _X32),
        deny,
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for number in denied:
        lines += [(_EQUAL, 0, 1, number), deny]
    for number in kills:
        lines += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, _ARGUMENT), (_EQUAL, 0, 1, own), allow, deny]
    lines += [(_EQUAL, 0, 4, clone), (_LOAD, 0, 0, _ARGUMENT), (_SET, 0, 1, _CLONE_THREAD), allow, deny]
    return [*lines, allow]
