"""Attacks on what shuts strangers' files and programs in: system calls, files, greed, outliving the judge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import acts
import children

from attacks.report import attack
from tenth.core import jobs
from tenth.core.errors import NativeError
from tenth.evaluation import programs
from tenth.runtime import sandbox

LIMITS = sandbox.Limits(memory=150_000_000, seconds=10, file_bytes=1 << 20)
C = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); "
# What a program may not: it would end without an error.
PROGRAMS = {
    "fork": "import os; os.fork()",
    "a program": "import os; os.execv('/bin/true', ['true'])",
    "a thread": "import threading; threading.Thread(target=print).start()",
    "a socket": "import socket; socket.socket()",
    "AF_VSOCK": "import socket; socket.socket(40, 1)",
    "AF_NETLINK": "import socket; socket.socket(16, 3)",
    "a file": "open('/tmp/a', 'w')",
    "a memory file": "import os; os.memfd_create('a')",
    "the host's files": "open('/etc/hostname')",
    "the host's processes": "import os; os.listdir('/proc/1')",
    "shared memory": C + "assert libc.shmget(0, 4096, 0o1600) >= 0",
    "a message queue": C + "assert libc.msgget(0, 0o1600) >= 0",
    "semaphores": C + "assert libc.semget(0, 1, 0o1600) >= 0",
    "io_uring": C + "assert libc.syscall(425, 8, bytes(256)) >= 0",
    "keys": C + "assert libc.syscall(248, b'user', b'a', b'b', 1, -3) >= 0",
    "namespaces": C + "assert libc.unshare(0x10000000) == 0",
    "ptrace": C + "assert libc.ptrace(0, 0, 0, 0) == 0",
    "outliving": C + "assert libc.prctl(1, 0, 0, 0, 0) == 0",
    "the clock": "import time; time.clock_settime(0, 0)",
    "root": C + "assert libc.setresuid(0, 0, 0) == 0",
    "memory": "x = bytearray(10**9)",
    "time": "while True: pass",
    "sleep": "import time; time.sleep(100)",
}


def _programs() -> dict[str, bool]:
    return {name: not programs.run_program(program, seconds=2).passed for name, program in PROGRAMS.items()}


def _calls() -> dict[str, bool]:
    box = sandbox.Sandbox(LIMITS)
    return {name: error in (1, 38) for name, error in box.run(acts.Call()).items()}


def _acts(folder: Path) -> dict[str, bool]:
    outcomes = {}
    for how in ("fork", "exec", "socket", "kill", "write", "read", "hang", "memory"):
        path = Path("/etc/hostname") if how == "read" else folder
        try:
            said = sandbox.Sandbox(LIMITS).run(acts.Misbehave(how=how, path=path))
            outcomes[how] = said.startswith("PermissionError")
        except NativeError:
            outcomes[how] = True
    return outcomes


def _outliving(folder: Path) -> dict[str, bool]:
    """The judge is killed, or stopped for ever; what it had started ends."""
    child = (
        "import pathlib, acts; from tenth.runtime import sandbox;"
        f"here = pathlib.Path({str(folder)!r});"
        "sandbox.Sandbox(sandbox.Limits(memory=10**9, seconds=SECONDS)).run("
        "acts.Misbehave(how='tell', path=here), writable=here)"
    )
    program = (
        "from tenth.evaluation.programs import run_program as r; r('import time; time.sleep(999)', SECONDS)"
    )
    outcomes = {}
    for what, words in (("a child", child), ("a program", program)):
        for how, seconds in ((signal.SIGKILL, 900), (signal.SIGSTOP, 2)):
            (folder / "here").unlink(missing_ok=True)
            judge = subprocess.Popen(
                [sys.executable, "-P", "-c", words.replace("SECONDS", str(seconds))],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stderr=subprocess.DEVNULL,
            )
            _wait(partial(_has_below, judge.pid, 1 if what == "a child" else 2), 30)
            if what == "a child":
                _wait((folder / "here").exists, 30)
            below = children.below(judge.pid)
            judge.send_signal(how)
            gone = _wait(partial(_ended, below), 30)
            outcomes[f"{what}, {how.name}"] = bool(below) and gone
            judge.kill()
            judge.wait()
    try:
        jobs.run(acts.Outstay(wall=1), around=jobs.Surroundings(timeout=30))
        outcomes["all signals blocked"] = False
    except jobs.ChildDied as death:
        outcomes["all signals blocked"] = death.signal == signal.SIGKILL and not death.timed_out
    return outcomes


def _has_below(pid: int, count: int) -> bool:
    return len(children.below(pid)) >= count


def _ended(pids: Sequence[int]) -> bool:
    return not any(map(children.alive, pids))


def _wait(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


def attacks() -> Iterator[dict[str, object]]:
    """Some minute."""
    with tempfile.TemporaryDirectory() as folder:
        yield attack("sandbox: system calls", _calls())
        yield attack("sandbox: files, processes, greed", _acts(Path(folder)))
        yield attack("programs: whatever is not Python's own", _programs())
        yield attack("sandbox and programs: outliving the judge or the time", _outliving(Path(folder)))


if __name__ == "__main__":
    for line in attacks():
        print(json.dumps(line))
