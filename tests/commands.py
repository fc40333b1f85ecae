"""The command line in processes of its own, for the tests that need a whole run."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

COMMAND = [sys.executable, "-c", "from tenth.__main__ import main; main()"]
MARK = "TENTH_TEST_MARK"


class Killed(BaseException):
    """A process in the tests' own ends here."""


@dataclass
class Shell:
    """Runs commands with an empty home; every process it starts, and theirs, carries its mark."""

    home: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def environment(self) -> dict[str, str]:
        offline = {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(self.home / "cache"), "COLUMNS": "100"}
        return {**os.environ, **offline, MARK: self.mark}

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, words)],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env=self.environment,
            cwd=self.home,
        )

    def start(self, *words: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=self.home,
        )

    def running(self) -> list[int]:
        """Processes of this shell that are alive, zombies not counted (Linux)."""
        return running(self.mark)


def running(mark: str) -> list[int]:
    """Processes with that mark in their environment that are alive, zombies not counted (Linux)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found
