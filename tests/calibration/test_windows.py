"""Texts cut into windows that calibration and judging never share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import write_tokenizer

from tenth.calibration.windows import HELD_OUT, Wanted, cut
from tenth.core.errors import InputError
from tenth.runtime.tokens import tokenizer

WORDS = ["the", "quick", "brown", "fox", "doesn't", "jump", "it'll", "naïve", "café", "½", "42", "print"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(folder, "gpt-2")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def prose(path: Path, words: int, seed: int = 0) -> Path:
    """Numbered sentences, so that no two windows are alike."""
    rng = np.random.default_rng(seed)
    lines = [f"{seed}.{i}: " + " ".join(rng.choice(WORDS, 9)) + ".\n" for i in range(words // 10)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def windows(
    model: Path, folder: Path, given: Path | None, judge_on: Path | None = None, **changes: Any
) -> Any:
    folder.mkdir()
    wanted = Wanted(**{"length": 32, "calibrate": 10, "train": 0, "judge": 3, "seed": 0, **changes})
    texts = cut(model, given, judge_on, wanted, folder)
    return texts, np.load(folder / "calibration.npy"), np.load(folder / "held-out.npy")


def rows(array: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in array}


def test_calibration_and_held_out_never_overlap(model: Path, tmp_path: Path) -> None:
    given = prose(tmp_path / "a.txt", 3000)
    ids = tokenizer(model).encode(given.read_text())
    every = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    held_out = []
    for seed in range(5):
        _, calibration, held = windows(
            model, tmp_path / str(seed), given, calibrate=10**6, judge=10**6, seed=seed
        )
        assert not rows(calibration) & rows(held)
        assert rows(calibration) | rows(held) == rows(every)
        assert len(held) == pytest.approx(HELD_OUT * len(every), abs=1)
        held_out.append(held)
    np.testing.assert_array_equal(held_out[0], every[-len(held_out[0]) :])
    assert all(np.array_equal(held_out[0], held) for held in held_out)


def test_seed_decides_which_windows_and_nothing_else_does(model: Path, tmp_path: Path) -> None:
    given = prose(tmp_path / "a.txt", 3000)
    one, same, other = (
        windows(model, tmp_path / n, given, seed=s) for n, s in (("1", 1), ("2", 1), ("3", 2))
    )
    np.testing.assert_array_equal(one[1], same[1])
    assert not np.array_equal(one[1], other[1])
    for texts, calibration, held in (one, other):
        assert calibration.shape == (10, 32)
        assert held.shape == (3, 32)
        assert calibration.dtype == held.dtype == np.int32
        assert len(calibration) == 10
        assert texts.length == 32


def test_further_windows_are_others(model: Path, tmp_path: Path) -> None:
    given = prose(tmp_path / "a.txt", 3000)
    _, calibration, held = windows(model, tmp_path / "some", given, train=7)
    further = np.load(tmp_path / "some" / "further.npy")
    assert further.shape == (7, 32)
    assert further.dtype == np.int32
    assert not rows(further) & (rows(calibration) | rows(held))
    _, every, _ = windows(model, tmp_path / "every", given, calibrate=10**6, train=7)
    assert np.load(tmp_path / "every" / "further.npy").shape == (0, 32)
    windows(model, tmp_path / "rest", given, train=10**6)
    assert rows(np.load(tmp_path / "rest" / "further.npy")) == rows(every) - rows(calibration)


def test_judging_text_of_its_own(model: Path, tmp_path: Path) -> None:
    given, other = prose(tmp_path / "a.txt", 1000), prose(tmp_path / "b.txt", 200, seed=1)
    _, calibration, held = windows(model, tmp_path / "out", given, other, calibrate=10**6)
    tokens = tokenizer(model)
    assert len(calibration) == len(tokens.encode(given.read_text())) // 32
    np.testing.assert_array_equal(held.reshape(-1), tokens.encode(other.read_text())[: held.size])


def test_bytes_are_those_of_the_predicted_tokens(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "ascii.txt"
    path.write_text("".join(f"line {i} of plain words\n" for i in range(400)))
    texts, _, held = windows(model, tmp_path / "out", path)
    tokens = tokenizer(model)
    assert texts.bytes == sum(len(tokens.decode(window[1:]).encode()) for window in held)


@pytest.mark.parametrize(
    ("calibrate_on", "judge_on", "said"),
    [(30, None, "calibrate on"), (3000, 10, "judge on"), (0, 500, "0 tokens")],
)
def test_too_short(model: Path, tmp_path: Path, calibrate_on: int, judge_on: int | None, said: str) -> None:
    given = prose(tmp_path / "a.txt", calibrate_on)
    other = None if judge_on is None else prose(tmp_path / "b.txt", judge_on)
    with pytest.raises(InputError, match=said) as caught:
        windows(model, tmp_path / "out", given, other)
    assert "too short" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_judging_on_the_calibration_text_is_refused(model: Path, tmp_path: Path) -> None:
    given, copy = prose(tmp_path / "a.txt", 1000), prose(tmp_path / "copy.txt", 1000)
    with pytest.raises(InputError, match="same text"):
        windows(model, tmp_path / "out", given, copy)
