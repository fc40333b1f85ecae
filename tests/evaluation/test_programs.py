from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import children
import pytest
from waiting import soon

from tenth.core.errors import NativeError
from tenth.evaluation import programs, textual

pytestmark = pytest.mark.skipif(
    bool(programs.trouble()), reason=f"no sandbox on this machine: {programs.trouble()}"
)

GOOD = """
import collections, copy, datetime, decimal, functools, hashlib, heapq, itertools, json, math, random, re
import statistics, string, typing
assert sorted([3, 1, 2]) == [1, 2, 3]
"""
# System V objects, keys, rings, and the wish to outlive the judge.
CALLS = (
    "shmget(0, 4096, 0o1600)",
    "msgget(0, 0o1600)",
    "semget(0, 1, 0o1600)",
    "syscall(425, 8, bytes(256))",
    "syscall(434, 1, 0)",
    "prctl(1, 0, 0, 0, 0)",
)
FAILING = {  # what it tries -> what it meets
    "assert 1 == 2": "AssertionError",
    "def": "SyntaxError",
    "import sys; sys.exit(0)": "SystemExit",
    "import os; os._exit(0)": "ended",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "import ctypes; ctypes.string_at(0)": "ended",
    "x = bytearray(10**9)": "MemoryError",
    "x = []\nwhile True: x.append('a' * 10**6)": "MemoryError",
    "import mmap; mmap.mmap(-1, 10**9)": "OSError",
    "import os\nwhile True: os.fork()": "PermissionError",
    "import threading; threading.Thread(target=print).start()": "RuntimeError",
    "import subprocess; subprocess.run(['/bin/sh', '-c', 'true'])": "PermissionError",
    "open('/tmp/file', 'w').write('a')": "PermissionError",
    "open('/usr/file', 'w')": "PermissionError",
    "import os; os.write(os.memfd_create('x'), b'a')": "PermissionError",
    "import os; os.mkdir('/tmp/folder')": "PermissionError",
    "import os; os.remove(os.__file__)": "PermissionError",
    "open('/etc/passwd')": "FileNotFoundError",
    "open('/proc/self/status')": "FileNotFoundError",
    "import socket; socket.create_connection(('127.0.0.1', 22))": "PermissionError",
    "import socket as s; s.socket(s.AF_INET, s.SOCK_DGRAM).connect(('192.0.2.1', 9))": "PermissionError",
    "import os, signal; os.kill(-1, signal.SIGKILL)": "PermissionError",
    "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0": "AssertionError",
    "import ctypes; assert ctypes.CDLL(None).setresuid(0, 0, 0) == 0": "AssertionError",
    "import socket; socket.socket(40, socket.SOCK_STREAM)": "PermissionError",  # AF_VSOCK
    "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)": "PermissionError",
    "import socket; socket.socketpair()": "PermissionError",
    "import signal; signal.setitimer(signal.ITIMER_REAL, 100)": "itimer_error",
    "import os; os.chmod('/tmp', 0)": "PermissionError",
    "import os; os.utime('/tmp')": "PermissionError",
    "import os; os.setxattr('/tmp', 'user.a', b'')": "PermissionError",
    "import time; time.clock_settime(0, 0)": "PermissionError",
    "import resource; resource.prlimit(2, resource.RLIMIT_CPU)": "PermissionError",
    **{f"import ctypes; assert ctypes.CDLL(None).{call} >= 0": "AssertionError" for call in CALLS},
    "input()": "Error",
    "print('a' * 10**6); 1 / 0": "ZeroDivisionError",
}


def test_an_honest_program_passes() -> None:
    assert programs.run_program(GOOD) == programs.ProgramResult(True, "")
    assert programs.run_program("import os; assert os.getuid() == 65534 and os.listdir('/tmp') == []").passed


@pytest.mark.parametrize("program", FAILING)
def test_a_hostile_or_wrong_program_does_not(program: str) -> None:
    ran = programs.run_program(program, seconds=5)
    assert not ran.passed
    assert FAILING[program] in ran.reason


@pytest.mark.parametrize(
    "program", ["while True: pass", "import time; time.sleep(1000)", "while 1: print(1)"]
)
def test_time_runs_out(program: str) -> None:
    assert not programs.run_program(program, seconds=0.5).passed


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    secret = tmp_path / "answers.txt"
    secret.write_text("42")
    mounts = Path("/proc/self/mounts").read_text()
    assert not programs.run_program(f"open({str(secret)!r})").passed
    assert not programs.run_program(f"import shutil; shutil.rmtree({str(tmp_path)!r}); 1 / 0").passed
    assert secret.read_text() == "42"
    programs.run_program("import time; time.sleep(1000)", seconds=0.3)
    assert Path("/proc/self/mounts").read_text() == mounts
    alive = [p for p in Path("/proc").glob("[0-9]*") if _parent(p) == os.getpid() and _cell(p)]
    assert alive == []


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _cell(process: Path) -> bool:
    try:
        return b"_cell.py" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def test_it_dies_with_the_judge() -> None:
    """Killed without warning, the judge cannot end anything itself."""
    words = (
        "from tenth.evaluation.programs import run_program; run_program('import time; time.sleep(1000)', 900)"
    )
    judge = subprocess.Popen([sys.executable, "-P", "-c", words])
    soon(lambda: len(children.below(judge.pid)) == 2, "the cell and the program are never there")
    below = children.below(judge.pid)
    judge.kill()
    judge.wait()
    soon(lambda: not any(map(children.alive, below)), "a program outlived the judge")


def test_without_a_sandbox_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "trouble", lambda: "this system has no namespaces")
    with pytest.raises(NativeError, match=r"HumanEval runs programs.*no namespaces"):
        textual.scorer("program")


def test_humaneval_items() -> None:
    doc = {
        "prompt": 'def double(x):\n    """Twice."""\n',
        "entry_point": "double",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    }
    assert textual.passes(doc, "    return 2 * x\n") == 1.0
    assert textual.passes(doc, "    return x\n") == 0.0
    assert textual.passes(doc, "    return 2 *") == 0.0


def test_words_in_common() -> None:
    doc = {"answers": ["The Eiffel Tower", "Tour Eiffel"]}
    assert textual.overlap(doc, "the eiffel tower.") == 1.0
    assert textual.overlap(doc, "Eiffel") == pytest.approx(2 / 3)
    assert textual.overlap(doc, "in London") == 0.0
    assert textual.overlap({"answers": []}, "x") == 0.0
