"""Texts cut into windows that calibration and judging never share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import write_tokenizer

from tenth.calibration.windows import CHAT_EVERY, HELD_OUT, Cutter, Wanted, cut, seen
from tenth.core.errors import InputError
from tenth.models.chat_template import frame
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


# ---- the beginning of a text


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_every_window_begins_as_a_text_does_and_no_token_is_lost(kind: str, tmp_path: Path) -> None:
    model = tmp_path / kind
    write_tokenizer(model, kind)
    (model / "config.json").write_text('{"model_type": "llama", "vocab_size": 700}')
    tokens, given = tokenizer(model), prose(tmp_path / "a.txt", 3000)
    everything = {"length": 96, "calibrate": 10**6, "judge": 10**6}
    texts, calibration, held = windows(model, tmp_path / "out", given, **everything)
    assert texts.begun
    assert "before a text" in texts.notes()[0]
    ids = tokens.encode(given.read_text())
    every = np.vstack([calibration, held])
    assert len(tokens.begin) == 1
    assert (every[:, 0] == tokens.begin[0]).all()
    np.testing.assert_array_equal(every[:, 1:].reshape(-1), ids[: every[:, 1:].size])
    said = "".join(tokens.decode(window[1:]) for window in held)
    assert texts.bytes == pytest.approx(len(said.encode()), abs=len(held))  # a space in front may go
    assert texts.plain == len(held)


def test_without_a_first_token_windows_stay_as_they_were(model: Path, tmp_path: Path) -> None:
    texts, _, held = windows(model, tmp_path / "out", prose(tmp_path / "a.txt", 3000))
    assert not texts.begun
    assert not texts.notes()
    assert (texts.plain, texts.chat, texts.dropped) == (len(held), 0, 0)


# ---- text that was seen


def copied(path: Path, given: str, how: str) -> Path:
    """A text to judge on that is the calibration text in disguise."""
    lines = given.splitlines(keepends=True)
    text = {
        "a part": "".join(lines[30:90]),
        "one newline more": given + "\n",
        "one word in front": "Chapter " + given,
        "other order": "".join(lines[60:] + lines[:60]),
        "twice": "".join(lines[50:]) * 2,
        "from the middle of a word": given[len(given) // 3 + 7 :],
    }
    path.write_text(text[how], encoding="utf-8")
    return path


COPIES = ("a part", "one newline more", "one word in front", "other order", "twice")


@pytest.mark.parametrize("how", [*COPIES, "from the middle of a word"])
def test_copies_of_the_calibration_text_are_refused(how: str, model: Path, tmp_path: Path) -> None:
    given = prose(tmp_path / "a.txt", 3000)
    other = copied(tmp_path / "b.txt", given.read_text(), how)
    with pytest.raises(InputError, match=r"b\.txt.*is calibrated on.*another --eval-text") as caught:
        windows(model, tmp_path / "out", given, other, judge=12)
    assert "\n" not in str(caught.value)


def test_shared_windows_are_dropped_and_counted(model: Path, tmp_path: Path) -> None:
    given, fresh = prose(tmp_path / "a.txt", 3000), prose(tmp_path / "b.txt", 600, seed=1)
    mixed = tmp_path / "mixed.txt"
    mixed.write_text(given.read_text()[500:1500] + fresh.read_text())
    texts, _, held = windows(model, tmp_path / "out", given, mixed, judge=6)
    tokens = tokenizer(model)
    said = [tokens.decode(window) for window in held]
    assert len(held) == 6
    assert all(part in fresh.read_text() for part in said[1:])
    assert 5 <= texts.dropped <= 30
    assert f"{texts.dropped} windows" in texts.notes()[0]


def test_an_end_that_repeats_the_beginning(model: Path, tmp_path: Path) -> None:
    once = prose(tmp_path / "a.txt", 2000).read_text()
    again = tmp_path / "twice.txt"
    again.write_text(once + once)
    with pytest.raises(InputError, match=r"the end of the text is.*give an --eval-text"):
        windows(model, tmp_path / "out", again, judge=12)


def test_seen_is_what_a_naive_search_finds() -> None:
    random = np.random.default_rng(0)
    ids = random.integers(0, 50, 4000).astype(np.int32)
    given = random.integers(0, 50, (20, 64)).astype(np.int32)
    for number, share in enumerate((0, 31, 32, 39, 40, 41, 64)):
        given[number, :share] = ids[100 * number + 7 :][:share]
    known = {tuple(ids[i : i + 32]) for i in range(len(ids) - 31)}
    counted = [sum(tuple(row[i : i + 32]) in known for i in range(33)) / 33 for row in given]
    np.testing.assert_array_equal(seen(given, ids), np.array(counted) > 0.25)
    assert seen(given, ids).sum() == 3


# ---- chat templates

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def test_one_window_in_four_is_in_the_chat_template(model: Path, tmp_path: Path) -> None:
    given, around = prose(tmp_path / "a.txt", 6000), frame(CHATML, {})
    long = {"length": 64, "calibrate": 20, "judge": 9}
    before, calibrated, judged = windows(model, tmp_path / "plain", given, **long)
    texts, calibration, held = windows(model, tmp_path / "chat", given, **long, frame=around)
    tokens = tokenizer(model)
    start = int(tokens.encode("<|im_start|>")[0])
    assert calibration.shape == calibrated.shape
    assert (calibration[:, 0] == start).sum() == 20 // CHAT_EVERY
    assert (texts.plain, texts.chat) == (7, 2)
    assert (held[:, 0] == start).tolist() == [False] * 7 + [True] * 2
    assert rows(held[:7]) < rows(judged)
    assert texts.bytes < before.bytes
    spoken = tokens.decode(held[-1])
    assert "<|im_end|>\n<|im_start|>assistant\n" in spoken
    first = spoken.removeprefix("<|im_start|>user\n").split("<|im_end|>")[0]
    assert len(first) > 40
    assert first in tokens.decode(judged[7])
    assert "chat template" in " ".join(texts.notes())


def test_windows_in_the_template_begin_once(tmp_path: Path) -> None:
    """Gemma's template writes the first token itself; llama.cpp's server and transformers keep it single."""
    write_tokenizer(tmp_path / "m", "gemma")
    (tmp_path / "m" / "config.json").write_text('{"model_type": "llama", "vocab_size": 700}')
    tokens = tokenizer(tmp_path / "m")
    around = frame(
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}"
        "<end_of_turn>\n{% endfor %}",
        {"bos_token": "<bos>"},
    )
    cutter = Cutter(tokens, 64, around)
    given = cutter.rows(tokens.encode(prose(tmp_path / "a.txt", 2000).read_text()))
    mixed, plain = cutter.mixed(given[:8])
    assert (plain, mixed.shape) == (6, (8, 64))
    begin, turn = tokens.begin[0], int(tokens.encode("<start_of_turn>")[0])
    assert (mixed[:, 0] == begin).all()
    assert (mixed[:, 1:] != begin).all()
    assert (mixed[6:, 1] == turn).all()
