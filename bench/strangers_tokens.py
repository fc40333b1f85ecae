"""Whether llama.cpp gives the ids of its own library to tokenizers of every family, kind and class.

    python bench/strangers_tokens.py [--part 1/4]

Prints one JSON line a cell. A cell is a folder with a config.json of a family, a tokenizer of some kind (of
tests/tiny.py, and tokenizer.model alone), and in tokenizer_config.json a class, or another change. `outcome`
is "equal" (all texts have the same ids in llama.cpp and in tokenizers or sentencepiece), "noted" (some do
not, and the notes of the plan say where), "refused" (with `said`), or "different": that is a silent one, of
which there must be none. `transformers` says whether AutoTokenizer, which rebuilds some tokenizers, agrees.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tenth.calibration.same_tokens import NASTY, check_tokens
from tenth.core.errors import InputError
from tenth.runtime.tokens import Tokenizer, tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import tiny

FAMILIES = tuple(tiny.VARIANTS)
KINDS = (
    *("gpt-2", "smollm", "qwen2", "qwen35", "llama-bpe", "dbrx", "tekken", "gpt-4o", "any-space"),
    *("llama", "gemma", "tokenizer.model"),
)
CLASSES = (
    None,
    "PreTrainedTokenizerFast",
    "GPT2Tokenizer",
    "LlamaTokenizerFast",
    "Qwen2Tokenizer",
    "GemmaTokenizerFast",
)
SIZE = 700  # rows of the embedding, more than any of the tokenizers has tokens
EXTRA = {"content": "<|extra|>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
TEXTS = (*NASTY, "a<|extra|>b", "one <|extra|> two", "<|extra|>\n<|extra|> x", "a<tool>b", " <tool> c")

Change = Callable[[dict[str, Any], dict[str, Any]], None]  # of tokenizer.json, tokenizer_config.json


def _flagged(**flags: bool) -> Change:
    def change(data: dict[str, Any], settings: dict[str, Any]) -> None:
        del settings
        data["added_tokens"].append({**EXTRA, "special": True, **flags, "id": _next(data)})

    return change


def _next(data: dict[str, Any]) -> int:
    ids: list[int] = [*data["model"]["vocab"].values(), *(entry["id"] for entry in data["added_tokens"])]
    return 1 + max(ids)


def _put(key: str, value: Any) -> Change:
    def change(data: dict[str, Any], settings: dict[str, Any]) -> None:
        del settings
        data[key] = value

    return change


def _set(key: str, value: Any) -> Change:
    def change(data: dict[str, Any], settings: dict[str, Any]) -> None:
        settings[key] = {str(_next(data)): {**EXTRA, "special": True}} if value is EXTRA else value

    return change


def _metaspace(scheme: str) -> Change:
    def change(data: dict[str, Any], settings: dict[str, Any]) -> None:
        del settings
        data["normalizer"] = None
        space = {"type": "Metaspace", "replacement": tiny.SPACE, "prepend_scheme": scheme, "split": False}
        data["pre_tokenizer"] = space

    return change


BYTES = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
CUT = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
VARIANTS: dict[str, Change] = {
    "added": _flagged(),
    "added, not special": _flagged(special=False),
    "lstrip": _flagged(lstrip=True),
    "rstrip": _flagged(rstrip=True),
    "single_word": _flagged(single_word=True),
    "normalized": _flagged(normalized=True),
    "normalized, not special": _flagged(normalized=True, special=False),
    "by id": _set("added_tokens_decoder", EXTRA),
    "additional": _set("additional_special_tokens", ["<|extra|>"]),
    "role": _set("mask_token", "<|extra|>"),
    "add_prefix_space": _set("add_prefix_space", True),
    "no add_prefix_space": _set("add_prefix_space", False),
    "NFC": _put("normalizer", {"type": "NFC"}),
    "NFKC": _put("normalizer", {"type": "NFKC"}),
    "lowercase": _put("normalizer", {"type": "Lowercase"}),
    "truncated": _put("truncation", CUT),
    "Metaspace first": _metaspace("first"),
    "Metaspace always": _metaspace("always"),
    "Metaspace never": _metaspace("never"),
    "word pieces of bytes": _put(
        "pre_tokenizer",
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    ),
}


def cells() -> Iterator[dict[str, Any]]:
    """Every cell's line, one after the other."""
    for run in tasks():
        yield run()


