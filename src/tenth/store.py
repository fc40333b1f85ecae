"""The work folder: every stage's result, named after what it was made from, so that a killed run resumes."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenth.errors import OutputError


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
    """A folder of finished stages. Two runs with the same inputs share them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the work folder {root}: {error.strerror}; choose another with --work"
            ) from error

    def stage(self, name: str, inputs: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """The folder of the stage `name` for these inputs (JSON values): built now, or found finished.

        An unfinished one is kept when `build` raises or the process dies, and handed to `build` again, which
        resumes in it.
        """
        key = _key(inputs)
        final, partial = self.root / f"{name}-{key}", self.root / f"{name}-{key}.partial"
        if not final.exists():
            partial.mkdir(exist_ok=True)
            build(partial)
            partial.replace(final)
        return final

    def shelf(self, name: str, inputs: Mapping[str, Any]) -> Path:
        """A folder that is never finished: what is in it stays right, and more may be added."""
        folder = self.root / f"{name}-{_key(inputs)}"
        folder.mkdir(exist_ok=True)
        return folder

    def remove(self, stage: Path) -> None:
        """Forget a finished stage and free its space."""
        shutil.rmtree(stage, ignore_errors=True)


def _key(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none of it."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")
