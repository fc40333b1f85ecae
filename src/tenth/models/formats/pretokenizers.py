"""Which of llama.cpp's pre-tokenizers a tokenizer.json defines, found from the definition itself.

A pre-tokenizer is a sequence of regular expressions that cut text into words before byte-pair merging.
llama.cpp has a fixed set of them under names (``tokenizer.ggml.pre``). Here both sides are brought to one
spelling and compared; a definition that llama.cpp lacks is refused rather than replaced by a similar one,
because the token ids would differ.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tenth.core.errors import InputError
from tenth.models.formats.hf import JsonObject
from tenth.models.formats.vocabulary import Deviation

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+{0}"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*{0}"
)
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
QWEN35 = rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|{_TAIL}".replace(
    r" ?[^\s\p{L}\p{N}]", r" ?[^\s\p{L}\p{M}\p{N}]"
)
UFAKZEKA = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
TEKKEN = _CASED.replace("{0}", "") + r"|\p{N}|" + _CASED_TAIL
GPT4O = _CASED.replace("{0}", CONTRACTION + "?") + r"|\p{N}{1,3}|" + _CASED_TAIL

CASED = Deviation(
    "llama.cpp tells upper from lower case only in ASCII,"
    " so cased letters beyond it may be cut into words differently",
    lambda text: not text.isascii(),
)
PUNCTUATION_BEHIND_NEWLINE = Deviation(
    "stock llama.cpp has no pre-tokenizer exactly like this tokenizer's: under"
    " 'qwen2' a punctuation mark between a"
    " newline or tab and a letter may be joined to the letter; all other text gets the same token ids",
    lambda text: re.search(r"[^\S ][^\s\w]\w|[^\S ]_\w", text) is not None,
)


@dataclass(frozen=True)
class Known:
    """A definition that llama.cpp has. names: by whether whole words in the vocabulary skip merging."""

    steps: tuple[str, ...]
    names: Mapping[bool, str]
    deviation: Deviation | None = None


KNOWN = (
    Known((GPT2,), {False: "gpt-2"}),
    Known((r"\p{N}", GPT2), {False: "smollm"}),
    Known((LLAMA3,), {True: "llama-bpe", False: "dbrx"}),
    Known((QWEN2,), {False: "qwen2"}),
    Known((QWEN35,), {False: "qwen35"}),
    Known((UFAKZEKA,), {False: "ufakzeka"}),
    Known((TEKKEN,), {True: "tekken"}, CASED),
    Known((GPT4O,), {False: "gpt-4o"}, CASED),
)

# Spellings that match the same text. Possessive quantifiers: what follows cannot match what they hold.
_SPELLINGS = (
    ("\r", r"\r"),
    ("\n", r"\n"),
    ("?+", "?"),
    ("++", "+"),
    (r"\p{N}{1}", r"\p{N}"),
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", CONTRACTION),
    ("'(?i:[sdmt]|ll|ve|re)", CONTRACTION),
    (r"\s*[\r\n]|", r"\s*[\r\n]+|"),
    (r"|\s+(?!\S)|\s", r"|\s+(?!\S)|\s+"),
    (r"|\s+(?!\S)|\s++", r"|\s+(?!\S)|\s+"),
)


def canonical(regex: str) -> str:
    """The regex in the spelling that KNOWN uses."""
    for spelling, ours in _SPELLINGS:
        regex = regex.replace(spelling, ours)
    return regex


def steps_of(definition: object) -> tuple[str, ...]:
    """tokenizer.json's pre_tokenizer of a byte-level BPE as a sequence of canonical regexes. InputError if it
    is none.
    """
    steps: list[str] = []
    byte_level = False
    for part in _flat(definition):
        kind = part.get("type")
        if kind == "Split":
            steps.append(_split(part))
        elif kind == "Digits" and part.get("individual_digits"):
            steps.append(r"\p{N}")
        elif kind == "ByteLevel":
            byte_level = True
            if part.get("add_prefix_space"):
                raise InputError(
                    "tokenizer.json: ByteLevel with add_prefix_space = true; llama.cpp's"
                    " BPE adds no space in front"
                )
            if part.get("use_regex", True):
                steps.append(GPT2)
        else:
            raise InputError(f"tokenizer.json: llama.cpp has no pre-tokenizer like {str(part)[:120]!r}")
    if not byte_level:
        raise InputError(
            "tokenizer.json: a BPE with neither a ByteLevel pre-tokenizer nor"
            " byte_fallback cannot be converted"
        )
    return tuple(steps)


def _flat(definition: object) -> Sequence[JsonObject]:
    if isinstance(definition, dict) and definition.get("type") == "Sequence":
        definition = definition.get("pretokenizers")
    given = definition if isinstance(definition, list) else [definition]
    parts = [part for part in given if isinstance(part, dict)]
    if len(parts) != len(given):
        raise InputError("tokenizer.json: its pre_tokenizer is malformed or missing")
    return parts


def _split(part: JsonObject) -> str:
    """A Split's regex. Removing what lies between matches is the same as isolating matches: ours leave
    nothing between.
    """
    pattern = part.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    way = (part.get("behavior"), bool(part.get("invert")))
    if not isinstance(regex, str) or way not in (("Isolated", False), ("Removed", True)):
        raise InputError(f"tokenizer.json: llama.cpp has no pre-tokenizer like {str(part)[:160]!r}")
    return canonical(regex)


@dataclass(frozen=True)
class Match:
    """What was recognised. ignore_merges is what llama.cpp will do under that name."""

    name: str
    ignore_merges: bool
    deviation: Deviation | None = None


def recognise(steps: tuple[str, ...], ignore_merges: bool, merges: Sequence[tuple[str, str]]) -> Match:
    """The pre-tokenizer with these steps. InputError names the regex and the nearest known one."""
    for known in KNOWN:
        if known.steps == steps:
            flag = ignore_merges if ignore_merges in known.names else not ignore_merges
            return Match(known.names[flag], flag, known.deviation)
    if steps == (QWEN2.replace(" ?[^", r"\s*[^"),) and not ignore_merges:
        return _any_space_before_punctuation(merges)
    shown = " then ".join(steps)
    names = {" then ".join(k.steps): next(iter(k.names.values())) for k in KNOWN}
    near = difflib.get_close_matches(shown, list(names), n=1, cutoff=0.0)[0]
    raise InputError(
        f"tokenizer.json: llama.cpp has no pre-tokenizer with the definition {shown!r};"
        f" the nearest is {names[near]!r}, {near!r}, which would give other token ids"
    )


def _any_space_before_punctuation(merges: Sequence[tuple[str, str]]) -> Match:
    r"""Qwen2's definition, but with ``\s*`` where Qwen2 has `` ?`` before punctuation.

    A run of white space before punctuation is one word with the punctuation here and several in Qwen2's. The
    tokens are equal all the same if no merge joins white space to white space, nor anything but one space to
    punctuation. What then remains: after a newline or tab, Qwen2's joins a punctuation mark to the letters
    behind it.
    """
    blank = set("ĠĊčĉ")
    for left, right in merges:
        if blank.issuperset(left) and (left != "Ġ" or right[0] in blank):
            raise InputError(
                "tokenizer.json: its pre-tokenizer takes all white space before"
                " punctuation into one word and its merges join"
                f" {left!r} with {right!r}; llama.cpp's nearest pre-tokenizer, 'qwen2',"
                " would give other token ids"
            )
    return Match("qwen2", False, PUNCTUATION_BEHIND_NEWLINE)
