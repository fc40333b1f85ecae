"""Every verb is run in a folder full of traps: files named like all that Python or the system may look for.

A trap that is imported, loaded or run leaves a mark. None may.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import traps
from commands import COMMAND
from traps import marks
from waiting import soon

from tenth.core import children
from tenth.core.errors import DeviceError
from tenth.remote import package


@pytest.fixture(scope="module")
def trapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return traps.lay(tmp_path_factory.mktemp("traps") / "folder")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("verb", traps.VERBS)
def test_no_verb_runs_a_file_of_the_folder_that_it_is_called_in(trapped: Path, verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", *COMMAND[1:], *traps.VERBS[verb].split()],
        cwd=trapped,
        env=traps.environment(trapped),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert marks(trapped) == []
    if verb in traps.FAILING:
        assert traps.FAILING[verb] in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_nor_does_the_server(trapped: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", *COMMAND[1:], "serve", ".", "--port", str(free_port()), "--json"],
        cwd=trapped,
        env=traps.environment(trapped),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        assert "url" in json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
    assert marks(trapped) == []


def test_nor_does_pip(trapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trapped)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(package, "_requirements", lambda: ["rich", "numpy>=2"])
    with pytest.raises(DeviceError, match="could not be fetched"):
        package.files(package.Platform("aarch64", (3, 19), 31), tmp_path)
    assert marks(trapped) == []


def test_python_m_tenth_leaves_the_folder(trapped: Path) -> None:
    """`python -m` itself looks there first, for what it needs before our first line; nothing of ours does."""
    code = "import runpy, sys; sys.argv[1:] = ['devices']; runpy.run_module('tenth', run_name='__main__')"
    started = f"import sys; sys.path.insert(0, {str(trapped)!r}); {code}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import runpy; {started}"],
        cwd=trapped,
        env=traps.environment(trapped),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert marks(trapped) == []


def test_the_traps_do_spring(trapped: Path) -> None:
    """The test can fail: a Python that looks in the folder runs them."""
    subprocess.run([sys.executable, "-c", "import colorsys"], cwd=trapped, check=False, capture_output=True)
    soon(lambda: "colorsys" in marks(trapped), "the trap did not spring")
    for file in (trapped / "marks").iterdir():
        file.unlink()


def test_every_module_that_a_run_imports_has_its_trap() -> None:
    code = (
        "import sys; from tenth.pipeline import fit; from tenth.leaderboard import judge;"
        "from tenth.evaluation import evaluate; import xllamacpp, transformers, torch;"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(children.python(code), capture_output=True, text=True, check=True)
    private = {"tenth", "__main__", "__mp_main__", "_sysconfigdata__linux_x86_64-linux-gnu"}
    missing = {name for name in done.stdout.split() if not name.startswith("_")} - traps.names() - private
    made_in_memory = {"google", "mpl_toolkits", "cython_runtime"}  # or namespaces without a file
    assert missing <= made_in_memory, missing
