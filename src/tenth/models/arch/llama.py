"""Llama 1-3, SmolLM2 and everything of their shape (arXiv 2302.13971; Llama 3.1's rotary bands)."""

from __future__ import annotations

from tenth.core.errors import InputError
from tenth.models.arch._base import QKV_BIAS, Architecture, Entry
from tenth.models.arch._config import Config, flag

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

    def standalone_config(self, config: Config) -> Config:
        """Mistral's names where heads do not divide hidden_size, which transformers' Llama refuses; without a
        window Mistral computes the same.
        """
        heads = max(self.shape(config).heads)
        if self.shape(config).hidden % heads == 0:
            return {}
        if any(role.endswith(".bias") for role in self.block(config)):
            raise InputError(
                f"config.json: {heads} heads do not divide hidden_size, which transformers'"
                " Llama does not allow, and Mistral has no biases"
            )
        return {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}


ARCHITECTURE = Llama(
    model_type="llama",
    gguf_arch="llama",
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
    interleaved=True,
    rope_kinds=("default", "dynamic", "linear", "llama3", "yarn"),
)
