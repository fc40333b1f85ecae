"""The offline proof on real child processes: what calls out is counted, and by what."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import acts
import pytest
import tiny_gguf

from tenth.core.records import Runtime
from tenth.measurement.check import Answer
from tenth.measurement.offline import enclose
from tenth.runtime import limits

RUNTIME = Runtime(n_ctx=64, n_ubatch=16, threads=1)
traced = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
linux = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without strace."""
    monkeypatch.setenv("PATH", str(tmp_path))


@traced
@pytest.mark.parametrize("native", [False, True])
def test_strace_counts_a_connection_of_any_code(tmp_path: Path, native: bool) -> None:
    result, seen = enclose(acts.CallHome(native=native), tmp_path)
    assert result != 0
    assert seen.connections == 1
    assert "192.0.2.1" in seen.attempts[0]
    assert seen.method.startswith("strace")
    assert seen.blind == ""


@linux
@pytest.mark.parametrize("native", [False, True])
@pytest.mark.usefixtures("blind")
def test_without_strace_the_kernels_counters_tell(tmp_path: Path, native: bool) -> None:
    _, seen = enclose(acts.CallHome(native=native), tmp_path)
    assert "strace would see" in seen.blind or "native code's connections" in seen.blind
    if seen.network == limits.ISOLATED:
        assert seen.connections == 1
    else:
        assert seen.connections == (0 if native else 1)


def test_files_are_told_apart(tmp_path: Path) -> None:
    inside, outside = tmp_path / "bundle" / "inside.txt", tmp_path / "outside.txt"
    inside.parent.mkdir()
    for file in (inside, outside):
        file.write_text("x")
        _, seen = enclose(acts.OpenInVainAndForReal(path=file), inside.parent)
        expected = (["inside.txt"], []) if file == inside else ([], [str(outside)])
        assert (seen.inside, seen.outside) == expected
        assert seen.connections == 0


def answers(folder: Path) -> None:
    gguf = tiny_gguf.write(folder / "model.gguf")
    answer, seen = enclose(Answer(gguf=gguf, runtime=RUNTIME, text="a"), folder)
    assert len(answer.tokens) == 32
    assert seen.connections == 0
    assert seen.attempts == []
    assert seen.inside == ["model.gguf"]
    assert seen.outside == []
    assert seen.libraries > 0


@traced
def test_a_model_answers_without_calling_out(tmp_path: Path) -> None:
    answers(tmp_path)


@pytest.mark.usefixtures("blind")
def test_and_so_it_is_seen_without_strace(tmp_path: Path) -> None:
    answers(tmp_path)
