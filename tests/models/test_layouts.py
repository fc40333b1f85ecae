"""Strangers' folders: transformers' model, or one line that says what is wrong; and a model's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from layouts import LAYOUTS, compared, make_layout, noise, save, tensors
from tiny import make_config, make_model

from tenth.core.errors import InputError
from tenth.models.checkpoint import open_checkpoint
from tenth.models.source import model_name, resolve

REFUSED = {
    "head_of_another_shape": "has shape",
    "no_head": "'lm_head.weight' is missing",
    "single_beside_shards": "remove the one that is older",
    "index_with_an_absent_tensor": "which does not hold it",
    "index_with_a_lost_head": "which does not hold it",
    "shard_without_an_index": r"no model.safetensors.index.json",
    "stray_shard": "does not name",
    "twice_with_other_values": "one tensor with different values.*remove one of them",
    "under_two_names": "one tensor with different values.*remove one of them",
    "float64": "stored as F64",
    "pickle_alone": "pickle",
    "another_shape": r"has shape \[64, 56\]",
    "missing_layer": "is missing",
    "extra_layer": "has no place",
    "adapter": "adapter_config.json",
    "distributed": "distributed checkpoint",
    "other_file": "transformers_weights",
    "quantization_config": "already quantised",
}
EYES = [
    "below_language_model.",
    "below_language_model.model.",
    "below_model.language_model.",
    "below_model.language_model.model.",
    "below_language_model.model.model.",
    "below_model.model.language_model.",
]
ELSEWHERE = ["below_text_model.", "below_transformer.", "below_base_model.model.model."]


def check(folder: Path, family: str, layout: str, message: str | None) -> None:
    reference = make_layout(folder, family, layout)
    found = compared(folder, reference)
    if message is None:
        assert found.verdict == "equal", found
        return
    assert found.verdict == "refused", found
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(folder).specs()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not name.startswith("below_")])
def test_layouts(layout: str, tmp_path: Path) -> None:
    check(tmp_path / "model", "llama", layout, REFUSED.get(layout))


@pytest.mark.parametrize("layout", EYES)
def test_the_language_model_of_a_model_with_eyes(layout: str, tmp_path: Path) -> None:
    check(tmp_path / "model", "gemma3", layout, None)
    check(tmp_path / "llama", "llama", layout, "has no place|is missing")


@pytest.mark.parametrize("layout", [*ELSEWHERE, "below_nothing", "below_model."])
def test_names_that_transformers_does_not_look_for(layout: str, tmp_path: Path) -> None:
    check(tmp_path / "model", "gemma3", layout, "not part of the language model")
    message = "is missing" if layout in ELSEWHERE else None
    check(tmp_path / "llama", "llama", layout, message)


@pytest.mark.parametrize(
    ("family", "verdict"),
    [
        ("mistral", "equal"),
        ("qwen3", "equal"),
        ("phi3", "equal"),
        ("smollm3", "equal"),
        ("gemma2", "refused"),
    ],
)
def test_a_head_beside_an_embedding_that_is_tied_by_config_alone(
    family: str, verdict: str, tmp_path: Path
) -> None:
    make_layout(tmp_path / "model", family, "other_head")
    found = compared(tmp_path / "model")
    assert found.verdict == verdict, found
    if verdict == "refused":
        assert "lm_head.weight differs" in found.why
    else:
        assert not open_checkpoint(tmp_path / "model").shape.tied


def test_the_head_of_a_model_with_eyes(tmp_path: Path) -> None:
    """Below language_model. transformers reads it, and it counts; elsewhere it is not looked for."""
    make_model(tmp_path / "model", "gemma3")
    found = tensors(tmp_path / "model")
    head = noise(found["language_model.model.embed_tokens.weight"])
    save(tmp_path / "model", found | {"language_model.lm_head.weight": head})
    assert compared(tmp_path / "model").verdict == "equal"
    assert not open_checkpoint(tmp_path / "model").shape.tied
    save(tmp_path / "model", found | {"model.language_model.lm_head.weight": head})
    with pytest.raises(InputError, match="not part of the language model"):
        open_checkpoint(tmp_path / "model")


def test_a_snapshot_of_the_cache_is_called_by_its_model(tmp_path: Path) -> None:
    cached = tmp_path / "models--Some-Org--Some--Model-1.5"
    for commit in ("0" * 40, "f" * 40):
        make_config("llama").save_pretrained(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("f" * 40)
    assert resolve(str(cached)) == cached / "snapshots" / ("f" * 40)
    for path in (cached, cached / "snapshots" / ("0" * 40)):
        assert model_name(path) == "Some-Org/Some--Model-1.5"
    (tmp_path / "link").symlink_to(cached / "snapshots" / ("0" * 40))
    assert model_name(tmp_path / "link") == "Some-Org/Some--Model-1.5"
    (tmp_path / "models--gpt2").mkdir()
    assert model_name(tmp_path / "models--gpt2") == "models--gpt2"
    (cached / "refs" / "main").write_text("../../secret")
    with pytest.raises(InputError, match="2 snapshots"):
        resolve(str(cached))
    plain = tmp_path / "snapshots" / ("0" * 40)
    make_config("llama").save_pretrained(plain)
    assert model_name(plain) == "0" * 40
    assert json.loads((resolve(str(plain)) / "config.json").read_text())["model_type"] == "llama"
