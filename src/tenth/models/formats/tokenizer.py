"""Tokenizers into GGUF keys, from tokenizer.json (or tokenizer.model) directly; torch and transformers are
not needed.

Two kinds exist. Byte-level BPE (GPT-2, Llama 3, Qwen) needs the name of a pre-tokenizer, see
pretokenizers.py. SentencePiece BPE (Llama 2, Mistral, Gemma, Phi-3) is merged by score in llama.cpp and by
rank of merges in tokenizer.json: both give the same tokens if each token has all its splits as merges, next
to each other; that is checked.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Container
from pathlib import Path

from tenth.core.errors import InputError
from tenth.models.formats import added, pretokenizers, special
from tenth.models.formats.bpe import SPACE, added_tokens, bpe, merges_of, parts_of
from tenth.models.formats.hf import JsonObject, read_json, read_optional
from tenth.models.formats.sentencepiece import from_model
from tenth.models.formats.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNREACHABLE,
    UNUSED,
    USER_DEFINED,
    Deviation,
    Keys,
    TokenizerInfo,
    Vocabulary,
)

MORE_AT_MOST = 64  # tokens that a tokenizer may have beyond the embedding, or 1/16 of them
COMPOSED = Deviation(
    "llama.cpp does not compose Unicode (NFC) before tokenizing, as this tokenizer does",
    lambda text: not unicodedata.is_normalized("NFC", text),
)


def tokenizer_metadata(folder: Path, config: JsonObject) -> TokenizerInfo:
    """The tokenizer's GGUF keys. InputError for one that llama.cpp cannot reproduce, naming what stands in
    the way.
    """
    settings = read_optional(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        data = read_json(folder / "tokenizer.json")
        data["added_tokens"] = added.completed(added_tokens(data), bpe(data)[1], folder, settings)
        info, vocabulary, added_bos_eos = _from_json(data)
        info.remarks += _contradictions(settings, info.keys, added_bos_eos)
    elif (folder / "tokenizer.model").is_file():
        info, vocabulary, added_bos_eos = from_model(folder / "tokenizer.model", settings)
    else:
        raise InputError(
            f"{folder} holds neither tokenizer.json nor tokenizer.model; give a complete model folder"
        )
    info.remarks += _tokens(info.keys, vocabulary, config)
    info.remarks += special.add_ids(info.keys, vocabulary, added_bos_eos, folder, settings, config)
    if template := special.chat_template(folder, settings):
        info.keys["tokenizer.chat_template"] = template
    return info


# -- tokenizer.json ------------------------------------------------------------------------------------------


def _from_json(data: JsonObject) -> tuple[TokenizerInfo, Vocabulary, tuple[str | None, str | None]]:
    """(keys so far, vocabulary, tokens that its template puts in front and behind)."""
    model, ids = bpe(data)
    vocabulary = Vocabulary({}, {}, {})
    for text, token in ids.items():
        vocabulary.add(token, text, NORMAL)
    merges = merges_of(model)
    convert = _sentencepiece if model.get("byte_fallback") else _byte_level
    info = convert(data, model, merges, vocabulary)
    entries = added_tokens(data)
    for entry in entries:
        token, text = entry["id"], entry["content"]
        score = vocabulary.scores.get(token, UNREACHABLE)
        if text == model.get("unk_token") and convert is _sentencepiece:
            vocabulary.add(token, text, UNKNOWN, score)
        elif entry.get("special"):
            vocabulary.add(token, text, CONTROL, score)
        elif vocabulary.texts.get(token) == text and SPACE in text:
            continue  # a run of visible spaces: real text reaches it through merges
        else:
            vocabulary.add(token, text, USER_DEFINED, score)
    if convert is _sentencepiece:
        info.deviations += _of_spaces(data, entries)
    info.swallows = added.all_swallow(entries, vocabulary)
    info.deviations += added.deviations(entries, info.swallows)
    return info, vocabulary, _template(data.get("post_processor"))


def _byte_level(
    data: JsonObject, model: JsonObject, merges: list[tuple[str, str]], vocabulary: Vocabulary
) -> TokenizerInfo:
    """GPT-2's scheme: bytes as printable letters, words cut by regexes."""
    ignore = bool(model.get("ignore_merges"))
    steps = pretokenizers.steps_of(data.get("pre_tokenizer"))
    match = pretokenizers.recognise(steps, ignore, merges)
    deviations = [match.deviation] if match.deviation else []
    if match.ignore_merges != ignore:
        reached = {left + right for left, right in merges} | {
            entry["content"] for entry in added_tokens(data)
        }
        if lost := [text for text in vocabulary.texts.values() if len(text) > 1 and text not in reached]:
            raise InputError(
                f"tokenizer.json: ignore_merges = {ignore} and token {lost[0]!r:.60} is made by no merge;"
                f" llama.cpp's {match.name!r} would give other token ids"
            )
    for part in parts_of(data.get("normalizer"), "normalizers"):
        if part.get("type") != "NFC":
            raise InputError(f"tokenizer.json: llama.cpp's BPE has no normalizer like {str(part)[:120]!r}")
        deviations.append(COMPOSED)
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": match.name,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
    }
    return TokenizerInfo(keys, deviations)


