"""Texts as files: read or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenth.core.errors import InputError
from tenth.models import text


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        text.read(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match="cannot read"):
        text.read(tmp_path)
    (tmp_path / "latin1.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(InputError, match=r"UTF-8 text \(byte 2\)"):
        text.read(tmp_path / "latin1.txt")
    (tmp_path / "binary").write_bytes(b"GGUF\0\0\0\1")
    with pytest.raises(InputError, match="NUL"):
        text.read(tmp_path / "binary")
    (tmp_path / "good.txt").write_text("naïve", encoding="utf-8")
    assert text.read(tmp_path / "good.txt") == "naïve"


def test_bundled_text_is_prose_enough() -> None:
    found = text.read(None)
    assert found == text.bundled()
    assert len(found) > 500_000
    assert "\0" not in found
