"""What lies in a kept folder, and what tells that it is still the same: size and SHA-256 of every file.

The list is a file of the folder, digests.jsonl, a line of JSON for each file that was written whole:

    {"file": "stats-0001.npz", "size": 1234, "sha256": "..."}    of lines on one file the last counts
    {"file": "hidden-3.f32", "size": -1, "sha256": ""}           the file was removed

While a folder is being filled the list grows with it, so that what a killed run leaves can be told from what
was damaged; a finished folder has one line for every file, and nothing else may lie there.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import Field, ValidationError

from tenth.core.records import Record

LIST = "digests.jsonl"
REMOVED = -1
_DEEPEST = 2  # folders of a kept one, and files in those
_BLOCK = 1 << 22  # bytes that are read at a time
_THREADS = 4


class Listed(Record):
    """A file, as a line of the list has it."""

    file: str = Field(pattern=r"^[^/\x00]+(/[^/\x00]+)*$")  # below the folder
    size: int = Field(ge=REMOVED)  # bytes; REMOVED: it is no longer there
    sha256: str  # of so many bytes, hex


class Damage(Exception):  # noqa: N818
    """What is wrong with a folder, in words."""


def begin(folder: Path) -> None:
    """Make a folder, if need be, whose files are listed as they are written."""
    folder.mkdir(exist_ok=True)
    (folder / LIST).touch()


def note(path: Path) -> None:
    """List a file as it is now, if it lies in a folder that has a list."""
    folder = _listed(path)
    if folder is not None:
        _append(folder, _entry(folder, path))


class Growing:
    """Lists a file that is written piece by piece, as far as it goes; every piece is read once."""

    def __init__(self, path: Path) -> None:
        self._path, self._folder = path, _listed(path)
        self._digest, self._size = hashlib.sha256(), 0

    def note(self) -> None:
        """List it as it is now; what was written must have left the program."""
        if self._folder is None:
            return
        with self._path.open("rb") as file:
            file.seek(self._size)
            while block := file.read(_BLOCK):
                self._digest.update(block)
                self._size += len(block)
        name, digest = _name(self._folder, self._path), self._digest.hexdigest()
        _append(self._folder, Listed(file=name, size=self._size, sha256=digest))


def forget(path: Path) -> None:
    """Remove a file, or a folder with its files, and list that."""
    folder = _listed(path)
    gone = _files(path) if path.is_dir() else [path] if path.exists() else []
    if folder is not None:
        for file in gone:
            _append(folder, Listed(file=_name(folder, file), size=REMOVED, sha256=""))
    remove(path)


def finish(folder: Path) -> None:
    """List every file of a folder and nothing else. What was listed already is not read again.

    Folders in it that hold nothing are removed.
    """
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
    known = _entries(folder)
    left = [
        path
        for path in _files(folder)
        if known.get(name := _name(folder, path)) is None or known[name].size != path.stat().st_size
    ]
    with ThreadPoolExecutor(_THREADS) as pool:
        known |= {entry.file: entry for entry in pool.map(lambda path: _entry(folder, path), left)}
    _write(folder, [known[_name(folder, path)] for path in _files(folder)])


def check(folder: Path) -> None:
    """Read every file of a finished folder once; Damage where one is not as it was listed."""
    known = _entries(folder)
    files = {_name(folder, path): path for path in _files(folder)}
    if strange := sorted(files.keys() - known.keys()):
        raise Damage(f"{strange[0]} does not belong there")
    if lost := sorted(known.keys() - files.keys()):
        raise Damage(f"{lost[0]} is missing")
    for name, path in files.items():
        if path.lstat().st_size != known[name].size:
            raise Damage(f"{name} has another size")
    _compare(folder, known)


def resume(folder: Path) -> None:
    """Bring a folder that a killed run left to what was listed: what was not written whole is removed.

    Damage where something listed is not as it was; the folder is then as it was found.
    """
    if not (folder / LIST).exists() and not any(folder.iterdir()):
        begin(folder)
    known = {name: entry for name, entry in _entries(folder, cut=True).items() if entry.size != REMOVED}
    for name, entry in known.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size < entry.size:
            raise Damage(f"{name} is missing or cut short")
    _compare(folder, known)
    for path in _files(folder):
        whole = known.get(_name(folder, path))
        if whole is None:
            path.unlink()
        elif path.stat().st_size > whole.size:  # a line or a record that was being written
            with path.open("r+b") as file:
                file.truncate(whole.size)
    _write(folder, list(known.values()))


def repair(folder: Path) -> list[str]:
    """Remove from a folder whose files do not need each other all that is not as it was listed; their names.

    What was not written whole goes without being named.
    """
    try:
        known = _entries(folder, cut=True)
    except Damage:  # then nothing in it is known
        empty(folder)
        begin(folder)
        return [LIST]
    damaged: list[str] = []
    listed = {name: entry for name, entry in known.items() if entry.size != REMOVED}
    for path in _files(folder):
        name = _name(folder, path)
        if name not in listed:
            path.unlink()
        elif _entry(folder, path) != listed[name]:
            damaged.append(name)
            path.unlink()
    lost = [name for name in listed if name not in damaged and not (folder / name).is_file()]
    for name in lost:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    _write(folder, [entry for name, entry in listed.items() if (folder / name).is_file()])
    return sorted([*damaged, *lost])


def empty(folder: Path) -> None:
    """Remove all that lies in a folder."""
    for path in folder.iterdir():
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _listed(path: Path) -> Path | None:
    """The folder with a list that a path lies in."""
    return next((folder for folder in path.parents[:_DEEPEST] if (folder / LIST).is_file()), None)


def _write(folder: Path, entries: Sequence[Listed]) -> None:
    """Replace the list, whole or not at all."""
    partial = folder / f"{LIST}.partial"
    partial.write_text("".join(f"{entry.model_dump_json()}\n" for entry in entries), encoding="utf-8")
    partial.replace(folder / LIST)


def _append(folder: Path, entry: Listed) -> None:
    with (folder / LIST).open("a", encoding="utf-8") as file:
        file.write(entry.model_dump_json() + "\n")


def _entries(folder: Path, cut: bool = False) -> dict[str, Listed]:
    """The list, by file; Damage where it cannot be read. cut: its last line may have been cut short."""
    if (folder / LIST).is_symlink() or not (folder / LIST).is_file():
        raise Damage(f"{LIST} is missing")
    try:
        lines = (folder / LIST).read_bytes().split(b"\n")
        if lines[-1] and not cut:
            raise Damage(f"{LIST} is cut short")
        entries = [Listed.model_validate_json(line) for line in lines[:-1]]
    except (OSError, ValidationError) as error:
        raise Damage(f"{LIST} cannot be read") from error
    if any(".." in entry.file.split("/") for entry in entries):
        raise Damage(f"{LIST} leads out of the folder")
    return {entry.file: entry for entry in entries}


def _files(folder: Path) -> list[Path]:
    """All that lies in a folder and below, folders and the list apart."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path != folder / LIST and (path.is_symlink() or not path.is_dir())
    ]


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _entry(folder: Path, path: Path) -> Listed:
    size = path.stat().st_size
    return Listed(file=_name(folder, path), size=size, sha256=_digest(path, size))


def _compare(folder: Path, known: dict[str, Listed]) -> None:
    """Damage for the first file that does not begin with the bytes that were listed."""

    def differs(entry: Listed) -> bool:
        path = folder / entry.file
        return not path.is_file() or _digest(path, entry.size) != entry.sha256

    with ThreadPoolExecutor(_THREADS) as pool:
        for entry, wrong in zip(known.values(), pool.map(differs, known.values()), strict=True):
            if wrong:
                raise Damage(f"{entry.file} is not as it was written")


def _digest(path: Path, size: int) -> str:
    """SHA-256, hex, of the first `size` bytes of a file; of less where it has less, "" of what is no file."""
    digest, left = hashlib.sha256(), size
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
