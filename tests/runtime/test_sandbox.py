from __future__ import annotations

import sys
from pathlib import Path

import acts
import pytest

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
    assert act("write", tmp_path) == "PermissionError 13"
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
