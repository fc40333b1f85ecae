"""A SentencePiece model cut down: ids and texts are those of the library and of llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import NASTY, one_line
from tiny import CORPUS, make_model, write_sentencepiece

from tenth.calibration.same_tokens import check_tokens
from tenth.core.errors import InputError
from tenth.core.records import Runtime
from tenth.models.checkpoint import open_checkpoint
from tenth.models.edit import take
from tenth.models.formats.folder import write_folder
from tenth.models.formats.gguf import write_gguf
from tenth.models.formats.sentencepiece import pieces, without
from tenth.models.formats.trim import trimmed
from tenth.pruning.vocabulary import chosen
from tenth.runtime.llama import Session
from tenth.runtime.tokens import tokenizer

TEXT = " ".join(CORPUS[:2])


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer.model alone."""
    folder = tmp_path_factory.mktemp("spm")
    make_model(folder, vocab_size=420, num_hidden_layers=1, bos_token_id=1, eos_token_id=2)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    write_sentencepiece(folder, character_coverage=1.0)
    return folder


def test_tokenizer_model(spm: Path, tmp_path: Path) -> None:
    import sentencepiece

    before = sentencepiece.SentencePieceProcessor(model_file=str(spm / "tokenizer.model"))
    counts = np.bincount(before.encode(TEXT), minlength=400)
    kept = chosen(spm, counts, 300)
    assert len(kept) == 300
    edited, files = take(open_checkpoint(spm), "vocab", kept), trimmed(spm, kept)
    after = sentencepiece.SentencePieceProcessor()
    after.LoadFromSerializedProto(files["tokenizer.model"])
    assert [after.IdToPiece(i) for i in range(300)] == [before.IdToPiece(i) for i in kept]
    assert (after.unk_id(), after.bos_id(), after.eos_id(), after.pad_id()) == (0, 1, 2, -1)
    write_folder(edited, tmp_path, tokenizer=files)
    write_gguf(open_checkpoint(tmp_path), {}, tmp_path / "model.gguf")
    plain = [text for text in NASTY if text and "<s>" not in text]

    def readable(text: str) -> bool:
        """Whether both read the same in it: SentencePiece takes markers for letters, llama.cpp does not."""
        return not any(marker in text for marker in ("\0", "<s>", "</s>", "<unk>"))

    with Session.open(tmp_path / "model.gguf", Runtime(n_ctx=256, n_ubatch=32, threads=1)) as session:

        @settings(max_examples=150, deadline=None, database=None)
        @given(st.text(max_size=30).filter(readable) | st.sampled_from(plain))
        def check(text: str) -> None:
            assert after.decode(after.encode(text)) == before.decode(before.encode(text))
            assert session.tokenize(text).tolist() == [1, *after.encode(text)]

        check()


def test_model_files_are_not_trusted(spm: Path) -> None:
    model = (spm / "tokenizer.model").read_bytes()
    count = len(pieces(model))
    test = b"\x22\x08\x0a\x06\x0a\x01a\x12\x01b"  # a self-test that claims "a" to be cut into "b"
    assert pieces(without(model + test, range(count))) == pieces(model)
    assert test not in without(model + test, range(count))

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.integers(0, len(model)), st.binary(min_size=1, max_size=8), st.booleans())
    def check(at: int, other: bytes, cut: bool) -> None:
        broken = model[:at] if cut else model[:at] + other + model[at + len(other) :]
        try:
            without(broken, range(len(pieces(broken))))
        except InputError as error:
            one_line(error)

    check()


# -- what a tokenizer.model may hold, and what may stand beside it -------------------------------------------


TOKEN = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
MODELS: dict[str, tuple[dict[str, object], dict[str, dict[str, object]]]] = {
    # settings of the trainer, files beside tokenizer.model
    "plain": ({}, {}),
    "user-defined, no prefix": (
        {"user_defined_symbols": ["<h1>", "</h1>", "a b", "b\u2581."], "add_dummy_prefix": False},
        {},
    ),
    "control": ({"control_symbols": ["[INST]", "[/INST]"]}, {}),
    "prefix switched off": ({}, {"tokenizer_config.json": {"add_prefix_space": False}}),
    "prefix switched on": (
        {"add_dummy_prefix": False},
        {"tokenizer_config.json": {"add_prefix_space": True}},
    ),
    "by id": (
        {},
        {"tokenizer_config.json": {"added_tokens_decoder": {"400": {**TOKEN, "content": "<|x|>"}}}},
    ),
    "added_tokens.json": ({}, {"added_tokens.json": {"<|x|>": 400}}),
    "map": ({}, {"special_tokens_map.json": {"additional_special_tokens": ["<|x|>"]}}),
    "renamed": (
        {"control_symbols": ["<reserved>"]},
        {"tokenizer_config.json": {"added_tokens_decoder": {"3": {**TOKEN, "content": "<|x|>"}}}},
    ),
}
LINES = ["the dog sat", "  two  spaces", "naïve 中\n\ttabs", "a", "", "▁ a", "x<h1>y</h1> a b.", "it's 12"]


@pytest.mark.parametrize("case", MODELS)
def test_ids_are_those_of_sentencepiece(case: str, tmp_path: Path) -> None:
    import sentencepiece

    trainer, files = MODELS[case]
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 410}')
    write_sentencepiece(tmp_path, **trainer)
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = tokenizer(tmp_path)
    check_tokens(tmp_path, ours)
    for line in LINES:
        ids = ours.encode(line).tolist()
        if case.startswith("prefix"):  # which llama.cpp's own converter takes from tokenizer_config.json, too
            spaced = " " + line if case.endswith("on") and line else line
            expected = theirs.encode(spaced)
            if case.endswith("off") and line:
                expected = theirs.encode("\n" + line)[2:]  # behind the prefix and the newline's byte
            assert ids == expected, line
        else:
            assert ids == theirs.encode(line), line
    if "<|x|>" in json.dumps(files):
        place = 3 if case == "renamed" else 400
        assert ours.encode("<|x|>").tolist() == [place]
        assert ours.decode(ours.encode("the <|x|>")) == "the <|x|>"


def test_user_defined_pieces_behind_a_prefix_are_noted(tmp_path: Path) -> None:
    """llama.cpp puts a space behind each special token, SentencePiece does not."""
    import sentencepiece

    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 400}')
    write_sentencepiece(tmp_path, user_defined_symbols=["<h1>", "</h1>"])
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = tokenizer(tmp_path)
    check_tokens(tmp_path, ours)
    assert ours.encode("the cat").tolist() == theirs.encode("the cat")
    pieces = {theirs.piece_to_id("<h1>"), theirs.piece_to_id("</h1>")}
    assert pieces <= set(ours.encode("<h1>title</h1>").tolist())
    assert any("user-defined pieces such as '<h1>'" in note for note in ours.info.notes)


def test_a_role_without_a_row_is_no_hindrance_to_trimming(spm: Path, tmp_path: Path) -> None:
    """A pad token that transformers adds behind the pieces, for which the embedding has no row."""
    for file in spm.iterdir():
        if file.name.startswith("tokenizer"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 400}')
    settings = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert any("'[PAD]'" in note for note in tokenizer(tmp_path).info.notes)
    kept = chosen(tmp_path, np.zeros(400, np.int64), 300)
    assert kept[-1] < 400
    assert trimmed(tmp_path, kept)
