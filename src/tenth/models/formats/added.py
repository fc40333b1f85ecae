"""Added tokens: those of other files than tokenizer.json, as transformers 5 adds them to it; and their flags.

tokenizer_config.json may list them by id (added_tokens_decoder). Where it does not, special_tokens_map.json
and added_tokens.json count, the formats before that list. After them come the tokens with a role (bos, eos
and so on) and further special tokens. Each that tokenizer.json does not have gets the id that its text has in
the vocabulary, or else the next free one (tokenization_utils_base.py and tokenization_utils_tokenizers.py).

Flags say which white space a token swallows, and that it stands in no word. llama.cpp has none in its files.
Under a model's name with "phi-3" in it, all its special tokens but three swallow white space behind them
(llama-vocab.cpp); other tokens with flags become a note.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tenth.core.errors import InputError
from tenth.models.formats.hf import JsonObject, read_optional
from tenth.models.formats.vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Deviation, Vocabulary

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
MOST = 100_000  # such tokens
KEEPING = {"<unk>", "<s>", "<|endoftext|>"}  # of Phi-3, which swallow nothing
Token = JsonObject  # as in tokenizer.json: content, special, normalized, lstrip, rstrip, single_word


def completed(
    found: Sequence[Token],
    vocabulary: Mapping[str, int],
    folder: Path,
    settings: JsonObject,
    renames: bool = False,
) -> list[Token]:
    """The tokens found in the tokenizer's own file and those of the folder's other files, each with its id.

    vocabulary: ids by text, added tokens left out. renames: whether a listed token takes the place of the one
    with its id, as in a folder without tokenizer.json. InputError where another file gives a token another id
    than it gets by its place.
    """
    tokens = [*found]
    ids: dict[str, int] = {entry["content"]: entry["id"] for entry in found}
    taken = set(vocabulary.values())
    following = max([len(vocabulary) - 1, *ids.values()]) + 1
    for token, expected in elsewhere(folder, settings):
        text = token["content"]
        if text in ids:
            continue
        if text in vocabulary:
            ids[text] = vocabulary[text]
        elif renames and expected in taken:
            ids[text] = expected
        else:
            ids[text] = following
            if following in taken:
                raise InputError(f"{folder}: the ids of its tokens have gaps, so that {text!r:.60} gets none")
        following = max(following, ids[text] + 1)
        if expected is not None and expected != ids[text]:
            raise InputError(
                f"{folder}: token {text!r:.60} has the id {expected} in tokenizer_config.json or"
                f" added_tokens.json, and transformers gives it {ids[text]}; put it into tokenizer.json"
            )
        tokens.append({**token, "id": ids[text]})
    return tokens


def elsewhere(folder: Path, settings: JsonObject) -> Iterator[tuple[Token, int | None]]:
    """(token, the id that its file gives it) in the order in which transformers adds them."""
    held, roles = settings.get("added_tokens_decoder"), dict(settings)
    listed: list[tuple[Token, int | None]] = []
    if isinstance(held, dict):
        listed = [(_token(entry, False), number) for number, entry in sorted(_numbered(held), key=_first)]
    else:
        roles |= read_optional(folder / "special_tokens_map.json")
        added = read_optional(folder / "added_tokens.json")
        special = {_text(value) for value in _with_role(roles)}
        for text, number in sorted(added.items(), key=lambda entry: str(entry[1])):
            if type(number) is not int:
                raise InputError(
                    f"{folder / 'added_tokens.json'}: token {text!r:.60} has no number for an id"
                )
            flags = {"special": text in special, "normalized": text not in special}
            listed.append((_token({"content": text, **flags}, False), number))
        listed.sort(key=lambda entry: entry[1] or 0)
    if len(listed) > MOST:
        raise InputError(f"{folder} lists more than {MOST} added tokens")
    named = {_text(value) for value in _with_role(roles)}
    for token, number in listed:
        yield {**token, "special": token["special"] or token["content"] in named}, number
    for value in _with_role(roles):
        yield _token(value, True), None


def _with_role(settings: JsonObject) -> list[object]:
    """Values of special tokens: the usual roles, a model's own, and further ones."""
    values = [settings.get(f"{role}_token") for role in ROLES]
    values += [v for k, v in settings.items() if k.endswith("_token") and k[:-6] not in ROLES]
    more = settings.get("extra_special_tokens") or settings.get("additional_special_tokens")
    values += list(more.values()) if isinstance(more, dict) else more if isinstance(more, list) else []
    return [value for value in values if _text(value)]


def _token(value: object, special: bool) -> Token:
    """A token given as its text or as an object."""
    given = value if isinstance(value, dict) else {"content": value}
    if not _text(given):
        raise InputError(f"an added token must have a text, not {str(value)[:60]!r}")
    special = bool(given.get("special", special)) or special
    flags = {key: bool(given.get(key)) for key in ("lstrip", "rstrip", "single_word")}
    return {"content": _text(given), "special": special, **flags, "normalized": bool(given.get("normalized"))}


def _numbered(held: JsonObject) -> list[tuple[int, object]]:
    if bad := [key for key in held if not (key.isascii() and key.isdigit() and len(key) < 9)]:
        raise InputError(f"tokenizer_config.json: added_tokens_decoder has {bad[0]!r:.40}, which is no id")
    return [(int(key), entry) for key, entry in held.items()]


def _first(entry: tuple[int, object]) -> int:
    return entry[0]


def _text(value: object) -> str:
    """A token's text, given as such or as an object; "" for none."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


# -- flags --------------------------------------------------------------------------------------------------


def all_swallow(added: Iterable[JsonObject], vocabulary: Vocabulary) -> bool:
    """Whether exactly those tokens swallow white space behind them that llama.cpp lets do so for Phi-3."""
    markers = {
        vocabulary.texts[token]
        for token, kind in vocabulary.types.items()
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    }
    needed = KEEPING | {"</s>"}
    swallowing = {entry["content"] for entry in added if entry.get("rstrip")}
    return needed <= set(vocabulary.texts.values()) and swallowing == (markers | needed) - KEEPING


def deviations(added: Iterable[JsonObject], swallows: bool) -> list[Deviation]:
    """What llama.cpp does otherwise at tokens with flags. swallows: that it is told of rstrip."""
    found = []
    sides = ("lstrip",) if swallows else ("lstrip", "rstrip")
    stripping = [entry["content"] for entry in added if any(entry.get(side) for side in sides)]
    if stripping:
        found.append(
            Deviation(
                f"{_names(stripping)} white space beside it in Hugging Face's tokenizer, not in llama.cpp's",
                lambda text: beside(stripping, r"\s", text),
            )
        )
    whole = [entry["content"] for entry in added if entry.get("single_word")]
    if whole:
        found.append(
            Deviation(
                f"token {whole[0]!r:.60} is found inside words, too, by llama.cpp, and not by Hugging Face's"
                " tokenizer",
                lambda text: beside(whole, r"\w", text),
            )
        )
    return found


def beside(markers: Iterable[str], neighbour: str, text: str) -> bool:
    """Whether a character of that class stands beside one of the markers."""
    return any(
        re.search(f"{neighbour}{re.escape(marker)}|{re.escape(marker)}{neighbour}", text)
        for marker in markers
        if marker in text
    )


def _names(tokens: list[str]) -> str:
    if len(tokens) == 1:
        return f"token {tokens[0]!r:.60} swallows"
    return f"{len(tokens)} tokens such as {tokens[0]!r:.60} swallow"
