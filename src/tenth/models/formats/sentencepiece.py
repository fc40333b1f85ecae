"""tokenizer.model: read through the sentencepiece library (part of tenth[fit]) where a folder has no
tokenizer.json; cut down on its own bytes.

It is a protobuf message (sentencepiece_model.proto), of which the fields named here are touched:

    ModelProto      1 pieces (repeated SentencePiece) | 2 trainer_spec | 3 normalizer_spec | 4 self_test_data
    NormalizerSpec  3 add_dummy_prefix
    SentencePiece   1 text | 2 score, float32 | 3 type, as llama.cpp's token types
    TrainerSpec     3 model_type, 2 is BPE | 4 vocab_size | 40 unk_id | 41 bos_id | 42 eos_id | 43 pad_id
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tenth.core.errors import InputError
from tenth.models.formats import added
from tenth.models.formats.bpe import SPACE
from tenth.models.formats.hf import JsonObject
from tenth.models.formats.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNREACHABLE,
    UNUSED,
    USER_DEFINED,
    Deviation,
    TokenizerInfo,
    Vocabulary,
)

SIZE_LIMIT = 64_000_000  # bytes
PIECES, TRAINER, NORMALIZER, SELF_TEST = 1, 2, 3, 4
DUMMY_PREFIX = 3  # a space before every text
MODEL_TYPE, VOCAB_SIZE = 3, 4
SPECIAL_IDS = {40: 0, 41: 1, 42: 2, 43: -1}  # unk, bos, eos, pad: number of the field -> its default
BPE = 2


def from_model(
    path: Path, settings: JsonObject
) -> tuple[TokenizerInfo, Vocabulary, tuple[str | None, str | None]]:
    """(keys so far, vocabulary, tokens put in front and behind). InputError for a model that is not BPE."""
    model, raw = processor(path, settings)
    vocabulary = Vocabulary({}, {}, {})
    read, kind = _read(raw)
    if kind != BPE:
        raise InputError(f"{path} is a unigram SentencePiece model; only BPE ones can be converted")
    for token, piece in enumerate(read):
        text, held = piece.text, piece.kind
        if held == USER_DEFINED:
            # SentencePiece looks for it where spaces are visible ones, llama.cpp in the text as it is.
            text, held = text.replace(SPACE, " "), UNUSED if " " in text else held
        vocabulary.add(token, text, held, piece.score if held == NORMAL else UNREACHABLE)
    _check(path, model, vocabulary)
    prefix = model.EncodeAsPieces("a")[0].startswith(SPACE)
    defined = [piece.text for piece in read if piece.kind == USER_DEFINED]
    ids = {text: token for token, text in vocabulary.texts.items()}
    for entry in added.completed([], ids, path.parent, settings, renames=True):
        token, text = entry["id"], entry["content"]
        if vocabulary.texts.get(token) != text or vocabulary.types[token] in (NORMAL, USER_DEFINED, UNUSED):
            vocabulary.add(token, text, CONTROL if entry["special"] else USER_DEFINED, UNREACHABLE)
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    deviations = []
    if defined and prefix:
        note = (
            f"llama.cpp puts a space behind {len(defined)} user-defined pieces such as {defined[0]!r:.40},"
            " SentencePiece only in front of text"
        )
        deviations.append(Deviation(note, lambda text: any(piece in text for piece in defined)))
    bos = vocabulary.texts.get(model.bos_id()) if settings.get("add_bos_token", True) else None
    eos = vocabulary.texts.get(model.eos_id()) if settings.get("add_eos_token", False) else None
    return TokenizerInfo(keys, deviations), vocabulary, (bos, eos)


def processor(path: Path, settings: JsonObject) -> tuple[Any, bytes]:
    """(sentencepiece's processor of a tokenizer.model, the file's bytes), under the folder's settings.

    transformers and llama.cpp's own converter follow add_prefix_space of tokenizer_config.json. InputError
    where the library is missing or cannot read the file.
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise InputError(
            f"{path.parent} has no tokenizer.json; to read tokenizer.model pip install 'tenth[fit]'"
        ) from None
    raw, model = read_model(path), SentencePieceProcessor()
    prefix = settings.get("add_prefix_space")
    try:
        model.LoadFromSerializedProto(with_prefix(raw, prefix) if isinstance(prefix, bool) else raw)
    except RuntimeError as error:
        raise InputError(f"{path} is no SentencePiece model: {str(error)[:100]!r}") from None
    return model, raw


def with_prefix(model: bytes, prefix: bool) -> bytes:
    """The model with a space in front of every text, or without."""
    out, rest = [], b""
    for number, value, raw in _fields(model):
        if number == NORMALIZER:
            rest += b"".join(r for n, _, r in _fields(_message(value)) if n != DUMMY_PREFIX)
        else:
            out.append(raw)
    rest += _varint(DUMMY_PREFIX << 3) + _varint(prefix)
    return b"".join(out) + _varint(NORMALIZER << 3 | 2) + _varint(len(rest)) + rest


