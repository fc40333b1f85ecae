"""Children that are forked from a process with imports are like any other."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import psutil
import pytest
from waiting import soon

from tenth.core import forkserver, jobs
from tenth.core.jobs import Emit, Job, Surroundings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks safely")
HEAVY = ("torch",)


class Multiply(Job[list[float]]):
    """A product whose sums depend on the number of threads, and who computed it."""

    threads: int = 1
    imported: tuple[str, ...] = HEAVY

    @property
    def imports(self) -> tuple[str, ...]:
        return self.imported

    def run(self, emit: Emit) -> list[float]:
        imported, word = "torch" in sys.modules, os.environ.get("WORD")
        import torch

        print("noise", file=sys.stderr)
        emit({"pid": os.getpid(), "parent": os.getppid(), "imported": imported, "word": word})
        a = torch.randn(700, 900, generator=torch.Generator().manual_seed(0))
        return [float(x) for x in (a @ a.T).softmax(-1).flatten()[:5000]]


class Waits(Job[None]):
    """Never ends by itself."""

    @property
    def imports(self) -> tuple[str, ...]:
        return HEAVY

    def run(self, emit: Emit) -> None:
        emit({"pid": os.getpid()})
        signal.pause()


@pytest.fixture(autouse=True)
def _no_servers_before_or_after() -> object:
    forkserver.close_all()
    yield
    forkserver.close_all()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_computes_the_same_bits(threads: int) -> None:
    heard: list[jobs.Event] = []
    forked = [jobs.run(Multiply(threads=threads), heard.append) for _ in range(2)]
    fresh = jobs.run(Multiply(threads=threads, imported=()), heard.append)
    assert forked == [fresh, fresh]
    assert [event["imported"] for event in heard] == [True, True, False]
    assert heard[0]["parent"] == heard[1]["parent"] != os.getpid()
    assert len({event["pid"] for event in heard}) == 3


def test_it_has_the_environment_of_now_and_its_own_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[jobs.Event] = []
    jobs.run(Multiply(), heard.append)
    monkeypatch.setenv("WORD", "later")
    jobs.run(Multiply(), heard.append, Surroundings(log=tmp_path / "log"))
    assert [event["word"] for event in heard] == [None, "later"]
    assert heard[0]["parent"] == heard[1]["parent"]
    assert (tmp_path / "log").read_text().splitlines() == ["noise"]


def test_a_child_that_is_killed_dies_alone() -> None:
    with pytest.raises(jobs.ChildDied) as died:
        jobs.run(Waits(), lambda event: os.kill(event["pid"], signal.SIGTERM))
    assert died.value.signal == signal.SIGTERM
    heard: list[jobs.Event] = []
    jobs.run(Multiply(), heard.append)
    assert heard[0]["imported"]


def test_time_that_is_up_ends_it() -> None:
    jobs.run(Multiply())  # the imports are no part of its time
    with pytest.raises(jobs.ChildDied) as died:
        jobs.run(Waits(), around=Surroundings(timeout=0.3))
    assert died.value.timed_out


def test_a_server_that_is_killed_takes_its_child_along_and_is_replaced() -> None:
    children: list[int] = []

    def kill_server(event: jobs.Event) -> None:
        children.append(event["pid"])
        os.kill(psutil.Process(event["pid"]).ppid(), signal.SIGKILL)

    with pytest.raises(jobs.ChildDied) as died:
        jobs.run(Waits(), kill_server)
    assert died.value.killed
    soon(lambda: not psutil.pid_exists(children[0]), "the child to end with its server")
    assert len(jobs.run(Multiply())) == 5000


def test_whatever_ends_the_run_ends_the_child() -> None:
    children: list[int] = []

    def interrupt(event: jobs.Event) -> None:
        children.append(event["pid"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run(Waits(), interrupt)
    soon(lambda: not psutil.pid_exists(children[0]), "the child to end")


def test_another_thread_starts_from_nothing() -> None:
    heard: list[jobs.Event] = []
    thread = threading.Thread(target=lambda: jobs.run(Multiply(), heard.append))
    thread.start()
    thread.join()
    assert not heard[0]["imported"]
    assert heard[0]["parent"] == os.getpid()


def test_few_servers_are_kept() -> None:
    for threads in (1, 2, 3):
        jobs.run(Multiply(threads=threads))
    ours = [child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())]
    assert len(ours) == forkserver.MOST
