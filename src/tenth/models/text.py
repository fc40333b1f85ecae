"""Texts as files: read or refused; and the one that comes with the package."""

from __future__ import annotations

import lzma
from importlib import resources
from pathlib import Path

from tenth.core.errors import InputError


def bundled() -> str:
    """The package's own calibration text: public-domain and Creative Commons prose (data/NOTICE.md)."""
    return lzma.decompress((resources.files("tenth") / "data" / "calibration.txt.xz").read_bytes()).decode()


def read(path: Path | None) -> str:
    """The text in a file, or the bundled one. InputError if it is missing, no UTF-8, or binary."""
    if path is None:
        return bundled()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the text {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text (byte {error.start}); convert it first") from None
    if "\0" in text:
        raise InputError(f"{path} holds NUL characters; give plain text")
    return text
