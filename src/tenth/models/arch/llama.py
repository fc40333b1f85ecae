"""Llama 1-3, SmolLM2 and everything of their shape (arXiv 2302.13971; Llama 3.1's rotary bands)."""

from __future__ import annotations

from typing import Any

from tenth.core.errors import InputError
from tenth.models.arch._base import QKV_BIAS, Architecture, Entry
from tenth.models.arch._config import Config, flag, only

OUTPUT_BIAS = {"attn_output.bias": Entry("model.layers.{i}.self_attn.o_proj.bias", "hidden")}
FFN_BIAS = {
    "ffn_gate.bias": Entry("model.layers.{i}.mlp.gate_proj.bias", "ffn"),
    "ffn_up.bias": Entry("model.layers.{i}.mlp.up_proj.bias", "ffn"),
    "ffn_down.bias": Entry("model.layers.{i}.mlp.down_proj.bias", "hidden"),
}


class Llama(Architecture):
    """Biases are optional; all of a head is rotated."""

    def block(self, config: Config) -> dict[str, Entry]:
        """Biases where the config has them."""
        attention = QKV_BIAS | OUTPUT_BIAS if flag(config, "attention_bias") else {}
        return {**self.table, **attention, **(FFN_BIAS if flag(config, "mlp_bias") else {})}

    def window(self, config: Config) -> int | None:  # noqa: ARG002
        """None: the family has full attention."""
        return None

    def standalone_config(self, config: Config) -> dict[str, Any]:
        """Mistral's names where heads do not divide hidden_size, which transformers' Llama refuses; without a
        window Mistral computes the same.
        """
        if self.axes(config)["hidden"] % self.heads(config)[0] == 0:
            return {}
        if any(role.endswith(".bias") for role in self.block(config)):
            raise InputError(
                f"config.json: {self.heads(config)[0]} heads do not divide hidden_size, which transformers'"
                " Llama does not allow, and Mistral has no biases"
            )
        return {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}

    def validate(self, config: Config) -> None:
        """llama.cpp insists on whole heads being rotated."""
        only(
            {**config, **self.rope(config)},
            "partial_rotary_factor",
            [1.0],
            1.0,
            "llama.cpp rotates whole heads here",
        )


ARCHITECTURE = Llama(
    model_type="llama",
    gguf_arch="llama",
    interleaved=True,
    rope_kinds=("default", "dynamic", "linear", "llama3", "yarn"),
)
