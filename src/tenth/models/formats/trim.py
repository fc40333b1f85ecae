"""A tokenizer with fewer tokens: which it cannot do without, what the others fall apart into, its files.

Byte-pair merging is greedy by rank, and a token's merges touch nothing outside it. So every token has one
path, the merges that make it out of characters; where the whole path is kept, the token is found as before,
and a text whose tokens were all kept gets the same ones. A token that is gone falls apart where its path
breaks off: at the latest into single bytes, which are always kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tenth.core.errors import InputError
from tenth.models.formats.added import completed
from tenth.models.formats.bpe import SPACE, added_tokens, bpe, merges_of, parts_of
from tenth.models.formats.hf import JsonObject, read_json, read_optional
from tenth.models.formats.sentencepiece import Piece, pieces, read_model, without
from tenth.models.formats.vocabulary import NORMAL, UNUSED

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # SentencePiece's bytes
NEVER = float("inf")  # the rank of what is no merge
# Lists of ids in generation_config.json; of those that end in _token_id some are lists too.
LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")


def letters() -> dict[str, int]:
    """The letter that stands for each byte in a byte-level BPE (GPT-2's table) -> the byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


@dataclass(frozen=True)
class Tokens:
    """A tokenizer's tokens. Those that are neither fixed nor have parts are never found in a text.

    texts: id -> text, as the vocabulary spells it. fixed: ids that stay: special and added tokens, bytes, and
    what those are merged from. parts: id of any other -> the ids it falls apart into, left to right: the two
    that its last merge joins, or a character's bytes.
    """

    texts: dict[int, str]
    fixed: frozenset[int]
    parts: dict[int, tuple[int, ...]]
    byte_level: bool

    def spelled(self, token: int) -> str:
        """The token as a person reads it; bytes that are no whole character are left out."""
        if not self.byte_level:
            return self.texts[token].replace(SPACE, " ")
        table = letters()
        return bytes(table[c] for c in self.texts[token] if c in table).decode("utf-8", errors="ignore")


def tokens_of(folder: Path) -> Tokens:
    """Of a model folder, from tokenizer.json, or tokenizer.model where there is none. InputError for a
    tokenizer that is no BPE whose every byte is a token.
    """
    named = set(_config_ids(folder))
    if (folder / "tokenizer.json").is_file():
        return _from_json(_completed(folder), named)
    if (folder / "tokenizer.model").is_file():
        found = pieces(read_model(folder / "tokenizer.model"))
        ids = {piece.text: token for token, piece in enumerate(found)}
        added = completed([], ids, folder, read_optional(folder / "tokenizer_config.json"), renames=True)
        rows = _rows(folder)
        return _from_model(found, {e["id"]: e["content"] for e in added if e["id"] < rows}, named)
    raise InputError(
        f"{folder} holds neither tokenizer.json nor tokenizer.model; give a complete model folder"
    )


def _completed(folder: Path) -> JsonObject:
    """tokenizer.json with the added tokens of the folder's other files, and without tokens that the model has
    no row for.
    """
    data, rows = read_json(folder / "tokenizer.json"), _rows(folder)
    model, ids = bpe(data)
    added = completed(added_tokens(data), ids, folder, read_optional(folder / "tokenizer_config.json"))
    return {
        **data,
        "model": {**model, "vocab": {text: token for text, token in ids.items() if token < rows}},
        "added_tokens": [entry for entry in added if entry["id"] < rows],
    }


def _rows(folder: Path) -> int:
    """Of the embedding; a number that no vocabulary has where nothing says."""
    config = read_optional(folder / "config.json")
    inner = config.get("text_config")
    rows = {**config, **(inner if isinstance(inner, dict) else {})}.get("vocab_size")
    return rows if type(rows) is int else 1 << 24


def _from_json(data: JsonObject, named: set[int]) -> Tokens:
    model, ids = bpe(data)
    merges = {pair: rank for rank, pair in reversed(list(enumerate(merges_of(model))))}
    added = {entry["id"]: entry["content"] for entry in added_tokens(data)}
    texts = {token: text for text, token in ids.items()} | added
    byte_level = not model.get("byte_fallback")
    if byte_level:
        if not any(
            part.get("type") == "ByteLevel" for part in parts_of(data.get("pre_tokenizer"), "pretokenizers")
        ):
            raise InputError(
                "tokenizer.json: a BPE that spells no bytes: what is trimmed could not be written"
            )
        base = [ids[letter] for letter in letters() if letter in ids]
    else:
        base = [ids[text] for text in (*BYTES, SPACE) if text in ids]
    special = [token for text, token in ids.items() if text == model.get("unk_token")]
    processors = parts_of(data.get("post_processor"), "processors")
    named |= {token for part in processors for token in _processor_ids(part)}
    fixed = {*added, *base, *special, *named} & set(texts)
    whole = byte_level and bool(model.get("ignore_merges"))
    return _tokens(texts, ids, fixed, merges, byte_level=byte_level, whole=whole)


def _from_model(found: Sequence[Piece], added: Mapping[int, str], named: set[int]) -> Tokens:
    texts = {token: piece.text for token, piece in enumerate(found)}
    ids = {piece.text: token for token, piece in enumerate(found) if piece.kind == NORMAL}
    merges = {
        (text[:i], text[i:]): -found[token].score
        for text, token in ids.items()
        for i in range(1, len(text))
        if text[:i] in ids and text[i:] in ids
    }
    fixed = {token for token, piece in enumerate(found) if piece.kind not in (NORMAL, UNUSED)}
    bytes_there = {piece.text for piece in found}
    if not bytes_there.issuperset(BYTES):
        raise InputError("tokenizer.model has no byte fallback: what is trimmed could not be written")
    texts |= added
    fixed |= set(added)
    fixed |= ({ids[SPACE]} if SPACE in ids else set()) | (named & set(texts))
    spelled = {text: token for token, text in texts.items()}
    return _tokens(texts, spelled | ids, fixed, merges, byte_level=False, whole=False)


def _tokens(
    texts: dict[int, str],
    ids: Mapping[str, int],
    fixed: set[int],
    merges: Mapping[tuple[str, str], float],
    *,
    byte_level: bool,
    whole: bool,
) -> Tokens:
    """whole: a word that is a token is found without merging (ignore_merges)."""
    parts: dict[int, tuple[int, ...]] = {}
    for token, text in texts.items():
        if ids.get(text) != token:
            continue
        if len(text) > 1:
            found, joined = _path(list(text), merges)
            if (joined or whole) and all(part in ids for part in found):
                parts[token] = tuple(ids[part] for part in found)
        elif not byte_level:
            parts[token] = tuple(
                ids[BYTES[byte]] for byte in text.encode("utf-8", "ignore") if BYTES[byte] in ids
            )
    fixed, open_ones = set(fixed), list(fixed)
    while open_ones:
        new = set(parts.get(open_ones.pop(), ())) - fixed
        fixed |= new
        open_ones += new
    return Tokens(texts, frozenset(fixed), {t: p for t, p in parts.items() if t not in fixed}, byte_level)


def _path(symbols: list[str], merges: Mapping[tuple[str, str], float]) -> tuple[list[str], bool]:
    """(what the symbols become before the last merge, whether that merge makes them one)."""
    while True:
        ranks = [merges.get(pair, NEVER) for pair in pairwise(symbols)]
        best = min(ranks)
        if best == NEVER or len(ranks) == 1:
            return symbols, best != NEVER
        at = ranks.index(best)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


# -- the files -----------------------------------------------------------------------------------------------


def trimmed(folder: Path, kept: Sequence[int]) -> dict[str, bytes]:
    """The files of the folder that name token ids, by name, for the tokens `kept` (ascending) as 0, 1, ...

    InputError where a token that the tokenizer cannot do without is not among them, and for malformed files.
    """
    if list(kept) != sorted(set(kept)) or not kept or kept[0] < 0:
        raise InputError("the tokens to keep must be distinct ids, ascending")
    new = {old: place for place, old in enumerate(kept)}
    tokens = tokens_of(folder)
    if lost := sorted(tokens.fixed - set(new)):
        raise InputError(
            f"token {lost[0]} ({tokens.texts[lost[0]]!r:.40}) must be kept ({len(lost)} such are not)"
        )
    files: dict[str, bytes] = {}
    if (folder / "tokenizer.json").is_file():
        files["tokenizer.json"] = _dump(_trimmed_json(_completed(folder), new))
    if (folder / "tokenizer.model").is_file():
        model = read_model(folder / "tokenizer.model")
        count = len(pieces(model))
        files["tokenizer.model"] = without(model, [token for token in kept if token < count])
    for name in ("tokenizer_config.json", "generation_config.json"):
        if (folder / name).is_file():
            files[name] = _dump(renumbered(read_json(folder / name), new))
    if (folder / "added_tokens.json").is_file():
        added = read_json(folder / "added_tokens.json")
        files["added_tokens.json"] = _dump(
            {text: new[token] for text, token in added.items() if type(token) is int and token in new}
        )
    return files


def renumbered(values: Mapping[str, Any], new: Mapping[int, int]) -> JsonObject:
    """Settings with new token ids: keys that end in _token_id, lists of ids, added_tokens_decoder. An id that
    is gone becomes None, and leaves a list.
    """
    out = dict(values)
    for key, value in values.items():
        if key.endswith("_token_id") or key in LISTS:
            out[key] = _ids(value, new)
        elif key == "added_tokens_decoder":
            out[key] = {str(new[token]): entry for token, entry in _decoder(value).items() if token in new}
    return out


def _ids(value: object, new: Mapping[int, int]) -> Any:
    """An id, a list of ids, or a list of such lists."""
    if not isinstance(value, list):
        return new.get(value) if type(value) is int else value
    if all(isinstance(entry, list) for entry in value):
        inner = [[new.get(token) for token in entry if type(token) is int] for entry in value]
        return [entry for entry in inner if entry and None not in entry]  # a phrase lost a token: never said
    return [new[token] for token in value if type(token) is int and token in new]


def _trimmed_json(data: JsonObject, new: Mapping[int, int]) -> JsonObject:
    model, ids = bpe(data)
    merges_of(model)  # checks them
    vocabulary = {text: new[token] for text, token in sorted(ids.items(), key=lambda e: e[1]) if token in new}
    merges = [
        merge for merge in model["merges"] if {*_pair(merge), "".join(_pair(merge))} <= vocabulary.keys()
    ]
    added = [{**entry, "id": new[entry["id"]]} for entry in added_tokens(data) if entry["id"] in new]
    out = {**data, "model": {**model, "vocab": vocabulary, "merges": merges}, "added_tokens": added}
    processor = data.get("post_processor")
    if isinstance(processor, dict) and isinstance(steps := processor.get("processors"), list):
        out["post_processor"] = {**processor, "processors": [_processor(step, new) for step in steps]}
    elif isinstance(processor, dict):
        out["post_processor"] = _processor(processor, new)
    if isinstance(padding := data.get("padding"), dict) and type(padding.get("pad_id")) is int:
        out["padding"] = {**padding, "pad_id": new.get(padding["pad_id"], 0)}
    return out


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else list(merge)


def _processor(step: JsonObject, new: Mapping[int, int]) -> JsonObject:
    """A step of a post-processor with new ids: those of a template's tokens, or of [text, id] pairs."""
    if lost := [token for token in _processor_ids(step) if token not in new]:
        raise InputError(f"tokenizer.json: its post_processor adds token {lost[0]}, which is not there")
    out = {key: [v[0], new[v[1]]] if _is_pair(v) else v for key, v in step.items()}
    if _special(step):
        out["special_tokens"] = {
            name: {**entry, "ids": [new[token] for token in entry["ids"]]}
            for name, entry in _special(step).items()
        }
    return out


def _processor_ids(step: JsonObject) -> Iterator[int]:
    """Every id that a step of a post-processor names."""
    yield from (value[1] for value in step.values() if _is_pair(value))
    for entry in _special(step).values():
        yield from entry["ids"]


def _special(step: JsonObject) -> dict[str, JsonObject]:
    """A template's special tokens by name, their "ids" checked."""
    entries = step.get("special_tokens") or {}
    wrong = InputError("tokenizer.json: malformed special_tokens in its post_processor")
    if not isinstance(entries, dict):
        raise wrong
    for entry in entries.values():
        ids = entry.get("ids") if isinstance(entry, dict) else None
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise wrong
    return entries


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int


def _config_ids(folder: Path) -> Iterator[int]:
    """Ids that config.json and generation_config.json give a meaning to."""
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            values = read_json(folder / name)
            inner = values.get("text_config")
            for part in (values, inner if isinstance(inner, dict) else {}):
                for key, value in part.items():
                    if key.endswith("_token_id"):
                        yield from (
                            v for v in (value if isinstance(value, list) else [value]) if type(v) is int
                        )


def _decoder(entries: object) -> dict[int, JsonObject]:
    """tokenizer_config.json's added_tokens_decoder by id; what is malformed is left out."""
    return {
        int(token): entry
        for token, entry in (entries.items() if isinstance(entries, dict) else ())
        if token.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str)
    }


def _dump(value: JsonObject) -> bytes:
    try:
        return (json.dumps(value, ensure_ascii=False) + "\n").encode()
    except (RecursionError, UnicodeEncodeError) as error:
        raise InputError(f"the tokenizer's files hold what JSON cannot: {error!s:.100}") from None
