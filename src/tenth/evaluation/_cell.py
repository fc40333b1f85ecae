"""The inside of `programs`: shuts itself in, then becomes Python with a stranger's program. Only stdlib.

Started as: _cell.py FD SECONDS MEMORY PREFIX PARENT FILTER, the word and the program on standard input.
PARENT is the process that started it, FILTER the hex of a seccomp filter, which the last step lays on.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys
from pathlib import Path

NOBODY = 65534
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
# The program is read whole, then run; the word goes out only after its last line.
RUNNER = """
import ctypes, os, sys
fd, code = int(sys.argv[1]), bytes.fromhex(sys.argv[2])
class Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(22, 2, ctypes.byref(Filter(len(code) // 8, code)), 0, 0):
    os.write(fd, f"seccomp: {os.strerror(ctypes.get_errno())}".encode())
    os._exit(1)
with os.fdopen(0, "rb", closefd=True) as source:
    word, _, program = source.read().partition(b"\\n")
try:
    exec(compile(program, "program", "exec"), {"__name__": "program"})
except BaseException as error:
    os.write(fd, f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:500])
    os._exit(1)
os.write(fd, word)
os._exit(0)
"""

libc = ctypes.CDLL(None, use_errno=True)


def check(what: str, result: int) -> None:
    """OSError for a system call that failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount a file system: the system call of that name."""
    words = [None if w is None else w.encode() for w in (source, target, kind)]
    check(f"mount {target}", libc.mount(*words, ctypes.c_ulong(flags), data and data.encode()))


def shut() -> None:
    """New namespaces for this process and its children; the next child is the first in its own."""
    flags, uid, gid = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET, os.getuid(), os.getgid()
    if libc.unshare(flags) == 0:
        return
    check("unshare", libc.unshare(flags | NEWUSER))
    us = Path("/proc/self")
    (us / "uid_map").write_text(f"{NOBODY} {uid} 1")
    (us / "setgroups").write_text("deny")
    (us / "gid_map").write_text(f"{NOBODY} {gid} 1")


def furnish(prefix: str) -> None:
    """A root of empty memory with Python and the system's libraries, all of it read-only."""
    mount("none", "/", None, REC | PRIVATE)
    root = "/proc"  # covered by the new root, in this mount namespace only
    mount("cell", root, "tmpfs", NOSUID | NODEV, "size=1m,mode=755")
    for place in ("/usr", "/lib", "/lib64", "/lib32", "/bin", prefix):
        outside, inside = Path(place), Path(root + place)
        if outside.is_symlink():
            inside.symlink_to(outside.readlink())
        elif outside.is_dir() and not inside.is_dir():
            inside.mkdir(parents=True)
            mount(place, str(inside), None, BIND)  # without what is mounted below: that would be writable
            mount("none", str(inside), None, BIND | REMOUNT | RDONLY | NOSUID | NODEV)
    Path(root, "tmp").mkdir(exist_ok=True)
    mount("none", root, None, REMOUNT | RDONLY | NOSUID | NODEV)
    os.chroot(root)
    os.chdir("/")


def weaken(seconds: float, memory: int) -> None:
    """No rights, and limits on all that can be used up."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    check("prctl", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))


def die_with_parent(life: int) -> None:
    """After the change of user, which clears that wish. life: a pipe whose other end the parent holds."""
    check("prctl", libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    watch = select.poll()
    watch.register(life, 0)  # the end of the other side is always told
    if watch.poll(0):
        os._exit(1)


def main() -> None:
    """Shut in, fork (the first process of the new namespace: with it dies all that it started), run."""
    out, seconds, memory, prefix = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    parent, code = int(sys.argv[5]), sys.argv[6]
    python = os.path.realpath(sys.executable)
    try:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        shut()
        life, held = os.pipe()  # `held` is closed when this process dies, and not before
        child = os.fork()
        if not child:
            os.close(held)
            furnish(prefix)
            weaken(seconds, memory)
            die_with_parent(life)
            os.set_inheritable(2, False)  # for trouble with the cell alone; the program has no way there
            words = [python, "-I", "-S", "-B", "-c", RUNNER, str(out), code]
            os.execve(python, words, {"LC_ALL": "C.UTF-8"})
    except BaseException as error:
        os.write(2, str(error).encode("utf-8", "replace")[:500])
        os._exit(1)
    os.close(out)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    os.waitpid(child, 0)
    os._exit(0)


if __name__ == "__main__":
    main()
