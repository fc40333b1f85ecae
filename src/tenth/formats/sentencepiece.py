"""tokenizer.model, where a folder has no tokenizer.json: read through the sentencepiece library (part of
tenth[fit]).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tenth.errors import InputError
from tenth.formats.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNREACHABLE,
    UNUSED,
    TokenizerInfo,
    Vocabulary,
)

SIZE_LIMIT = 64_000_000  # bytes


def from_model(
    path: Path, settings: dict[str, Any]
) -> tuple[TokenizerInfo, Vocabulary, tuple[str | None, str | None]]:
    """(keys so far, vocabulary, tokens put in front and behind). InputError for a model that is not BPE."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise InputError(
            f"{path.parent} has no tokenizer.json; to read tokenizer.model install tenth[fit]"
        ) from None
    if path.stat().st_size > SIZE_LIMIT:
        raise InputError(f"{path} is larger than {SIZE_LIMIT} bytes, which no tokenizer is")
    model = SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(path.read_bytes())
    except (RuntimeError, OSError) as error:
        raise InputError(f"{path} is no SentencePiece model: {str(error)[:100]}") from None
    vocabulary = Vocabulary({}, {}, {})
    for token in range(model.GetPieceSize()):
        kind = NORMAL
        if model.IsUnknown(token):
            kind = UNKNOWN
        elif model.IsControl(token):
            kind = CONTROL
        elif model.IsUnused(token):
            kind = UNUSED
        elif model.IsByte(token):
            kind = BYTE
        score = model.GetScore(token) if kind == NORMAL else UNREACHABLE
        vocabulary.add(token, model.IdToPiece(token), kind, score)
    _check(path, model, vocabulary)
    added = settings.get("added_tokens_decoder")
    for token, entry in added.items() if isinstance(added, dict) else ():
        if token.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            vocabulary.add(int(token), entry["content"], CONTROL if entry.get("special") else 4)
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": model.EncodeAsPieces("a")[0].startswith(SPACE),
    }
    bos = vocabulary.texts.get(model.bos_id()) if settings.get("add_bos_token", True) else None
    eos = vocabulary.texts.get(model.eos_id()) if settings.get("add_eos_token", False) else None
    return TokenizerInfo(keys), vocabulary, (bos, eos)


def _check(path: Path, model: Any, vocabulary: Vocabulary) -> None:
    """llama.cpp merges by score, in text as it is: refuse unigram models and those that rewrite text."""
    scores = [s for t, s in vocabulary.scores.items() if vocabulary.types[t] == NORMAL]
    if any(score != round(score) for score in scores):
        raise InputError(f"{path} is a unigram SentencePiece model; only BPE ones can be converted")
    if sum(kind == BYTE for kind in vocabulary.types.values()) != 256:
        raise InputError(f"{path} has no byte fallback, which llama.cpp needs")
    for probe in ("a  b", "\ufb01", "\u2460"):
        if model.DecodeIds(model.EncodeAsIds(probe)) != probe:
            raise InputError(
                f"{path} rewrites text before tokenizing (spaces or Unicode forms), which llama.cpp does not"
            )
