"""What config.json leaves out is what transformers' config class of the family makes of it: key by key."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from configs import WITHOUT, configs, whole
from transformers import CONFIG_MAPPING

from tenth.core.errors import InputError
from tenth.models import arch
from tenth.models.arch import Architecture

# Where transformers has a model that we cannot run, or takes a null and then fails: what is said.
REFUSED = {
    ("left out", "head_dim"): "query_pre_attn_scalar",
    ("left out", "query_pre_attn_scalar"): "query_pre_attn_scalar",
    ("left out", "num_key_value_heads"): "not a multiple of",
    ("left out", "num_attention_heads"): "rotates [01] values",
    ("null", "attn_logit_softcapping"): "is null",
    ("null", "final_logit_softcapping"): "is null",
    ("null", "sliding_window"): "is null",
    ("null", "rope_theta"): "is null",
    ("null", "partial_rotary_factor"): "is null",
    ("null", "rope_local_base_freq"): "is null",
}


def completed(family: str, config: dict[str, Any]) -> Any:
    """transformers' config object of the language model."""
    found = CONFIG_MAPPING[family].from_dict(whole(family, config))
    return getattr(found, "text_config", found)


def loaded(config: dict[str, Any]) -> tuple[dict[str, Any], Architecture] | str:
    """What we make of it, or why we refuse it."""
    try:
        return arch.load(config)
    except InputError as error:
        return str(error)


def same(ours: tuple[dict[str, Any], Architecture], theirs: Any, family: str) -> None:
    """Every key, and every number that is made of them."""
    config, architecture = ours
    for key in architecture.defaults:
        if hasattr(theirs, key):
            assert config[key] == getattr(theirs, key), key
    assert config["rope_parameters"] == theirs.rope_parameters
    again, other = arch.load(whole(family, theirs.to_dict()))
    assert architecture.metadata(config) == other.metadata(again)
    assert architecture.specs(config) == other.specs(again)
    tensors, expected = architecture.extra_tensors(config), other.extra_tensors(again)
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[name], expected[name]) for name in tensors)
    assert architecture.context_limit(config) == other.context_limit(again)
    shape = architecture.shape(config)
    layers = theirs.num_hidden_layers
    assert shape.vocab == theirs.vocab_size
    assert shape.hidden == theirs.hidden_size
    assert shape.ffn == (theirs.intermediate_size,) * layers
    assert shape.heads == (theirs.num_attention_heads,) * layers
    assert shape.kv_heads == (theirs.num_key_value_heads,) * layers
    head_dim = getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
    assert shape.head_dims == (head_dim,) * layers
    assert shape.tied == theirs.tie_word_embeddings
    if "gemma" in family:
        assert shape.windows == tuple(
            theirs.sliding_window if kind == "sliding_attention" else 0 for kind in theirs.layer_types
        )
    else:
        assert set(shape.windows) == {0}


@pytest.mark.parametrize("family", arch.names())
def test_every_key_has_the_default_of_transformers(family: str) -> None:
    config = arch.family(family).complete({"model_type": family})
    theirs = completed(family, {})
    fields = {field.name for field in dataclasses.fields(theirs)} - WITHOUT
    defaults = arch.family(family).defaults
    assert fields - {"rope_parameters"} == {key for key in defaults if key in fields}
    for key in fields:
        assert config[key] == getattr(theirs, key), key


@pytest.mark.parametrize("how", ["left out", "null"])
@pytest.mark.parametrize("family", arch.names())
def test_every_key_in_turn(family: str, how: str) -> None:
    for config in configs(family):
        whole_one = arch.load(whole(family, config))
        same(whole_one, completed(family, config), family)
        for key in config:
            changed = {**config, key: None}
            if how == "left out":
                del changed[key]
            if key in WITHOUT or (family, key) == ("gemma3", "tie_word_embeddings"):
                kept, _ = arch.load(whole(family, changed))
                assert {**kept, key: 0} == {**whole_one[0], key: 0}, key
                continue
            try:
                theirs = completed(family, changed)
            except Exception:  # of many kinds
                theirs = None
            ours = loaded(whole(family, changed))
            if isinstance(ours, str):
                assert theirs is None or re.search(REFUSED[how, key], ours), (key, ours)
            else:
                assert theirs is not None, f"{key}: transformers refuses it"
                same(ours, theirs, family)


def test_the_language_model_of_gemma_3_is_what_text_config_says() -> None:
    """Published ones have no heads, no head size and no vocabulary; what stands outside does not count."""
    inner = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    inner["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}
    config, architecture = arch.load({"model_type": "gemma3", "text_config": inner, "hidden_size": 7})
    shape = architecture.shape(config)
    assert (shape.hidden, shape.vocab, shape.tied) == (2560, 262208, True)
    assert {*shape.heads, *shape.kv_heads, *shape.head_dims} == {8, 4, 256}
    assert shape.windows == tuple(1024 if (i + 1) % 6 else 0 for i in range(34))
    untied = {"model_type": "gemma3", "text_config": inner, "tie_word_embeddings": False}
    assert not architecture.shape(arch.load(untied)[0]).tied


def test_longrope_had_another_name() -> None:
    """transformers 5 takes "su" in the new key alone."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config, architecture = arch.load(
        {
            "model_type": "phi3",
            "hidden_size": 64,
            "num_attention_heads": 4,
            "rope_scaling": {"type": "su", **factors},
            "original_max_position_embeddings": 64,
        }
    )
    assert architecture.metadata(config)["phi3.rope.scaling.original_context_length"] == 64
    assert CONFIG_MAPPING["phi3"].from_dict(config).rope_parameters["rope_type"] == "longrope"


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "sliding_window is null"),
        ("qwen2", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "the same for every layer"),
        ("qwen3", {"partial_rotary_factor": 0.5}, "whole heads"),
        ("gemma2", {"use_bidirectional_attention": True}, "causal"),
        ("gemma3", {"rope_parameters": {"sliding_attention": 3}}, "must be an object"),
        (
            "gemma3_text",
            {"sliding_window_pattern": None, "layer_types": None},
            "sliding_window_pattern is null",
        ),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
    ],
)
def test_what_transformers_cannot_run_or_llama_cpp_has_no_place_for(
    family: str, changes: dict[str, Any], message: str
) -> None:
    config = {**configs(family)[0], **changes}
    if "partial_rotary_factor" in changes:
        del config["rope_parameters"]
    with pytest.raises(InputError, match=message):
        arch.load(whole(family, config))
