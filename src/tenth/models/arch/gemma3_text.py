"""Gemma 3 (arXiv 2503.19786): norms on q and k, five windowed layers to one full, two rotary bases."""

from __future__ import annotations

from typing import Any

from tenth.core.errors import InputError
from tenth.models.arch import _rope
from tenth.models.arch._base import QK_NORM
from tenth.models.arch._config import Config, number, only
from tenth.models.arch.gemma2 import BLOCK, Gemma

DEFAULTS: dict[str, Any] = {
    "tie_word_embeddings": True,
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "max_position_embeddings": 131072,
}


class Gemma3(Gemma):
    """Windowed layers rotate with a base of their own; only full layers are stretched."""

    period = 6
    hidden_scale_layers = 62

    def rope(self, config: Config) -> dict[str, Any]:
        """Of the full-attention layers."""
        return _rope.parameters(self.complete(config), theta=1e6, kind="full_attention")

    def local_base(self, config: Config) -> float:
        """The rotary base of windowed layers."""
        nested = config.get("rope_parameters") or {}
        if isinstance(nested, dict) and isinstance(nested.get("sliding_attention"), dict):
            local = _rope.parameters(config, theta=1e4, kind="sliding_attention")
            if local["rope_type"] != "default":
                raise InputError(
                    "config.json: windowed layers with scaled rotary positions have no place in a gemma3 GGUF"
                )
            return float(local["rope_theta"])
        return number(config, "rope_local_base_freq", 10000.0, low=1.0)

    def extra_metadata(self, config: Config) -> dict[str, Any]:
        """The local base, and a cap where there is one."""
        keys = {
            **super().extra_metadata(config),
            f"{self.gguf_arch}.rope.freq_base_swa": self.local_base(config),
        }
        if config.get("final_logit_softcapping"):
            keys[f"{self.gguf_arch}.final_logit_softcapping"] = number(
                config, "final_logit_softcapping", low=1e-3
            )
        return keys

    def standalone_config(self, config: Config) -> dict[str, Any]:  # noqa: ARG002
        """The text model's own names."""
        return {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}

    def validate(self, config: Config) -> None:
        """Bidirectional attention and capped attention scores have no place."""
        super().validate(config)
        only(
            config,
            "attn_logit_softcapping",
            [None, 0],
            None,
            "llama.cpp's gemma3 graph caps no attention scores",
        )
        only(config, "use_bidirectional_attention", [False], False, "llama.cpp's gemma3 graph is causal")


ARCHITECTURE = Gemma3(
    model_type="gemma3_text",
    gguf_arch="gemma3",
    sequential=False,
    table={**BLOCK, **QK_NORM},
    rope_kinds=("default", "dynamic", "linear"),
    activations=("gelu_pytorch_tanh",),
    activation_key="hidden_activation",
    defaults=DEFAULTS,
)
