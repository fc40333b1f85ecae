from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import acts
import children
import pytest
from waiting import soon

from tenth.core.jobs import ChildDied, Surroundings, run
from tenth.runtime import sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="seccomp and Landlock are Linux's")
LIMITS = sandbox.Limits(memory=150_000_000, seconds=20, file_bytes=3 << 20)


def act(how: str, path: Path, limits: sandbox.Limits = LIMITS, writable: Path | None = None) -> str:
    log = path.parent / "log.txt" if path.is_file() else path / "log.txt"
    isolation = sandbox.Isolation()
    box = sandbox.Sandbox(limits, isolation, log)
    outcome = box.run(acts.Misbehave(how=how, path=path), writable=writable)
    if any("not shut in" in line for line in isolation.lines):
        pytest.skip(f"this kernel lacks a guard: {isolation.lines}")
    return outcome


@pytest.mark.parametrize("how", ["fork", "exec", "socket", "kill"])
def test_no_process_program_socket_or_signal(tmp_path: Path, how: str) -> None:
    assert act(how, tmp_path) == "PermissionError 1"


def test_threads_are_allowed(tmp_path: Path) -> None:
    assert act("thread", tmp_path) == "done"


def test_nothing_is_written(tmp_path: Path) -> None:
    assert act("write", tmp_path) == "PermissionError 1"  # the call
    private = tmp_path / "private"
    private.mkdir()
    assert act("write", tmp_path, writable=private) == "PermissionError 13"  # the place
    assert not (tmp_path / "written").exists()


def test_nothing_strange_is_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("items of the next round")
    assert act("read", secret) == "PermissionError 13"


def test_the_private_folder_is_written_up_to_a_limit(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    assert act("write", private, writable=private) == "done"
    assert act("fill", private, writable=private) == "OSError 27"
    assert (private / "filled").stat().st_size == 3 << 20


def test_a_hang_is_ended(tmp_path: Path) -> None:
    with pytest.raises(ChildDied, match="ended after 3 s"):
        act("hang", tmp_path, sandbox.Limits(memory=150_000_000, seconds=3))


def test_processor_time_is_limited() -> None:
    with pytest.raises(ChildDied, match="SIGXCPU"):
        run(acts.Burn(seconds=1), around=Surroundings(timeout=60))


@pytest.mark.parametrize("cgroup", [True, False])
def test_greed_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: bool) -> None:
    if not cgroup:
        monkeypatch.setenv("TENTH_NO_CGROUP", "1")
    with pytest.raises(sandbox.GreedError, match="150,000,000"):
        act("memory", tmp_path)


def test_calls_that_nobody_needs_are_refused(tmp_path: Path) -> None:
    """Even to root. The arguments are wrong: without the list the errors would be EFAULT, EINVAL or EBADF."""
    isolation = sandbox.Isolation()
    errors = sandbox.Sandbox(LIMITS, isolation).run(acts.Call())
    if any("not shut in" in line for line in isolation.lines):
        pytest.skip(f"this kernel lacks a guard: {isolation.lines}")
    assert errors.keys() == acts.CALLS.keys()
    assert {name for name, error in errors.items() if error != 1} == set()


def test_calls_of_other_processes_and_newer_kernels(tmp_path: Path) -> None:
    isolation = sandbox.Isolation()
    errors = sandbox.Sandbox(LIMITS, isolation).run(acts.CallMore())
    if any("not shut in" in line for line in isolation.lines):
        pytest.skip(f"this kernel lacks a guard: {isolation.lines}")
    assert errors == {
        "own limits": 0,
        "own name": 0,
        "clone3": 38,
        "newer": 38,
        "another's limits": 1,
        "x32": 1,
    }


def test_the_kernel_ends_it_in_time() -> None:
    begin = time.monotonic()
    with pytest.raises(ChildDied, match="SIGKILL"):
        run(acts.Outstay(wall=1), around=Surroundings(timeout=60))
    assert time.monotonic() - begin < 30


def test_it_dies_with_the_judge(tmp_path: Path) -> None:
    words = (
        "import pathlib, acts; from tenth.runtime import sandbox;"
        "box = sandbox.Sandbox(sandbox.Limits(memory=10**9, seconds=900));"
        f"box.run(acts.Misbehave(how='tell', path=pathlib.Path({str(tmp_path)!r})),"
        f" writable=pathlib.Path({str(tmp_path)!r}))"
    )
    judge = subprocess.Popen(
        [sys.executable, "-P", "-c", words], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    soon((tmp_path / "here").exists, "the child never comes so far")
    below = children.below(judge.pid)
    assert below
    judge.kill()
    judge.wait()
    soon(lambda: not any(map(children.alive, below)), "a child outlived the judge")
