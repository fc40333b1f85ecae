"""One look, at the start of a fit, whether llama.cpp's tokens are those of the folder's own tokenizer.

tokenizer.json is run by the `tokenizers` library, completed as transformers completes it; tokenizer.model by
sentencepiece. The texts are nasty: white space, scripts, numbers, contractions, code, and the markers of
special tokens with neighbours. A difference is an error, unless the tokenizer's conversion has named it
(`Deviation` in models/formats/vocabulary.py), when it stands among the notes of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tenth.core.errors import InputError
from tenth.models.formats.added import elsewhere
from tenth.models.formats.hf import JsonObject, read_optional
from tenth.models.formats.sentencepiece import processor
from tenth.runtime.tokens import Tokenizer

NASTY = (
    "",
    " ",
    "\n",
    "a",
    " a",
    "  leading and trailing  ",
    "two  spaces, three   spaces\tand\t\ttabs",
    "\n\n12\n 34\r\n\r\n  \n\t\n56 \n",
    "naïve café — Straße “quotes” … ½ ² ٣ Ⅷ",
    "e\u0301 combining a\u0308\u0323, zero\u200bwidth\u200d \ufeffmark, no\u00a0break and\u3000wide",
    "🙂👍🏽👨\u200d👩\u200d👧 flags🇩🇪",
    "你好，世界。こんにちは！한국어 텍스트",
    "שלום עולם, مرحبا بالعالم، नमस्ते, Привет мир, ΑΒΓ αβγ",
    "0 12 345 6789 1234567890 3.14159 1,000,000 0x1F 12th",
    "newlines\n\nand\n\n\nmore\r\n\r\nlines\n \n  \n\tmixed\t\t \n",
    "def f(x):\n    if x != 10 and y:\n        return {'a': [1, 2], \"b\": None}  # it's\n",
    "it's we'll I'VE they'RE 'tis rock'n'roll don't DON'T '",
    "non-stop .com @user #tag $5 100% a_b C++ <html> ((nested))!!??... /path/to\\file",
    'x\n-dash y\t.dot z\n"quoted"\n/slash\n_under',
    "ALLCAPS camelCase snake_case TitleCase HTTPServer iPhone",
    "\u2581 visible \u2581space\u2581",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaa!!!!!!!!!!!!!!!!!! ----------- ========",
    "<s>[INST] x [/INST] y</s><unk> <|im_start|>user\nhi<|im_end|>\n<|endoftext|><pad><0x41>",
    "<start_of_turn>user\nhi<end_of_turn>\n<|start_header_id|>x<|end_header_id|>\n\n<|eot_id|><|end|>",
    "control \x01\x02\x7f and \u0085 \u2028 lines",
    "\u00c5\u212b \ufb01ne \u2460 \uff21 \u1e9e \u0130i",
    "price: €5, £5, ₹5; 5°C, x² + y³ ≤ z ≠ ∞ → ⇒",
    "https://example.com/a?b=c&d=%20e#f mail@example.org 192.168.0.1 2024-01-31T12:00:00Z",
    "\U00010348 \U0001d4d0 \ue000 \ufffd",
)
MARKERS = 64  # of the tokenizer's own that are tried


def check_tokens(model: Path, tokens: Tokenizer) -> None:
    """InputError where llama.cpp gives a text other ids than the folder's tokenizer, for no reason known."""
    reference, source = _reference(model)
    known = tokens.info.deviations
    markers = tokens.markers()
    texts = [*NASTY, *_beside(markers[:MARKERS])]
    if source == "tokenizer.model":  # whose library reads no markers
        texts = [text for text in NASTY if not any(marker in text for marker in markers)]
    for text in texts:
        ours, theirs = tokens.encode(text).tolist(), reference(text)
        if ours == theirs or any(deviation.concerns(text) for deviation in known):
            continue
        if max(theirs, default=0) >= tokens.n_vocab:
            continue  # a token that the model has no row for
        raise InputError(
            f"{model}: llama.cpp gives other tokens than {source}: {text!r:.100} is {_apart(ours, theirs)};"
            " a model made of it would read other text than this one"
        )


def _beside(markers: Sequence[str]) -> Iterator[str]:
    """Texts with markers beside letters, white space and each other."""
    for marker in markers:
        yield f"a{marker}b"
        yield f"one {marker} two\n{marker}\n three{marker}{marker}"
    yield "".join(markers)


def _apart(ours: Sequence[int], theirs: Sequence[int]) -> str:
    """Where two lists of ids part."""
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    place = min(len(ours), len(theirs)) if place is None else place
    shown = [", ".join(map(str, ids[place : place + 4])) or "nothing" for ids in (ours, theirs)]
    return f"{shown[0]} in llama.cpp and {shown[1]} there, from its token {place} on"


def _reference(model: Path) -> tuple[Callable[[str], list[int]], str]:
    """(the folder's tokenizer, without tokens before and behind a text, the file that it is of)."""
    name = "tokenizer.json" if (model / "tokenizer.json").is_file() else "tokenizer.model"
    try:
        settings = read_optional(model / "tokenizer_config.json")
        if name == "tokenizer.json":
            return _from_json(model, settings), name
        return processor(model / name, settings)[0].encode, name
    except ImportError as error:
        raise InputError(
            f"{model}: reading its {name} needs {error.name}: pip install 'tenth[fit]'"
        ) from None
    except InputError:
        raise
    except Exception as error:  # both libraries raise their own kinds for a broken file
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{model}: its {name} cannot be opened: {reason:.200}") from None


def _from_json(model: Path, settings: JsonObject) -> Callable[[str], list[int]]:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Reference

    inner = Reference.from_file(str(model / "tokenizer.json"))
    inner.no_truncation()
    inner.no_padding()
    held = {token.content for token in inner.get_added_tokens_decoder().values()}
    for token, _ in elsewhere(model, settings):
        if token["content"] not in held:
            inner.add_tokens([AddedToken(**token)])

    def ids(text: str) -> list[int]:
        found: list[int] = inner.encode(text, add_special_tokens=False).ids
        return found

    return ids
