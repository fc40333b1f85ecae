"""The check at the start of a fit: our file in llama.cpp beside transformers' own reading of the folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from layouts import make_layout, set_config, split

from tenth.calibration import agreement
from tenth.core.errors import InputError
from tenth.core.jobs import Compute
from tenth.models import arch
from tenth.models.arch import Architecture
from tenth.models.arch._config import Config
from tenth.models.checkpoint import open_checkpoint

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gemma2", "gemma3_text", "gemma3", "smollm3")


def check(folder: Path) -> agreement.Agreement:
    return agreement.compare(folder, folder.parent, Compute(threads=1), lambda _: None)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_agrees(family: str, tmp_path: Path) -> None:
    tiny.make_model(tmp_path / "model", family)
    found = check(tmp_path / "model")
    assert found.kl < 1e-6
    assert 1 < found.tokens <= agreement.LENGTH
    assert not list(tmp_path.glob("*.gguf"))


def misread(model_type: str, method: str, change: Callable[[Any], Any]) -> Architecture:
    """The family with one of its answers changed."""
    sound = arch.family(model_type)

    def changed(self: Architecture, *args: Any) -> Any:
        return change(getattr(super(type(self), self), method)(*args))

    kind = type("Misread", (type(sound),), {method: changed})
    return kind(**{field.name: getattr(sound, field.name) for field in dataclasses.fields(sound)})


def _with(**changes: object) -> Callable[[Config], Config]:
    return lambda config: {**config, **changes}


MISREADINGS: dict[str, tuple[str, str, str, Callable[[Any], Any], str]] = {
    # family, variant, method, what it does wrong, the hint
    "rope_theta": (
        "qwen2",
        "untied",
        "rope_parameters",
        _with(rope_theta=100.0),
        "the tokens before agree: look at rope_theta",
    ),
    "rope_scaling": ("llama", "linear", "rope_parameters", _with(factor=1.0), "look at rope_theta"),
    "norm": ("qwen2", "untied", "epsilon", lambda keys: dict.fromkeys(keys, 0.5), "already the first token"),
    "offset": ("gemma3_text", "windows", "offset", lambda _: 0.0, "already the first token"),
    "cap": (
        "gemma2",
        "softcaps",
        "extra_metadata",
        lambda keys: {k: 100.0 if "final_logit" in k else v for k, v in keys.items()},
        "already the first token",
    ),
    "window": (
        "gemma3_text",
        "windows",
        "extra_metadata",
        lambda keys: {k: 64 if k.endswith("sliding_window") else v for k, v in keys.items()},
        "the tokens before agree",
    ),
}


@pytest.mark.parametrize("name", MISREADINGS)
def test_a_planted_misreading_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, variant, method, change, hint = MISREADINGS[name]
    tiny.make_model(tmp_path / "model", family, variant)
    assert check(tmp_path / "model").kl < 1e-6
    wrong = misread(family, method, change)
    sound = arch.family
    monkeypatch.setattr(arch, "family", lambda kind: wrong if kind == family else sound(kind))
    with pytest.raises(InputError, match=hint) as caught:
        check(tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_a_wrong_beginning_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tokenizers put a token before every text; a file that leaves it out is another model."""
    tiny.make_model(tmp_path / "model", "gemma3_text" if kind == "gemma" else "llama", vocab_size=600)
    tiny.write_tokenizer(tmp_path / "model", kind)
    check(tmp_path / "model")
    from tenth.models.formats import gguf

    sound = gguf.model_metadata
    monkeypatch.setattr(
        gguf, "model_metadata", lambda *a: {**sound(*a), "tokenizer.ggml.add_bos_token": False}
    )
    with pytest.raises(
        InputError, match="begins a text with no token of its own, the model's tokenizer with"
    ):
        check(tmp_path / "model")


@pytest.mark.parametrize("stated", [None, True, False])
def test_a_tokenizer_model_alone_begins_as_stated(stated: bool | None, tmp_path: Path) -> None:
    """Without a word on it, as llama.cpp begins and as transformers 4 did."""
    folder = tmp_path / "model"
    tiny.make_model(folder, vocab_size=420, bos_token_id=1, eos_token_id=2)
    (folder / "tokenizer.json").unlink()
    tiny.write_sentencepiece(folder)
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    more = {} if stated is None else {"add_bos_token": stated}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | more))
    check(folder)


def test_what_transformers_cannot_run_is_refused(tmp_path: Path) -> None:
    tiny.make_model(tmp_path / "model")
    places = split(tmp_path / "model")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    check(tmp_path / "model")
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(InputError, match=r"transformers cannot run this model.*metadata"):
        check(tmp_path / "model")


@pytest.mark.parametrize(
    "layout", ["other_head", "same_head", "head_alone", "shards", "mixed_types", "a_prefix_less"]
)
def test_weights_that_are_read_one_at_a_time_give_the_same(layout: str, tmp_path: Path) -> None:
    make_layout(tmp_path / "model", "llama", layout)
    checkpoint, ids = open_checkpoint(tmp_path / "model"), np.arange(5, 45)
    whole = agreement.transformers_logits(checkpoint, ids)
    np.testing.assert_array_equal(agreement.transformers_logits(checkpoint, ids, whole=0), whole)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "phi", "smollm3"])
def test_and_so_for_other_families(family: str, tmp_path: Path) -> None:
    tiny.make_model(tmp_path / "model", family, dtype="bfloat16")
    checkpoint, ids = open_checkpoint(tmp_path / "model"), np.arange(5, 45)
    whole = agreement.transformers_logits(checkpoint, ids)
    np.testing.assert_array_equal(agreement.transformers_logits(checkpoint, ids, whole=0), whole)


def test_an_empty_quantization_config_is_none(tmp_path: Path) -> None:
    tiny.make_model(tmp_path / "model")
    set_config(tmp_path / "model", quantization_config={})
    assert check(tmp_path / "model").kl < 1e-6
