"""What the child processes of the tests do."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from ctypes import CDLL, c_long, create_string_buffer, get_errno, set_errno
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import JsonValue

from tenth.core.errors import BudgetError, InputError
from tenth.core.ggml import storage_type
from tenth.core.jobs import Emit, Job
from tenth.core.records import Record, Runtime
from tenth.runtime import limits, llama, lockdown


class Echoed(Record):
    value: JsonValue
    openmp: str | None
    extra: str | None


class Echo(Job[Echoed]):
    value: JsonValue
    threads: int = 0

    def run(self, emit: Emit) -> Echoed:
        print("noise from Python", flush=True)
        os.write(1, b"noise from native code\n")
        emit({"step": 1})
        emit({"step": 2})
        return Echoed(
            value=self.value, openmp=os.environ.get("OMP_NUM_THREADS"), extra=os.environ.get("EXTRA")
        )


class Refuse(Job[None]):
    kind: Literal["budget", "input", "other"]

    def run(self, emit: Emit) -> None:
        if self.kind == "budget":
            raise BudgetError("too small", {"total": 3})
        if self.kind == "input":
            raise InputError("no such thing")
        raise ZeroDivisionError("a mistake of ours")


class Unspeakable(Job[Any]):
    """Its result is no JSON."""

    def run(self, emit: Emit) -> Any:
        return object()


class Abort(Job[None]):
    def run(self, emit: Emit) -> None:
        os.write(2, b"an earlier line\nGGML_ASSERT(reason) failed\n")
        os.abort()


class Leave(Job[None]):
    def run(self, emit: Emit) -> None:
        os._exit(7)


class Hang(Job[None]):
    def run(self, emit: Emit) -> None:
        emit({"pid": os.getpid()})
        time.sleep(60)


class CoreLimit(Job[int]):
    def run(self, emit: Emit) -> int:
        import resource

        return resource.getrlimit(resource.RLIMIT_CORE)[0]


class EncodeWithoutImportance(Job[None]):
    """ggml asserts that this type comes with importance weights."""

    def run(self, emit: Emit) -> None:
        weights, out = np.ones((1, 256), np.float32), np.empty(1000, np.uint8)
        llama.library().ggml_quantize_chunk(
            storage_type("IQ2_XS").number, weights.ctypes.data, out.ctypes.data, 0, 1, 256, None
        )


class OpenFile(Job[int]):
    path: Path

    def run(self, emit: Emit) -> int:
        with llama.Session.open(self.path, Runtime(n_ctx=64, n_ubatch=64, threads=1)) as session:
            session.decode([1, 2], 0)
            return session.n_vocab


class GrowInCgroup(Job[bool]):
    """Allocate and touch `size` bytes in a group that may hold `limit`."""

    limit: int
    size: int

    def run(self, emit: Emit) -> bool:
        group = limits.limit_memory(self.limit)
        if group is None:
            return False
        emit(group.event() | {"name": group.name})
        block = bytearray(self.size)
        emit({"held": len(block)})
        return True


class Left(Record):
    network: str
    error: int | None  # of a connection that was tried afterwards


class LeaveNetwork(Job[Left]):
    def run(self, emit: Emit) -> Left:
        network = limits.isolate_network()
        try:
            socket.create_connection(("192.0.2.1", 9), timeout=2).close()
        except OSError as error:
            return Left(network=network, error=error.errno)
        return Left(network=network, error=None)


class ResidentGrowth(Job[int]):
    def run(self, emit: Emit) -> int:
        before = limits.resident(exact=True)
        block = b"x" * 20_000_000
        after = limits.resident(exact=True)
        return after.anonymous - before.anonymous if block else 0


class CallHome(Job[int]):
    """Try one TCP connection to an address that is no one's, by Python or past it."""

    native: bool

    def run(self, emit: Emit) -> int:
        with socket.socket() as line:
            if not self.native:
                return line.connect_ex(("192.0.2.1", 9))
            address = (2).to_bytes(2, "little") + bytes([0, 9, 192, 0, 2, 1]) + bytes(8)
            return int(CDLL(None).connect(line.fileno(), address, len(address)))


class OpenInVainAndForReal(Job[str]):
    path: Path

    def run(self, emit: Emit) -> str:
        try:
            Path(f"{self.path}.absent").read_text()
        except OSError:
            return self.path.read_text()
        return ""


class Misbehave(Job[str]):
    """In a sandbox: what came of it."""

    how: str
    path: Path

    def run(self, emit: Emit) -> str:
        try:
            if self.how == "read":
                return self.path.read_text()
            self._try()
        except OSError as error:
            return f"{type(error).__name__} {error.errno}"
        return "done"

    def _try(self) -> None:
        if self.how == "fork":
            while True:
                os.fork()
        elif self.how == "exec":
            subprocess.run([sys.executable, "-c", ""], check=True)
        elif self.how == "socket":
            socket.socket()
        elif self.how == "write":
            (self.path / "written").write_text("x")
        elif self.how == "fill":
            with (self.path / "filled").open("wb") as file:
                while True:
                    file.write(bytes(1 << 20))
        elif self.how == "kill":
            os.kill(os.getppid(), signal.SIGTERM)
        elif self.how == "tell":
            (self.path / "here").touch()
            time.sleep(1000)
        elif self.how == "hang":
            while True:
                pass
        elif self.how == "memory":
            held = bytearray(1)
            while True:
                held += bytes(1 << 24)
        elif self.how == "thread":
            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()


