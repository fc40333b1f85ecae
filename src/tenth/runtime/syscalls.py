"""The system calls that a process with a stranger's file may make, by name; all others fail (seccomp, Linux).

A call that is not in these tables fails with EPERM; one that is newer than they are, and clone3, with ENOSYS,
whereupon the C library uses an older one. What the tables hold was seen with strace in llama.cpp, numpy and
Python at work; what creates processes, sockets or keys, changes files' owners, modes, times or attributes,
sets the clock, the system's name or another process's limits, or talks to the kernel through rings is not.

Sources: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of the kernel (the test
compares both with the headers and with libseccomp), Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass

# Name, number on x86_64, number on aarch64; "-" where there is no such call.
_FILES = """
read 0 63           readv 19 65         pread64 17 67        preadv 295 69      write 1 64
writev 20 66        close 3 57          lseek 8 62           open 2 -           openat 257 56
stat 4 -            lstat 6 -           fstat 5 80           newfstatat 262 79  statx 332 291
statfs 137 43       fstatfs 138 44      getdents64 217 61    readlink 89 -      readlinkat 267 78
access 21 -         faccessat 269 48    faccessat2 439 439   getcwd 79 17       fadvise64 221 223
readahead 187 213   dup 32 23           dup2 33 -            dup3 292 24        fcntl 72 25
ioctl 16 29         poll 7 -            ppoll 271 73         select 23 -        pselect6 270 72
"""
_MEMORY = """
mmap 9 222          munmap 11 215       mremap 25 216        mprotect 10 226    madvise 28 233
mincore 27 232      msync 26 227        brk 12 214
"""
_TIME = """
clock_gettime 228 113   clock_getres 229 114   clock_nanosleep 230 115   nanosleep 35 101
gettimeofday 96 169     time 201 -             times 100 153
"""
_SIGNALS = """
rt_sigaction 13 134     rt_sigprocmask 14 135  rt_sigpending 127 136     rt_sigreturn 15 139
sigaltstack 131 132     restart_syscall 219 128    kill 62 129           tgkill 234 131
"""
_ITSELF = """
getpid 39 172       getppid 110 173     gettid 186 178       getuid 102 174     geteuid 107 175
getgid 104 176      getegid 108 177     getgroups 115 158    getresuid 118 148  getresgid 120 150
getpgrp 111 -       getpgid 121 155     getsid 124 156       getrlimit 97 163   prlimit64 302 261
getrusage 98 165    getcpu 309 168      uname 63 160         sysinfo 99 179     getrandom 318 278
prctl 157 167       sched_yield 24 124  sched_getaffinity 204 123               sched_setaffinity 203 122
sched_getparam 143 121                  sched_getscheduler 145 120              futex 202 98
set_robust_list 273 99                  get_robust_list 274 100                 set_tid_address 218 96
rseq 334 293        exit 60 93          exit_group 231 94
"""
_THREADS = "clone 56 220"
_FOLDER = """
pwrite64 18 68      pwritev 296 70      mkdir 83 -           mkdirat 258 34     rmdir 84 -
unlink 87 -         unlinkat 263 35     rename 82 -          renameat 264 38    renameat2 316 276
truncate 76 45      ftruncate 77 46     fallocate 285 47     fsync 74 82        fdatasync 75 83
copy_file_range 326 285                 sendfile 40 71       umask 95 166
"""
_CLONE3 = 435  # on every machine, as all calls from 424 on
_NEWEST = 462  # of the kernel of these tables (6.12: mseal); what is newer does not exist
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _LEAST, _MORE, _SET, _RETURN = 0x20, 0x15, 0x35, 0x25, 0x45, 0x06  # of classic BPF
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # bytes in struct seccomp_data
_X32 = 0x40000000
_CLONE_THREAD = 0x10000
# Namespaces of cgroups, mounts, names, System V objects, users, processes, network.
_CLONE_NEW = 0x02000000 | 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_WRITING = 0o3 | 0o100 | 0o1000  # of open: O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
# Of a terminal: what is it, how large; of a descriptor: close on exec, or not; how much waits.
_IOCTL = (0x5401, 0x5413, 0x5451, 0x5450, 0x541B)
# F_DUPFD to F_SETLKW, F_DUPFD_CLOEXEC. None that would let the kernel send signals (F_SETOWN, F_SETSIG).
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
# PR_GET_PDEATHSIG, GET_DUMPABLE, SET_NAME, GET_NAME, GET_SECCOMP, GET_NO_NEW_PRIVS, SET_VMA.
# Not PR_SET_PDEATHSIG: the process is to end with the one that started it.
_PRCTL = (2, 3, 15, 16, 21, 39, 0x53564D41)
_Line = tuple[int, int, int, int]  # classic BPF: code, lines to skip if true, if false, constant


@dataclass(frozen=True)
class Rights:
    """What else a process may: make threads; write files (Landlock says where)."""

    threads: bool = True
    writes: bool = False


@dataclass(frozen=True)
class _Rule:
    """What the low 32 bits of an argument must be: one of `values`; or all of `always`, none of `never`."""

    argument: int
    values: tuple[int, ...] = ()
    never: int = 0
    always: int = 0

    def lines(self) -> list[_Line]:
        """Filter the argument: the last line is reached where the call is allowed or refused."""
        deny, allow = (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
        lines = [(_LOAD, 0, 0, _ARGUMENTS + 8 * self.argument)]
        if self.values:
            for value in self.values:
                lines += [(_EQUAL, 0, 1, value), allow]
            return [*lines, deny]
        if self.always:
            lines += [(_SET, 1, 0, self.always), deny]
        if self.never:
            lines += [(_SET, 0, 1, self.never), deny]
        return [*lines, allow]


def numbers(machine: str, rights: Rights) -> dict[str, int]:
    """Name -> number of every call that may be made, some of them with certain arguments only."""
    parts = [_FILES, _MEMORY, _TIME, _SIGNALS, _ITSELF]
    parts += [_THREADS] if rights.threads else []
    parts += [_FOLDER] if rights.writes else []
    words = " ".join(parts).split()
    column = 1 + list(ARCHITECTURES).index(machine)
    rows = [words[at : at + 3] for at in range(0, len(words), 3)]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def _rules(own: int, rights: Rights) -> dict[str, _Rule]:
    """Calls that may be made with certain arguments only. own: the process that may be sent signals."""
    rules = {
        "kill": _Rule(0, (own,)),
        "tgkill": _Rule(0, (own,)),
        "prlimit64": _Rule(0, (0, own)),
        "sched_setaffinity": _Rule(0, (0, own)),
        "ioctl": _Rule(1, _IOCTL),
        "fcntl": _Rule(1, _FCNTL),
        "prctl": _Rule(0, _PRCTL),
        "clone": _Rule(0, always=_CLONE_THREAD, never=_CLONE_NEW),
    }
    if not rights.writes:
        rules |= {"open": _Rule(1, never=_WRITING), "openat": _Rule(2, never=_WRITING)}
    return rules


def filter_code(machine: str, own: int, rights: Rights) -> bytes:
    """The filter as the kernel takes it: struct sock_filter, one after the other."""
    deny, absent = (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
    lines: list[_Line] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, ARCHITECTURES[machine]),
        deny,
        (_LOAD, 0, 0, _NUMBER),
        (_LEAST, 0, 1, _X32),
        deny,
        (_MORE, 0, 1, _NEWEST),
        absent,
        (_EQUAL, 0, 1, _CLONE3),
        absent,
    ]
    rules = _rules(own, rights)
    for name, number in numbers(machine, rights).items():
        body: Sequence[_Line] = rules[name].lines() if name in rules else [(_RETURN, 0, 0, _ALLOW)]
        lines += [(_EQUAL, 0, len(body), number), *body]
    return b"".join(struct.pack("=HBBI", *line) for line in (*lines, deny))
