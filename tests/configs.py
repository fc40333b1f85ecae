"""Configs of every family as they are published: complete, and as older releases wrote them."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from layouts import Compared, compared
from tiny import VARIANTS, make_config, randomise, write_tokenizer
from transformers import PreTrainedConfig

from tenth.core.errors import InputError
from tenth.models import arch

# Keys of the config classes on which neither a GGUF nor a plan depends: the tokens are the tokenizer's.
WITHOUT = {
    *(field.name for field in dataclasses.fields(PreTrainedConfig)),
    *("attention_dropout", "resid_pdrop", "embd_pdrop"),
    *("initializer_range", "use_cache", "pretraining_tp"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}
# As configs were written before transformers 5.
OLDER: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {"rope_theta": 500.0, "rope_scaling": None},
        {
            "rope_theta": 500.0,
            "rope_scaling": {
                "type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 7.0}},
    ],
    "mistral": [{"rope_theta": 1e6, "head_dim": None, "sliding_window": 128}],
    "qwen2": [
        {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1, "rope_theta": 1e6},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    ],
    "qwen3": [{"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 0, "head_dim": 128}],
    "phi": [{"partial_rotary_factor": 0.25, "rope_theta": 100.0}],
    "phi3": [
        {"rope_theta": 100.0, "partial_rotary_factor": 0.5},
        {
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
            "original_max_position_embeddings": 64,
            "max_position_embeddings": 512,
        },
    ],
    "gemma2": [{"rope_theta": 100.0, "sliding_window_pattern": 3}],
    "gemma3_text": [
        {
            "num_hidden_layers": 7,
            "sliding_window_pattern": 3,
            "rope_theta": 1e6,
            "rope_local_base_freq": 100.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        }
    ],
    "smollm3": [
        {
            "no_rope_layer_interval": 4,
            "num_hidden_layers": 4,
            "use_sliding_window": True,
            "sliding_window": 32,
        }
    ],
}
OLDER["gemma3"] = OLDER["gemma3_text"]


def configs(family: str) -> list[dict[str, Any]]:
    """Complete configs of the family's language model, and such as older releases wrote."""
    found = [make_config(family, variant).to_dict() for variant in VARIANTS[family]]
    found = [config.get("text_config", config) for config in found]
    plain = {key: found[0][key] for key in found[0] if key not in ("rope_parameters", "layer_types")}
    plain = {key: value for key, value in plain.items() if not key.startswith(("sliding", "no_rope"))}
    return [*found, *({**plain, **older} for older in OLDER.get(family, []))]


def whole(family: str, config: dict[str, Any]) -> dict[str, Any]:
    """config.json of a family with that language model."""
    own = {**copy.deepcopy(config), "model_type": family}
    return {"model_type": "gemma3", "text_config": own} if family == "gemma3" else own


# -- every key changed in turn -------------------------------------------------------------------------------

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
BANDS = {
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SLIDING, FULL = "sliding_attention", "full_attention"
# Other values that published or edited configs have, whatever the family.
VALUES: dict[str, list[Any]] = {
    "hidden_act": [
        "silu",
        "swish",
        "gelu",
        "gelu_new",
        "gelu_pytorch_tanh",
        "gelu_fast",
        "quick_gelu",
        "relu",
    ],
    "hidden_activation": ["gelu_pytorch_tanh", "gelu", "silu", "gelu_fast", "relu"],
    "rms_norm_eps": [1e-2, 0.3],
    "layer_norm_eps": [1e-2, 0.3],
    "rope_theta": [100.0, 1e6],
    "partial_rotary_factor": [0.25, 0.5, 1.0],
    "attention_bias": [True],
    "mlp_bias": [True],
    "qk_layernorm": [True],
    "tie_word_embeddings": [True, False],
    "head_dim": [8, 32],
    "num_key_value_heads": [1, 4],
    "sliding_window": [8, 32, 4096],
    "use_sliding_window": [True],
    "max_window_layers": [0, 1],
    "layer_types": [[SLIDING, FULL], [FULL, SLIDING], [SLIDING] * 2, [FULL] * 2],
    "sliding_window_pattern": [1, 2, 3],
    "attn_logit_softcapping": [0.5, 5.0],
    "final_logit_softcapping": [0.5, 5.0],
    "query_pre_attn_scalar": [8, 64],
    "no_rope_layer_interval": [2, 3],
    "no_rope_layers": [[1] * 4, [0, 1, 1, 1]],
    "use_bidirectional_attention": [True],
    "is_causal": [False],
    "attention_dropout": [0.5],
    "pretraining_tp": [2],
    "use_cache": [False],
    "return_dict": [False],
    "output_hidden_states": [True],
    "attention_multiplier": [3.0],
    "logits_scaling": [3.0],
    "residual_multiplier": [3.0],
    "embedding_multiplier": [3.0],
    "rope_local_base_freq": [100.0],
    "max_position_embeddings": [32, 4096],
    "original_max_position_embeddings": [16],
    "dtype": ["bfloat16"],
    "torch_dtype": ["float16"],
    "rope_scaling": [
        {"type": "linear", "factor": 2.0},
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
        {"rope_type": "dynamic", "factor": 2.0},
        YARN,
        {**YARN, "attention_factor": 1.5},
        {**YARN, "beta_fast": 16},
        {**YARN, "truncate": False},
        {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
        {"rope_type": "llama3", **BANDS},
        {"rope_type": "longrope", "short_factor": [1.5] * 8, "long_factor": [2.5] * 8},
        {"rope_type": "default"},
    ],
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 100.0},
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
        {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        {"rope_theta": 100.0},
        {SLIDING: {"rope_theta": 100.0}, FULL: {"rope_theta": 1000.0}},
    ],
}


def changed(family: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what was done, the language model's config): every key left out, null, and given other values."""
    for number, config in enumerate(configs(family)):
        yield f"{number}: as it is", config
        for key in config:
            if key in ("model_type", "architectures", "transformers_version"):
                continue
            yield f"{number}: {key} left out", {name: value for name, value in config.items() if name != key}
            yield f"{number}: {key} null", {**config, key: None}
        for key, values in VALUES.items():
            for value in values:
                yield f"{number}: {key} = {json.dumps(value)}", {**config, key: value}


def make_changed(folder: Path, family: str, config: dict[str, Any]) -> str:
    """A random model of that config, as transformers reads it, with the config as it stands; why transformers
    makes none.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    raw = whole(family, config)
    if family == "gemma3":
        raw["vision_config"] = make_config("gemma3").to_dict()["vision_config"]
        raw["mm_tokens_per_image"] = 4
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw))
    auto = AutoModelForImageTextToText if family == "gemma3" else AutoModelForCausalLM
    try:
        read = type(make_config(family)).from_pretrained(folder)
        model = auto.from_config(read, attn_implementation="eager", dtype=torch.float32).eval()
        randomise(model)
        model.save_pretrained(folder)
    except Exception as error:  # of many kinds
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    (folder / "config.json").write_text(json.dumps(raw))
    write_tokenizer(folder, "gpt-2")
    return ""


def config_cell(folder: Path, family: str, config: dict[str, Any]) -> Compared:
    """A config in both; what transformers cannot make a model of should be refused by us, too."""
    if not (theirs := make_changed(folder, family, config)):
        return compared(folder)
    try:
        arch.load(json.loads((folder / "config.json").read_text()))
    except InputError as error:
        return Compared("theirs", why=f"{theirs:.100} | {error}")
    return Compared("unrun", why=theirs)
