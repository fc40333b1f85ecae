"""Windows to heal on: drawn over the whole text, whatever its size and kind; never what is judged on."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import write_tokenizer

from tenth.core.errors import InputError
from tenth.distillation import corpus
from tenth.distillation.settings import CorpusSettings
from tenth.runtime.tokens import tokenizer

LENGTH = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(folder, "gpt-2")
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 384}')
    return folder


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PIECE", 400)


def lines(count: int) -> str:
    """No part of it twice."""
    random = np.random.default_rng(0)
    return "".join(f"{' '.join(f'{n:x}' for n in random.integers(0, 1 << 20, 6))}\n" for _ in range(count))


def texts(model: Path, windows: np.ndarray) -> list[str]:
    decode = tokenizer(model).decode
    return [decode(window) for window in windows]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(lines(600))
    return path


def test_windows_are_from_all_over_the_text_and_as_many_as_wanted(model: Path, text: Path) -> None:
    whole, seen = text.read_text(), []
    found = corpus.windows(model, text, LENGTH, 995, 0, progress=seen.append)
    assert found.shape == (50, LENGTH)
    assert found.dtype == np.int32
    assert seen == sorted(seen)
    assert seen[-1] >= 995
    places = [whole.index(part) for part in texts(model, found)]
    assert len(set(places)) == 50
    assert places != sorted(places)
    assert min(places) < len(whole) / 5
    assert max(places) > len(whole) * 4 / 5


def test_everything_is_found_where_all_is_wanted(model: Path, text: Path) -> None:
    found = corpus.windows(model, text, LENGTH, 10**9, 0)
    ids = tokenizer(model).encode(text.read_text())
    pieces = len(list(corpus._pieces(text)))
    assert len(ids) / LENGTH - pieces <= len(found) <= len(ids) / LENGTH
    assert "".join(corpus._pieces(text)) == text.read_text()
    assert max(len(piece) for piece in corpus._pieces(text)) <= corpus.PIECE


def test_seed_decides(model: Path, text: Path) -> None:
    one, same, other = (corpus.windows(model, text, LENGTH, 400, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_text_that_is_judged_on_is_left_out(model: Path, text: Path) -> None:
    everything = corpus.windows(model, text, LENGTH, 10**9, 0)
    ids = tokenizer(model).encode(text.read_text())
    held = ids[7 : 7 + 12 * 25].reshape(12, 25)  # cut elsewhere, and of another length
    rest = corpus.windows(model, text, LENGTH, 10**9, 0, held)
    gone = {w.tobytes() for w in everything} - {w.tobytes() for w in rest}
    assert 8 <= len(gone) <= 20
    for window in rest:
        runs = {tuple(window[i : i + corpus.KNOWN]) for i in range(LENGTH - corpus.KNOWN + 1)}
        assert not runs & {tuple(h[i : i + corpus.KNOWN]) for h in held for i in range(25 - corpus.KNOWN + 1)}


def test_text_without_lines_or_spaces(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    for body in ("a" * 3000, "word " * 600, " " + "b" * 2999, "é" * 1000):
        path.write_text(body)
        assert "".join(corpus._pieces(path)) == body
        assert len(corpus.windows(model, path, LENGTH, 60, 0)) == 3


def test_bundled_text_and_the_file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "bundled", lambda: lines(50))
    events: list[dict[str, Any]] = []
    settings = CorpusSettings(
        model=model, text=None, destination=tmp_path / "w.npy", length=LENGTH, tokens=200, seed=0
    )
    assert corpus.write_windows(settings, events.append) == 10
    np.testing.assert_array_equal(np.load(tmp_path / "w.npy"), corpus.windows(model, None, LENGTH, 200, 0))
    assert events[-1] == {"done": 200, "total": 200}


def test_compressed_text(model: Path, text: Path, tmp_path: Path) -> None:
    """A frame of raw blocks (RFC 8878)."""
    data = text.read_bytes()
    blocks = [data[i : i + 60000] for i in range(0, len(data), 60000)]
    frame = b"\x28\xb5\x2f\xfd" + b"\xa0" + struct.pack("<I", len(data))
    for i, block in enumerate(blocks):
        frame += struct.pack("<I", len(block) << 3 | (i == len(blocks) - 1))[:3] + block
    path = tmp_path / "text.txt.zst"
    path.write_bytes(frame)
    if importlib.util.find_spec("compression") or importlib.util.find_spec("zstandard"):
        np.testing.assert_array_equal(
            corpus.windows(model, path, LENGTH, 400, 0), corpus.windows(model, text, LENGTH, 400, 0)
        )
        path.write_bytes(frame[:-9000])
        said = "cannot be unpacked"
    else:
        said = "zstd -d"
    with pytest.raises(InputError, match=said):
        corpus.windows(model, path, LENGTH, 10**9, 0)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"short", "too short to heal on"),
        (b"", "too short"),
        (b"\xff\xfe" * 900, "no UTF-8"),
        (b"a\0" * 900, "NUL"),
    ],
)
def test_texts_that_cannot_be_used(data: bytes, said: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(data)
    with pytest.raises(InputError, match=said):
        corpus.windows(model, tmp_path / "text.txt", LENGTH, 400, 0)
    with pytest.raises(InputError, match="cannot read"):
        corpus.windows(model, tmp_path / "none.txt", LENGTH, 400, 0)