def _sentencepiece(
    data: JsonObject, model: JsonObject, merges: list[tuple[str, str]], vocabulary: Vocabulary
) -> TokenizerInfo:
    """SentencePiece's BPE: spaces made visible, bytes as <0xNN>, merging by score."""
    if model.get("ignore_merges"):
        raise InputError("tokenizer.json: ignore_merges with byte_fallback; llama.cpp has no such tokenizer")
    prefix = _space_prefix(data)
    whole = {entry["content"] for entry in added_tokens(data)}
    for token, score in _scores(merges, vocabulary, whole).items():
        vocabulary.scores[token] = score
    for token, text in vocabulary.texts.items():
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            vocabulary.types[token] = BYTE
    if sum(kind == BYTE for kind in vocabulary.types.values()) != 256:
        raise InputError("tokenizer.json: byte_fallback without all of <0x00>..<0xFF>; llama.cpp needs them")
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    return TokenizerInfo(keys)


def _scores(merges: list[tuple[str, str]], vocabulary: Vocabulary, given: Container[str]) -> dict[int, float]:
    """Scores under which merging by score is merging by rank; InputError if there are none.

    Every split of a token into two tokens must be a merge, and all merges that make a token must stand
    together in rank. (Runs of one character may be apart: converters interleave them, and either way they
    grow to the longest.)
    """
    ids = {text: token for token, text in vocabulary.texts.items()}
    splits: dict[str, int] = {}
    scores = dict.fromkeys(vocabulary.texts, UNREACHABLE)
    previous = ""
    for rank, (left, right) in enumerate(merges):
        text = left + right
        if text not in ids or left not in ids or right not in ids:
            raise InputError(
                f"tokenizer.json: merge {left!r:.40} + {right!r:.40} has a token that is not there"
            )
        if text not in splits:
            scores[ids[text]] = -float(rank)
        elif text != previous and len(set(text)) > 1:
            raise _not_sentencepiece(text)
        splits[text] = splits.get(text, 0) + 1
        previous = text
    for text in ids:
        whole = sum(text[:i] in ids and text[i:] in ids for i in range(1, len(text)))
        if text not in given and splits.get(text, 0) != whole:
            raise _not_sentencepiece(text)
    return scores


def _not_sentencepiece(text: str) -> InputError:
    return InputError(
        f"tokenizer.json: the merges that make {text!r:.60} are not those of a SentencePiece model;"
        " llama.cpp, which merges by score, would give other token ids"
    )


def _space_prefix(data: JsonObject) -> bool:
    """Whether a space is put in front of text, from the normalizer and the pre-tokenizer."""
    prefix, visible = False, False
    for part in parts_of(data.get("normalizer"), "normalizers"):
        if part.get("type") == "Prepend" and part.get("prepend") == SPACE:
            prefix = True
        elif (
            part.get("type") == "Replace"
            and part.get("pattern") == {"String": " "}
            and part.get("content") == SPACE
        ):
            visible = True
        else:
            raise InputError(f"tokenizer.json: llama.cpp has no normalizer like {str(part)[:120]!r}")
    for part in parts_of(data.get("pre_tokenizer"), "pretokenizers"):
        if (
            part.get("type") == "Metaspace"
            and part.get("replacement") == SPACE
            and part.get("split") is False
        ):
            prefix, visible = prefix or part.get("prepend_scheme", "always") != "never", True
        elif not (part.get("type") == "Split" and visible and part.get("pattern") == {"String": " "}):
            raise InputError(
                f"tokenizer.json: llama.cpp has no pre-tokenizer like {str(part)[:120]!r} with byte_fallback"
            )
    if not visible:
        raise InputError(
            "tokenizer.json: a byte_fallback BPE that does not make spaces visible cannot be converted"
        )
    return prefix


