"""What a tokenizer.json of a BPE holds, checked."""

from __future__ import annotations

from tenth.core.errors import InputError
from tenth.models.formats.hf import JsonObject

SPACE = "\u2581"  # SentencePiece's visible space


def bpe(data: JsonObject) -> tuple[JsonObject, dict[str, int]]:
    """(the model, its tokens' ids) of a tokenizer.json. InputError for one that is no plain BPE."""
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise InputError("tokenizer.json: no model with a vocabulary in it")
    kind = model.get("type", "BPE")
    if kind != "BPE" or not isinstance(model["vocab"], dict):
        raise InputError(
            f"tokenizer.json: a {kind} model; only BPE (byte-level or SentencePiece) can be converted"
        )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise InputError(
                f"tokenizer.json: {key} = {model[key]!r:.40}, which llama.cpp's BPE does not have"
            )
    if not model["vocab"]:
        raise InputError("tokenizer.json: its vocabulary is empty")
    seen: set[int] = set()
    for text, token in model["vocab"].items():
        if type(token) is not int or not 0 <= token < 1 << 24 or token in seen:
            raise InputError(f"tokenizer.json: token {text!r:.60} has a bad or repeated id {token!r:.20}")
        seen.add(token)
    return model, model["vocab"]


def merges_of(model: JsonObject) -> list[tuple[str, str]]:
    """Pairs in order of rank, from "a b" or ["a", "b"]."""
    found = []
    listed = model.get("merges")
    for entry in listed if isinstance(listed, list) else []:
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) and p for p in pair):
            raise InputError(f"tokenizer.json: {entry!r:.60} is no merge")
        found.append((pair[0], pair[1]))
    if not found:
        raise InputError("tokenizer.json: a BPE without merges")
    return found


def added_tokens(data: JsonObject) -> list[JsonObject]:
    """Its added tokens, each with an id and a content."""
    entries = data.get("added_tokens") or []
    if not isinstance(entries, list):
        raise InputError("tokenizer.json: added_tokens must be a list")
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or type(entry.get("id")) is not int
            or not isinstance(entry.get("content"), str)
        ):
            raise InputError("tokenizer.json: a malformed entry in added_tokens")
        if not 0 <= entry["id"] < 1 << 24 or not entry["content"]:
            raise InputError(f"tokenizer.json: added token {entry['content']!r:.60} is empty or has a bad id")
    return list(entries)


def parts_of(definition: object, inner: str) -> list[JsonObject]:
    """The steps of a normalizer or the like; of a Sequence, those under the key inner."""
    if definition is None:
        return []
    if isinstance(definition, dict) and definition.get("type") == "Sequence":
        definition = definition.get(inner)
    parts = definition if isinstance(definition, list) else [definition]
    if not all(isinstance(part, dict) for part in parts):
        raise InputError(f"tokenizer.json: malformed {inner}")
    return list(parts)
