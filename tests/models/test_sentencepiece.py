"""A SentencePiece model cut down: ids and texts are those of the library and of llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import NASTY, one_line
from tiny import CORPUS, make_model

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

TEXT = " ".join(CORPUS[:2])


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer.model alone."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("spm")
    make_model(folder, vocab_size=420, num_hidden_layers=1, bos_token_id=1, eos_token_id=2)
    (folder / "tokenizer.json").unlink()
    (folder / "corpus.txt").write_text("\n".join(CORPUS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        character_coverage=1.0,
    )
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
    with Session.open(tmp_path / "model.gguf", Runtime(n_ctx=256, n_ubatch=32, threads=1)) as session:

        @settings(max_examples=150, deadline=None, database=None)
        @given(st.text(max_size=30).filter(lambda text: "\0" not in text) | st.sampled_from(plain))
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