def _of_spaces(data: JsonObject, entries: list[JsonObject]) -> list[Deviation]:
    """Where a SentencePiece's tokenizer.json puts spaces in front of text that llama.cpp does not, or the
    other way round.
    """
    found = []
    markers = [entry["content"] for entry in entries]
    for part in parts_of(data.get("pre_tokenizer"), "pretokenizers"):
        if part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            found.append(
                Deviation(
                    "llama.cpp puts a space also in front of text that begins with one",
                    lambda text: text.startswith((" ", SPACE)) or added.beside(markers, rf"[ {SPACE}]", text),
                )
            )
            if part.get("prepend_scheme") == "first":
                found.append(
                    Deviation(
                        "llama.cpp puts a space after every special token, this tokenizer"
                        " only in front of the text",
                        lambda text: any(marker in text for marker in markers),
                    )
                )
    prepends = any(part.get("type") == "Prepend" for part in parts_of(data.get("normalizer"), "normalizers"))
    changed = [entry for entry in entries if prepends and entry.get("normalized")]
    for entry in changed:
        if not entry.get("special"):
            raise InputError(
                f"tokenizer.json: added token {entry['content']!r:.60} is looked for in normalized text,"
                " behind a space, by llama.cpp in the text as it is; make it"
                ' "normalized": false'
            )
    if changed:
        found.append(
            Deviation(
                f"special tokens such as {changed[0]['content']!r:.60} are found anywhere in a text by"
                " llama.cpp, by this tokenizer (normalized = true) only where a text or word begins",
                lambda text: any(entry["content"] in text for entry in changed),
            )
        )
    return found


def _contradictions(settings: JsonObject, keys: Keys, template: tuple[str | None, str | None]) -> list[str]:
    """Remarks where tokenizer_config.json says otherwise than tokenizer.json how a text begins or ends.

    template: what tokenizer.json's own template puts in front and behind.
    """
    found = []
    said, done = settings.get("add_prefix_space"), bool(keys.get("tokenizer.ggml.add_space_prefix"))
    if isinstance(said, bool) and said != done:
        found.append(
            f"tokenizer_config.json has add_prefix_space = {str(said).lower()}, tokenizer.json puts"
            f" {'a space' if done else 'no space'} in front of text: tokenizer.json counts"
        )
    for role, put in zip(("bos", "eos"), template, strict=True):
        wanted = settings.get(f"add_{role}_token")
        if isinstance(wanted, bool) and wanted != (put is not None):
            found.append(
                f"tokenizer_config.json has add_{role}_token = {str(wanted).lower()}, tokenizer.json's"
                f" template puts {'one' if put else 'none'}: tokenizer_config.json counts, as in llama.cpp's"
                " converter"
            )
    return found


def _template(processor: object) -> tuple[str | None, str | None]:
    """(token that the post-processor puts in front, behind), None where it puts none."""
    for part in parts_of(processor, "processors"):
        if (
            part.get("type") == "TemplateProcessing"
            and isinstance(part.get("single"), list)
            and part["single"]
        ):
            ends = [
                e.get("SpecialToken") if isinstance(e, dict) else None
                for e in (part["single"][0], part["single"][-1])
            ]
            first, last = (special.text_of(e, "id") for e in ends)
            return first, last
    return None, None


# -- keys of both kinds --------------------------------------------------------------------------------------


def _tokens(keys: Keys, vocabulary: Vocabulary, config: JsonObject) -> list[str]:
    """The lists, padded with unused tokens to the size of the embedding; remarks."""
    size = config.get("vocab_size")
    size = size if type(size) is int else max(vocabulary.texts) + 1
    remarks = _without_rows(vocabulary, size, keys["tokenizer.ggml.model"] == "llama")
    taken = set(vocabulary.texts.values())
    if len(taken) != len(vocabulary.texts):
        raise InputError("the tokenizer has two tokens with the same text, which llama.cpp does not allow")
    for token in range(size):
        if token not in vocabulary.texts:
            text = f"[PAD{token}]"
            while text in taken:
                text = f"[{text}]"
            vocabulary.add(token, text, UNUSED, UNREACHABLE)
    keys["tokenizer.ggml.tokens"] = [vocabulary.texts[i] for i in range(size)]
    keys["tokenizer.ggml.token_type"] = [vocabulary.types[i] for i in range(size)]
    if keys["tokenizer.ggml.model"] == "llama":
        keys["tokenizer.ggml.scores"] = [vocabulary.scores[i] for i in range(size)]
    return remarks


def _without_rows(vocabulary: Vocabulary, size: int, merged_by_score: bool) -> list[str]:
    """Drop the tokens that an embedding of `size` rows has none for; a remark that names them.

    They can be neither read nor said. InputError where they are too many to be of this model, or others are
    merged from them.
    """
    beyond = sorted(token for token in vocabulary.texts if token >= size)
    if not beyond:
        return []
    normal = [token for token in beyond if vocabulary.types[token] == NORMAL]
    if len(beyond) > max(MORE_AT_MOST, size // 16) or (normal and merged_by_score):
        raise InputError(
            f"the tokenizer has {len(beyond)} tokens from {size} ({vocabulary.texts[beyond[0]]!r:.40}) on,"
            f" config.json a vocab_size of {size}: it is another model's"
        )
    for token in beyond[3:]:
        vocabulary.remove(token)
    names = ", ".join(f"{vocabulary.remove(token)!r:.60}" for token in beyond[:3])
    return [
        f"left out are tokens that the model has no row for ({len(beyond)} from {size} on):"
        f" {names}{', ...' if len(beyond) > 3 else ''}"
    ]
