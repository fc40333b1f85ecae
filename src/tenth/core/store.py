"""The work folder: every stage's result, named after what it was made from, so that a killed run resumes.

Every folder in it has a list of its files and their digests (core/digests.py). It is checked once a run, when
the folder is first used; what is damaged is removed and made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from tenth.core import digests
from tenth.core.errors import OutputError

_SCRATCH = ".tenth-scratch-"  # begins the names of temporary folders: no person calls one so
_PATIENCE = 10.0  # seconds for what was killed to let go of its files
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENAMETOOLONG}


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A partial path that becomes `path` if the body succeeds and is removed if it does not.

    In a folder that has a list of its files (core/digests.py) it is listed. Raises OutputError for a full
    disk or a folder that cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with _turn(partial):
            try:
                yield partial
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        digests.note(path)
    except OSError as error:
        if error.errno in _UNWRITABLE:
            raise OutputError(
                f"cannot write {path}: {error.strerror}; free space there or choose another folder"
            ) from error
        raise


@contextmanager
def claimed(folder: Path, taken: str) -> Iterator[None]:
    """No other process claims that folder for the length of the with statement; a killed one lets go.

    OutputError with the words of `taken`, at once, where another one has. Where the system or the file system
    has no locks, nobody is kept out.
    """

    def refuse() -> None:
        raise OutputError(taken)

    with _locked(folder, refuse):
        yield


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the system's temporary one for the length of the with statement.

    Those of killed runs are removed first: they are told from others by their names, and by nobody's holding
    them.
    """
    root = Path(tempfile.gettempdir())
    for left in root.glob(f"{_SCRATCH}*"):
        with suppress(OSError, OutputError):
            ours = not left.is_symlink() and left.is_dir() and left.stat().st_uid == os.getuid()
            if ours:
                with claimed(left, "in use"):
                    shutil.rmtree(left, ignore_errors=True)
    # It takes the name by which it is found only when it is held.
    folder = Path(tempfile.mkdtemp(prefix=f".new{_SCRATCH}"))
    try:
        with claimed(folder, "in use"):
            folder = folder.rename(folder.with_name(folder.name.removeprefix(".new")))
            yield folder
    finally:
        end = time.monotonic() + _PATIENCE
        shutil.rmtree(folder, ignore_errors=True)
        while folder.exists() and time.monotonic() < end:  # what was started there may write to the last
            time.sleep(0.01)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _turn(partial: Path) -> Iterator[None]:
    """Another process that writes the same file waits until this one has, where the system has locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    while True:
        held = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(held, fcntl.LOCK_EX)
            if not _is(held, partial):  # it has become the file of the one before
                continue
            yield
            return
        finally:
            os.close(held)


def _is(held: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(held), path.stat())
    except OSError:
        return False


class Store:
    """A folder of finished stages. Two runs with the same inputs share them, at the same time as well: one
    builds, the other waits, and `say` tells why.
    """

    def __init__(self, root: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self.root, self._say = root, say
        self._whole: set[Path] = set()  # folders that were checked, or made, by this run
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the work folder {root}: {error.strerror}; choose another with --work"
            ) from error
        for gone in root.glob("*.gone"):  # what a killed run was removing
            shutil.rmtree(gone, ignore_errors=True)

    def place(self, name: str, inputs: Mapping[str, object]) -> Path:
        """Where the finished folder of a stage is, or will be; inputs: JSON values."""
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        return self.root / f"{name}-{key}"

    def stage(self, name: str, inputs: Mapping[str, object], build: Callable[[Path], None]) -> Path:
        """The folder of the stage `name` for these inputs (JSON values): built now, or found finished.

        An unfinished one is kept when `build` raises or the process dies, and handed to `build` again, which
        resumes in it: with the files that were written whole, and no others. A damaged one is made again.
        """
        final = self.place(name, inputs)
        partial = final.with_name(final.name + ".partial")
        while not self._usable(final):
            digests.begin(partial)
            with self.alone(partial):
                if not partial.exists():  # another run has finished it
                    continue
                if final.exists():  # and this one came a moment too late
                    self.remove(partial)
                    continue
                self._resume(partial, final.name)
                build(partial)
                digests.finish(partial)
                partial.replace(final)
                self._whole.add(final)
        return final

    def shelf(self, name: str, inputs: Mapping[str, object]) -> Path:
        """A folder that is never finished: what is in it stays right, and more may be added.

        Its files must not need each other, since those that are damaged are removed, one by one.
        """
        folder = self.place(name, inputs)
        digests.begin(folder)
        if folder not in self._whole:
            with self.alone(folder):
                if damaged := digests.repair(folder):
                    others = f" and {len(damaged) - 1} more" if damaged[1:] else ""
                    self._say(f"{folder.name} was damaged ({damaged[0]}{others}): that is made again")
            self._whole.add(folder)
        return folder

    def _usable(self, final: Path) -> bool:
        """Whether a finished folder is there, as it was made; a damaged one is removed, which is said."""
        if final in self._whole:
            return True
        if not final.exists():
            return False
        try:
            digests.check(final)
        except digests.Damage as damage:
            self._say(f"{final.name} was damaged ({damage}): it is made again")
            self.remove(final)
            return False
        self._whole.add(final)
        return True

    def _resume(self, partial: Path, name: str) -> None:
        """Leave in an unfinished folder what was written whole; nothing where any of that was damaged."""
        try:
            digests.resume(partial)
        except digests.Damage as damage:
            self._say(f"what a stopped run left of {name} was damaged ({damage}): it is made again")
            digests.empty(partial)
            digests.begin(partial)

    @contextmanager
    def alone(self, folder: Path) -> Iterator[None]:
        """No other process works in that folder for the length of the with statement, where the system has
        locks; a killed one lets go.
        """
        waiting = f"waiting for another run, which is at the same work ({folder.name})"
        with _locked(folder, lambda: self._say(waiting)):
            yield

    def remove(self, stage: Path) -> None:
        """Forget a finished stage and free its space."""
        self._whole.discard(stage)
        gone = stage.with_name(f"{stage.name}.gone")  # at once, so that nobody finds half of it
        with suppress(OSError):
            shutil.rmtree(gone, ignore_errors=True)
            stage.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def _locked(folder: Path, busy: Callable[[], None]) -> Iterator[None]:
    """No other process locks that folder for the length of the with statement, where the system has locks.

    busy: called where another one has; what it raises is raised, else the folder is waited for.
    """
    held = _open(folder)
    if held is None:
        yield
        return
    import fcntl

    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy()
                fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


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
