"""How other programs are started: never from the current folder, whose files may be a stranger's.

Python puts the current folder first on its import path for -c and -m, so that a file json.py that lies in a
downloaded model's folder would run. Every Python that is started here gets -P, and PYTHONSAFEPATH for those
that it starts itself. Empty and relative entries of PATH, PYTHONPATH and LD_LIBRARY_PATH mean the current
folder, too: a child gets these variables without them, and programs are looked up without them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

# Lists of folders in which code is looked for; an empty entry is the current folder.
_SEARCHED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
_PR_SET_PDEATHSIG = 1


def python(code: str) -> list[str]:
    """The command that runs a line of Python, with this interpreter, that imports nothing from the folder."""
    return [sys.executable, "-P", "-c", code]


def module(name: str, *words: str) -> list[str]:
    """As `python`, for the module of that name."""
    return [sys.executable, "-P", "-m", name, *words]


def environment() -> dict[str, str]:
    """This process's environment for a child, with absolute folders only where code is looked for."""
    searched = {name: _absolute(os.environ[name]) for name in _SEARCHED if name in os.environ}
    kept = {name: value for name, value in os.environ.items() if name not in searched}
    return kept | {name: value for name, value in searched.items() if value}


def python_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """As `environment`, for a Python that imports what this one can, and `extra` on top."""
    safe = {"PYTHONPATH": _absolute(os.pathsep.join(sys.path)), "PYTHONSAFEPATH": "1"}
    return environment() | safe | dict(extra or {})


def program(name: str) -> str | None:
    """The absolute path of a program, looked up without the current folder; None where there is none."""
    return shutil.which(name, path=_absolute(os.environ.get("PATH", os.defpath)))


def _absolute(folders: str) -> str:
    return os.pathsep.join(folder for folder in folders.split(os.pathsep) if Path(folder).is_absolute())


def restrain() -> None:
    """For a child that holds native code: no core dumps; on Linux, die with the parent's thread."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