def _check(path: Path, model: Any, vocabulary: Vocabulary) -> None:
    """llama.cpp merges characters and bytes, in text as it is: refuse models that rewrite text."""
    if sum(kind == BYTE for kind in vocabulary.types.values()) != 256:
        raise InputError(f"{path} has no byte fallback, which llama.cpp needs")
    for probe in ("a  b", "\ufb01", "\u2460"):
        if model.DecodeIds(model.EncodeAsIds(probe)) != probe:
            raise InputError(
                f"{path} rewrites text before tokenizing (spaces or Unicode forms), which llama.cpp does not"
            )


class Piece(NamedTuple):
    """A line of the vocabulary; its place is its id."""

    text: str
    score: float
    kind: int


def read_model(path: Path) -> bytes:
    """The file's bytes. InputError if it cannot be read or is larger than any tokenizer."""
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise InputError(f"{path} is larger than {SIZE_LIMIT} bytes, which no tokenizer is")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def pieces(model: bytes) -> list[Piece]:
    """Every piece, by id. InputError for a file that is no SentencePiece model, or not one of BPE."""
    found, kind = _read(model)
    if kind != BPE or not found:
        raise InputError("tokenizer.model: no SentencePiece model of the BPE kind; only those can be trimmed")
    return found


def _read(model: bytes) -> tuple[list[Piece], int]:
    """(every piece, by id, the kind of the model)."""
    found = []
    kind = 1
    for number, value, _ in _fields(model):
        if number == PIECES:
            found.append(_piece(value))
        elif number == TRAINER:
            kind = next((v for n, v, _ in _fields(_message(value)) if n == MODEL_TYPE), 1)
    return found, kind


def without(model: bytes, kept: Sequence[int]) -> bytes:
    """The model with the pieces `kept` (ascending) alone; the self-test, whose answers change, goes."""
    new = {old: place for place, old in enumerate(kept)}
    out, at = [], 0
    for number, value, raw in _fields(model):
        if number == PIECES:
            out.append(raw if at in new else b"")
            at += 1
        elif number == TRAINER:
            inner = _trainer(_message(value), new)
            out.append(_varint(TRAINER << 3 | 2) + _varint(len(inner)) + inner)
        elif number != SELF_TEST:
            out.append(raw)
    return b"".join(out)


def _trainer(spec: bytes, new: dict[int, int]) -> bytes:
    """TrainerSpec with the new size and ids; a special token that was not kept has the id -1."""
    ids = dict(SPECIAL_IDS)
    kept = []
    for number, value, raw in _fields(spec):
        if number in ids:
            ids[number] = _signed(value)
        elif number != VOCAB_SIZE:
            kept.append(raw)
    numbers = {VOCAB_SIZE: len(new)} | {field: new.get(old, -1) for field, old in ids.items()}
    return b"".join(kept) + b"".join(
        _varint(field << 3) + _varint(value & (1 << 64) - 1) for field, value in numbers.items()
    )


def _piece(value: object) -> Piece:
    found: dict[int, Any] = {number: inner for number, inner, _ in _fields(_message(value))}
    text, score, kind = found.get(1, b""), found.get(2, b"\0\0\0\0"), found.get(3, NORMAL)
    if (
        not isinstance(text, bytes)
        or not isinstance(score, bytes)
        or len(score) != 4
        or type(kind) is not int
    ):
        raise _broken()
    try:
        return Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], kind)
    except UnicodeDecodeError:
        raise _broken() from None


def _fields(message: bytes) -> Iterator[tuple[int, Any, bytes]]:
    """(number, value, bytes as they stand) of each field; a value is an int (varint) or bytes."""
    at = 0
    while at < len(message):
        begin = at
        tag, at = _number(message, at)
        value: int | bytes
        if tag & 7 == 0:
            value, at = _number(message, at)
        elif tag & 7 in (1, 2, 5):
            length = {1: 8, 5: 4}.get(tag & 7)
            if length is None:
                length, at = _number(message, at)
            value, at = message[at : at + length], at + length
        else:
            raise _broken()
        if at > len(message):
            raise _broken()
        yield tag >> 3, value, message[begin:at]


def _number(message: bytes, at: int) -> tuple[int, int]:
    """(the varint there, the place behind it)."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _broken()
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _broken()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _signed(value: object) -> int:
    if type(value) is not int:
        raise _broken()
    return value - (1 << 64) if value >> 63 else value


def _message(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise _broken()
    return value


def _broken() -> InputError:
    return InputError("tokenizer.model is no SentencePiece model or is cut short; get the file again")