class Burn(Job[None]):
    seconds: float

    def run(self, emit: Emit) -> None:
        lockdown.shut(seconds=self.seconds)
        while True:
            pass


_BAD = -1
# System calls, by the C library's name or the kernel's number, with arguments that can do no harm.
CALLS: dict[str, tuple[object, ...]] = {
    "chmod": (None, 0),
    "fchmod": (_BAD, 0),
    "chown": (None, 0, 0),
    "fchownat": (_BAD, None, 0, 0, 0),
    "utimensat": (_BAD, b"x", None, 0),
    "setxattr": (None, None, None, 0, 0),
    "fsetxattr": (_BAD, None, None, 0, 0),
    "link": (None, None),
    "symlink": (None, None),
    "mknod": (None, 0, 0),
    "clock_settime of the kernel": ({"x86_64": 227, "aarch64": 112}, _BAD, None),
    "settimeofday of the kernel": ({"x86_64": 164, "aarch64": 170}, 8, None),
    "adjtimex": (None,),
    "sethostname": (None, 10_000),
    "setdomainname": (None, 10_000),
    "swapoff": (None,),
    "mount": (None, None, None, 0, None),
    "umount2": (None, 0),
    "chroot": (None,),
    "unshare": (0x10000000,),
    "setns": (_BAD, 0),
    "ptrace": (_BAD, 0, None, None),
    "personality": (0xFFFFFFFF,),
    "setuid": (0,),
    "setpriority": (_BAD, 0, 0),
    "sched_setscheduler": (0, _BAD, None),
    "mlockall": (_BAD,),
    "socket": (40, 1, 0),
    "socketpair": (1, 1, 0, None),
    "shmget": (0, 0, 0o1600),
    "msgget": (0, 0o1600),
    "semget": (0, 0, 0o1600),
    "mq_open": (b"/x", 0),
    "memfd_create": (None, 0),
    "eventfd": (0, 0),
    "inotify_init1": (0,),
    "fanotify_init": (0, 0),
    "setitimer": (_BAD, None, None),
    "timer_delete of the kernel": ({"x86_64": 226, "aarch64": 111}, _BAD),
    "timer_settime of the kernel": ({"x86_64": 223, "aarch64": 110}, _BAD, 0, None, None),
    "prctl": (1, 0, 0, 0, 0),
    "fcntl": (0, 8, 1),
    "ioctl": (0, 0x5412, b"x"),
    "kill": (1, 0),
    "process_vm_readv": (1, None, 0, None, 0, 0),
    "io_uring_setup": (425, 0, None),
    "pidfd_open": (434, _BAD, 0),
    "process_madvise": (440, _BAD, None, 0, 0, 0),
    "mount_setattr": (442, _BAD, None, 0, None, 0),
    "openat2": (437, _BAD, None, None, 0),
    "memfd_secret": (447, _BAD),
    "add_key": ({"x86_64": 248, "aarch64": 217}, None, None, None, 0, 0),
    "keyctl": ({"x86_64": 250, "aarch64": 219}, _BAD),
    "bpf": ({"x86_64": 321, "aarch64": 280}, _BAD, None, 0),
    "userfaultfd": ({"x86_64": 323, "aarch64": 282}, _BAD),
    "perf_event_open": ({"x86_64": 298, "aarch64": 241}, None, 0, 0, 0, 0),
}


def _error(name: str, *given: object) -> int:
    """The error number of a call, 0 for none."""
    libc = CDLL(None, use_errno=True)
    call, words = getattr(libc, name, None), given
    if given and (
        isinstance(given[0], dict) or (isinstance(given[0], int) and given[0] > 400 and call is None)
    ):
        number = given[0][platform.machine()] if isinstance(given[0], dict) else given[0]
        call, words = libc.syscall, (c_long(number), *given[1:])
    assert call is not None, name
    set_errno(0)
    # mq_open gives -1 as others do; no call here gives anything that could be meant
    return get_errno() if call(*words) == -1 else 0


class Call(Job[dict[str, int]]):
    """Try everything of CALLS; name -> error number."""

    def run(self, emit: Emit) -> dict[str, int]:
        return {name: _error(name, *words) for name, words in CALLS.items()}


class CallMore(Job[dict[str, int]]):
    """Calls that may be made for the process itself, and those that are not there."""

    def run(self, emit: Emit) -> dict[str, int]:
        space = create_string_buffer(16)
        return {
            "own limits": _error("prlimit", 0, 7, None, space),
            "own name": _error("prctl", 15, b"name", 0, 0, 0),
            "clone3": _error("clone3 of the kernel", {platform.machine(): 435}, None, 0),
            "newer": _error("of tomorrow", {platform.machine(): 999}),
            "another's limits": _error("prlimit", 1, 7, None, space),
            "x32": _error("of x32", {platform.machine(): 0x40000000}),
        }


class Outstay(Job[None]):
    """Block every signal and wait."""

    wall: float

    def run(self, emit: Emit) -> None:
        lockdown.shut(wall=self.wall)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        time.sleep(1000)
