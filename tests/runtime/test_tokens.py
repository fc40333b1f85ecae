"""The tokens of a text are llama.cpp's, also where it is cut into pieces."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CORPUS, write_sentencepiece, write_tokenizer

from tenth.core.errors import InputError
from tenth.runtime import tokens
from tenth.runtime.tokens import Tokenizer, tokenizer

BYTE_LEVEL = ["gpt-2", "smollm", "qwen2", "qwen35", "llama-bpe", "dbrx", "tekken", "gpt-4o", "any-space"]
KINDS = [*BYTE_LEVEL, "llama", "gemma", "tokenizer.model"]
WHITE = [" ", "  ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", "\n\n\n  ", "\u00a0"]
WORDS = [
    "the",
    "dog's",
    "x",
    "Quick",
    "naïve",
    "中文",
    "世界。",
    "12",
    "3",
    "...",
    "/",
    "-dash",
    "'ll",
    "🙂",
    "e\u0301",
]
MARKERS = ["<|im_end|>", "<tool>", "<s>", "</s>", "<start_of_turn>", "    ", "end tag", "<h1>", "X", "a b"]


def folder_of(folder: Path, kind: str) -> Path:
    """A folder of that kind of tokenizer, with markers that hold, begin and end with letters and spaces."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 700}')
    if kind == "tokenizer.model":
        write_sentencepiece(folder)
        return folder
    size = write_tokenizer(folder, kind).get_vocab_size()
    data = json.loads((folder / "tokenizer.json").read_text())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for i, (text, special) in enumerate({"end tag": True, "<h1>": False, "a b": False, "\nZ": False}.items()):
        data["added_tokens"].append({"id": size + i, "content": text, "special": special, **plain})
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def opened(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer(folder_of(tmp_path_factory.mktemp("tokens"), request.param))


def whole(model: Tokenizer, text: str) -> list[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "PIECE", 1 << 40)
        return model.encode(text).tolist()


def test_pieces_give_the_ids_of_the_whole(opened: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of some 40 characters: every seam that the patterns allow is used somewhere."""
    monkeypatch.setattr(tokens, "PIECE", 40)
    monkeypatch.setattr(tokens, "NEAR", 8)
    cut = 0

    @settings(max_examples=50, deadline=None, database=None)
    @given(
        st.lists(st.sampled_from([*WORDS * 3, *WHITE * 3, *MARKERS]), min_size=40, max_size=200).map("".join)
    )
    def check(text: str) -> None:
        nonlocal cut
        cut += sum(1 for _ in opened._pieces(text)) - 1
        assert opened.encode(text).tolist() == whole(opened, text)

    check()
    assert cut > 50


def test_pieces_of_prose_and_code(opened: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        *CORPUS,
        "<|im_start|>user\nWhat now?<|im_end|>\n",
        "- one\n- two\n\n1. 你好。\n世界\n",
        "a b end tag c",
    ]
    text = "\n".join(random.Random(1).choices(lines, k=300))
    expected = whole(opened, text)
    for size in (30, 100, 1000):
        monkeypatch.setattr(tokens, "PIECE", size)
        monkeypatch.setattr(tokens, "NEAR", size // 4)
        assert opened.encode(text).tolist() == expected


def test_a_long_text_takes_little_memory(tmp_path: Path) -> None:
    """The most that is handed over at once is bounded, whatever the text's length."""
    model, longest = tokenizer(folder_of(tmp_path / "m", "llama")), 0
    text = "The cat sat on the mat. 你好世界\n" * 100_000
    for piece, _ in model._pieces(text):
        longest = max(longest, len(piece))
    assert longest <= tokens.PIECE
    assert len(model.encode(text)) == 100_000 * len(model.encode(text[: len(text) // 100_000])) - 99_999


@pytest.mark.parametrize("kind", ["gpt-2", "gpt-4o", "llama", "gemma"])
def test_a_text_that_cannot_be_cut(kind: str, tmp_path: Path) -> None:
    """A long one is taken whole, a longer one refused with what to do."""
    model = tokenizer(folder_of(tmp_path / "m", kind))
    if kind != "gpt-4o":
        assert len(model.encode("中" * 50_000)) >= 50_000
    with pytest.raises(InputError, match="break its lines") as caught:
        model.encode("中" * (tokens.LONGEST + 10))
    assert "\n" not in str(caught.value)


def test_begin_end_and_start(tmp_path: Path) -> None:
    known = {}
    for kind in ("gpt-2", "llama", "gemma"):
        model = tokenizer(folder_of(tmp_path / kind, kind))
        known[kind] = (model.begin, model.end, model.start)
    assert known == {"gpt-2": ([], 0, 0), "llama": ([1], 2, 1), "gemma": ([2], 1, 2)}


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str, tmp_path: Path) -> None:
    model = tokenizer(folder_of(tmp_path / "m", kind))
    for sample in ("Hello  world\n\n\tif x == 10:", "naïve café 🙂 .", "<|im_start|>user 's", " leading", ""):
        assert model.decode(model.encode(sample)) == sample
    assert model.encode("").dtype == np.int32


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="tokenizer") as caught:
        tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
