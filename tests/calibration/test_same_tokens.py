"""llama.cpp's tokens compared with the folder's own tokenizer: a difference is an error or in the notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from profiles import script
from tiny import sentencepiece_style, write_tokenizer

from tenth.calibration.same_tokens import NASTY, check_tokens
from tenth.core.errors import InputError
from tenth.runtime.tokens import Tokenizer, tokenizer

strangers_tokens = script("bench/strangers_tokens.py")
FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}


def model(folder: Path, kind: str, *added: dict[str, Any], **changes: Any) -> Path:
    """A folder of that kind of tokenizer with more added tokens; changes are of tokenizer.json."""
    write_tokenizer(folder, kind)
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 700}')
    data = json.loads((folder / "tokenizer.json").read_text()) | changes
    first = 1 + max(*data["model"]["vocab"].values(), *(e["id"] for e in data["added_tokens"]))
    data["added_tokens"] += [{**FLAGS, **entry, "id": first + i} for i, entry in enumerate(added)]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize(
    ("one", "other"),
    [("gpt-2", "smollm"), ("qwen2", "llama-bpe"), ("dbrx", "gpt-2"), ("llama", "gemma"), ("gpt-2", "qwen2")],
)
def test_another_tokenizer_is_seen(one: str, other: str, tmp_path: Path) -> None:
    """The error shows the text and where the ids part."""
    opened = tokenizer(model(tmp_path / "one", one))
    check_tokens(tmp_path / "one", opened)
    with pytest.raises(
        InputError, match=r"llama.cpp gives other tokens than tokenizer.json: '.+' is "
    ) as error:
        check_tokens(model(tmp_path / "other", other), opened)
    assert "\n" not in str(error.value)
    assert "from its token" in str(error.value)


@pytest.mark.parametrize("content", ["", "{", '{"model": {"type": "BPE"}}'])
def test_a_tokenizer_that_its_library_cannot_open(content: str, tmp_path: Path) -> None:
    opened = tokenizer(model(tmp_path / "m", "gpt-2"))
    (tmp_path / "m" / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="cannot be opened") as error:
        check_tokens(tmp_path / "m", opened)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flag", "said"),
    [("lstrip", "swallows white space"), ("rstrip", "swallows white space"), ("single_word", "inside words")],
)
@pytest.mark.parametrize("kind", ["gpt-2", "qwen2", "llama-bpe", "llama", "gemma"])
def test_flags_are_noted(flag: str, said: str, kind: str, tmp_path: Path) -> None:
    """And only texts with that token may differ."""
    opened = tokenizer(model(tmp_path, kind, {"content": "<|x|>", flag: True}))
    check_tokens(tmp_path, opened)
    assert any(said in note and "<|x|>" in note for note in opened.info.notes)
    assert not any(deviation.concerns("a <|y|> b<tool>c \n") for deviation in opened.info.deviations)
    assert any(deviation.concerns("a <|x|> b<|x|>c") for deviation in opened.info.deviations)


def phi3(folder: Path, swallowing: bool) -> Path:
    """Phi-3's special tokens: all but three swallow the white space behind them."""
    names = ["<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>"]
    data = json.loads(sentencepiece_style("llama").to_str())
    size = len(data["model"]["vocab"])
    for entry in data["added_tokens"]:
        entry["rstrip"] = swallowing and entry["content"] == "</s>"
    data["added_tokens"] += [
        {**FLAGS, "content": n, "rstrip": swallowing and n != names[0], "id": size + i}
        for i, n in enumerate(names)
    ]
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "config.json").write_text('{"model_type": "phi3", "vocab_size": 700, "eos_token_id": 2}')
    return folder


@pytest.mark.parametrize("name", ["phi-3-mine", "Phi3", "other", "modern-bert"])
@pytest.mark.parametrize("swallowing", [False, True])
def test_phi3_swallows_white_space_whatever_the_folder_is_called(
    name: str, swallowing: bool, tmp_path: Path
) -> None:
    """llama.cpp decides by the model's name alone, so the name in the file follows the tokenizer."""
    opened = tokenizer(phi3(tmp_path / name, swallowing))
    check_tokens(tmp_path / name, opened)
    assert opened.info.notes == []
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / name / "tokenizer.json"))
    for text in ("<|user|>\nHello<|end|>\n<|assistant|>\n", "a </s>  b <s>  c<|endoftext|> d", *NASTY):
        assert opened.encode(text).tolist() == theirs.encode(text, add_special_tokens=False).ids


def test_normalized_tokens_behind_a_prepended_space(tmp_path: Path) -> None:
    """Hugging Face looks for them with a space before them: special ones are noted, others refused."""
    opened = tokenizer(model(tmp_path / "special", "llama", {"content": "<|x|>", "normalized": True}))
    check_tokens(tmp_path / "special", opened)
    assert any("normalized = true" in note for note in opened.info.notes)
    with pytest.raises(InputError, match='"normalized": false'):
        tokenizer(
            model(tmp_path / "other", "llama", {"content": "<|x|>", "normalized": True, "special": False})
        )


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace(scheme: str, tmp_path: Path) -> None:
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    opened = tokenizer(model(tmp_path, "llama", normalizer=None, pre_tokenizer=space))
    check_tokens(tmp_path, opened)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("the cat", "a\nb", "naïve 中"):
        assert opened.encode(text).tolist() == theirs.encode(text, add_special_tokens=False).ids
    assert bool(opened.info.notes) == (scheme != "never")


SAMPLE = [
    ("qwen2", "llama-bpe", "PreTrainedTokenizerFast", ""),
    ("qwen2", "gpt-4o", "PreTrainedTokenizerFast", ""),
    ("qwen2", "gpt-2", "GPT2Tokenizer", ""),
    ("qwen2", "llama", "LlamaTokenizerFast", ""),
    ("qwen3", "llama-bpe", None, ""),
    ("phi", "llama", None, ""),
    ("gemma3_text", "gemma", "GemmaTokenizerFast", ""),
    ("mistral", "tokenizer.model", "LlamaTokenizerFast", ""),
    ("smollm3", "dbrx", "Qwen2Tokenizer", ""),
    ("llama", "smollm", "GPT2Tokenizer", ""),
    ("llama", "qwen2", None, "additional"),
    ("llama", "llama", None, "normalized"),
]


@pytest.mark.parametrize("cell", SAMPLE)
def test_a_sample_of_the_grid(cell: tuple[str, str, str | None, str]) -> None:
    """bench/strangers_tokens.py has all of it."""
    line = strangers_tokens.cell_of(*cell, also_transformers=False)
    assert line["outcome"] in ("equal", "noted"), line
    assert bool(line["differ"]) <= bool(line["notes"])


def test_what_is_opened_is_llama_cpp(tmp_path: Path) -> None:
    """No class that tokenizer_config.json names is asked."""
    folder = model(tmp_path, "gpt-2")
    before = tokenizer(folder).encode("x\n\n12 ½ ²")
    for name in ("GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizerFast", "NoSuchTokenizer", "BertTokenizer"):
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        opened: Tokenizer = tokenizer(folder)
        assert opened.encode("x\n\n12 ½ ²").tolist() == before.tolist()