def tasks() -> list[Callable[[], dict[str, Any]]]:
    """What makes each cell's line: families, kinds and classes, then every kind's variants."""
    grid = [(family, kind, name, "") for family in FAMILIES for kind in KINDS for name in CLASSES]
    more = [("llama", kind, None, name) for kind in KINDS if kind != "tokenizer.model" for name in VARIANTS]
    return [lambda cell=cell: cell_of(*cell) for cell in [*grid, *more]]  # type: ignore[misc]


def cell_of(
    family: str, kind: str, name: str | None, variant: str, also_transformers: bool = True
) -> dict[str, Any]:
    """One cell's line."""
    line: dict[str, Any] = {"family": family, "kind": kind, "class": name, "variant": variant}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        _write(model, family, kind, name, variant)
        reference = _reference(model)
        if also_transformers:
            line["transformers"] = _transformers(model, reference)
        try:
            ours = tokenizer(model)
            check_tokens(model, ours)
        except InputError as error:
            return {**line, "outcome": "refused", "said": str(error).replace(str(model), "MODEL")}
        return {**line, **_compared(ours, reference)}


def _compared(ours: Tokenizer, reference: Callable[[str], list[int]]) -> dict[str, Any]:
    texts = [text for text in TEXTS if ours.encode(text).tolist() != reference(text)]
    notes = ours.info.notes
    outcome = "equal" if not texts else "noted" if notes else "different"
    return {"outcome": outcome, "texts": len(TEXTS), "differ": texts, "notes": notes}


def _write(model: Path, family: str, kind: str, name: str | None, variant: str) -> None:
    """The cell's folder, without weights."""
    model.mkdir()
    tiny.make_config(family, vocab_size=SIZE).save_pretrained(model)
    if kind == "tokenizer.model":
        tiny.write_sentencepiece(model)
        settings: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    else:
        tiny.write_tokenizer(model, kind)
        data = json.loads((model / "tokenizer.json").read_text())
        settings = json.loads((model / "tokenizer_config.json").read_text())
        if variant:
            VARIANTS[variant](data, settings)
            (model / "tokenizer.json").write_text(json.dumps(data))
    settings.pop("tokenizer_class", None)
    if name:
        settings["tokenizer_class"] = name
    (model / "tokenizer_config.json").write_text(json.dumps(settings))


def _reference(model: Path) -> Callable[[str], list[int]]:
    """The ids that the file's own library gives, with the tokens that other files of the folder add."""
    if not (model / "tokenizer.json").is_file():
        return _pieces(model / "tokenizer.model")
    import tokenizers

    inner = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    inner.no_truncation()
    if "<|extra|>" in (model / "tokenizer_config.json").read_text():
        inner.add_special_tokens([tokenizers.AddedToken("<|extra|>", normalized=False)])
    return lambda text: list(inner.encode(text, add_special_tokens=False).ids)


def _pieces(path: Path) -> Callable[[str], list[int]]:
    """sentencepiece's ids; it reads no markers, so that they are put between its texts, as llama.cpp does."""
    import sentencepiece

    inner = sentencepiece.SentencePieceProcessor(model_file=str(path))
    markers = {piece: inner.piece_to_id(piece) for piece in ("<s>", "</s>", "<unk>")}

    def ids(text: str) -> list[int]:
        found: list[int] = []
        for part in re.split("(<s>|</s>|<unk>)", text):
            found += [markers[part]] if part in markers else inner.encode(part)
        return found

    return ids


def _transformers(model: Path, reference: Callable[[str], list[int]]) -> str:
    """Whether AutoTokenizer gives the ids of the file's own library."""
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(model, local_files_only=True)
        same = [theirs(text, add_special_tokens=False)["input_ids"] == reference(text) for text in TEXTS]
    except Exception as error:  # it raises many kinds
        return f"refuses: {type(error).__name__}"
    return "agrees" if all(same) else f"differs in {len(same) - sum(same)} of {len(same)} texts"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--part", default="1/1", help="number/of: so that several can run one after the other"
    )
    number, of = map(int, parser.parse_args().part.split("/"))
    every = tasks()
    for run in every[(number - 1) * len(every) // of : number * len(every) // of]:
        print(json.dumps(run(), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
