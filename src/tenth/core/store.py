"""The work folder: every stage's result, named after what it was made from, so that a killed run resumes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from tenth.core.errors import OutputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A partial path that becomes `path` if the body succeeds and is removed if it does not.

    Raises OutputError for a full disk or a folder that cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise OutputError(
                f"cannot write {path}: {error.strerror}; free space there or choose another folder"
            ) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


class Store:
    """A folder of finished stages. Two runs with the same inputs share them, at the same time as well: one
    builds, the other waits, and `say` tells why.
    """

    def __init__(self, root: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self.root, self._say = root, say
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the work folder {root}: {error.strerror}; choose another with --work"
            ) from error

    def place(self, name: str, inputs: Mapping[str, object]) -> Path:
        """Where the finished folder of a stage is, or will be; inputs: JSON values."""
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        return self.root / f"{name}-{key}"

    def stage(self, name: str, inputs: Mapping[str, object], build: Callable[[Path], None]) -> Path:
        """The folder of the stage `name` for these inputs (JSON values): built now, or found finished.

        An unfinished one is kept when `build` raises or the process dies, and handed to `build` again, which
        resumes in it.
        """
        final = self.place(name, inputs)
        partial = final.with_name(final.name + ".partial")
        while not final.exists():
            partial.mkdir(exist_ok=True)
            with self.alone(partial):
                if partial.exists():  # another run may have finished it
                    build(partial)
                    partial.replace(final)
        return final

    def shelf(self, name: str, inputs: Mapping[str, object]) -> Path:
        """A folder that is never finished: what is in it stays right, and more may be added."""
        folder = self.place(name, inputs)
        folder.mkdir(exist_ok=True)
        return folder

    @contextmanager
    def alone(self, folder: Path) -> Iterator[None]:
        """No other process works in that folder for the length of the with statement, where the system has
        locks; a killed one lets go.
        """
        held = _open(folder)
        if held is None:
            yield
            return
        import fcntl

        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say(f"waiting for another run, which is at the same work ({folder.name})")
                fcntl.flock(held, fcntl.LOCK_EX)
            except OSError:
                pass  # a file system without locks
            yield
        finally:
            os.close(held)

    def remove(self, stage: Path) -> None:
        """Forget a finished stage and free its space."""
        shutil.rmtree(stage, ignore_errors=True)


def _open(folder: Path) -> int | None:
    """The folder as a descriptor to lock; None where it is gone, or the system has no such locks."""
    try:
        import fcntl  # noqa: F401

        return os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None


def sha256(*files: Path) -> str:
    """SHA-256, hex, of the files' bytes one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as source:
            while block := source.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none of it."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def default_work() -> Path:
    """The user's cache folder for intermediate results: on Linux $XDG_CACHE_HOME/tenth or ~/.cache/tenth."""
    return platformdirs.user_cache_path("tenth")
