"""Configs of every family as they are published: complete, and as older releases wrote them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from tiny import VARIANTS, make_config
from transformers import PreTrainedConfig

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
