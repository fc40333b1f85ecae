from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import acts
import pytest
from waiting import soon

from tenth.core.errors import BudgetError, InputError, NativeError
from tenth.core.jobs import ChildDied, Surroundings, run


def test_answer_events_and_noise(tmp_path: Path) -> None:
    log, seen = tmp_path / "log.txt", []
    job = acts.Echo(value=["é", 1.5], threads=3)
    result = run(job, seen.append, Surroundings(log, {"EXTRA": "yes"}))
    assert result == acts.Echoed(value=["é", 1.5], openmp="3", extra="yes")
    assert seen == [{"step": 1}, {"step": 2}]
    assert "noise from Python" in log.read_text()
    assert "noise from native code" in log.read_text()


def test_errors_keep_their_class() -> None:
    with pytest.raises(InputError, match=r"^no such thing$"):
        run(acts.Refuse(kind="input"))
    with pytest.raises(BudgetError) as caught:
        run(acts.Refuse(kind="budget"))
    assert caught.value.smallest == {"total": 3}


def test_a_mistake_is_one_line_here_and_a_traceback_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with pytest.raises(NativeError, match=r"acts:Refuse.*ZeroDivisionError: a mistake of ours") as caught:
        run(acts.Refuse(kind="other"), around=Surroundings(log))
    assert "\n" not in str(caught.value)
    assert "Traceback" in log.read_text()
    with pytest.raises(NativeError, match="object"):
        run(acts.Unspeakable())


def test_an_abort_is_named_with_the_last_words() -> None:
    with pytest.raises(ChildDied, match=r"SIGABRT.*GGML_ASSERT\(reason\) failed") as caught:
        run(acts.Abort())
    assert caught.value.signal == signal.SIGABRT
    with pytest.raises(ChildDied, match="status 7"):
        run(acts.Leave())


def test_a_real_assert_of_ggml() -> None:
    with pytest.raises(ChildDied, match=r"SIGABRT.*GGML_ASSERT\(imatrix"):
        run(acts.EncodeWithoutImportance())


def test_last_words_are_this_childs(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("words of an earlier child\n")
    with pytest.raises(ChildDied) as caught:
        run(acts.Leave(), around=Surroundings(log))
    assert "earlier child" not in str(caught.value)


def test_timeout() -> None:
    begin = time.monotonic()
    with pytest.raises(ChildDied, match=r"ended after 0\.5 s") as caught:
        run(acts.Hang(), around=Surroundings(timeout=0.5))
    assert caught.value.timed_out
    assert time.monotonic() - begin < 20


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_interrupting_the_parent_ends_the_child() -> None:
    pids = []

    def stop(event: dict[str, int]) -> None:
        pids.append(event["pid"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(acts.Hang(), stop)
    soon(lambda: _gone(pids[0]), "the child lives on", 5)


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
def test_the_child_dies_with_a_killed_parent() -> None:
    script = """
import acts
from tenth.core import jobs
jobs.run(acts.Hang(), lambda event: print(event["pid"], flush=True))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    # An orphan may stay a zombie where nothing reaps it; then its state says so.
    stat = Path(f"/proc/{pid}/stat")

    def dead() -> bool:
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"

    soon(dead, "the child outlived its parent", 5)


def test_no_core_dumps() -> None:
    assert run(acts.CoreLimit()) == 0
