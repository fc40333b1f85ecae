"""Phi-1, 1.5 and 2: attention and MLP side by side on one LayerNorm, biases everywhere, part of each head
rotated.
"""

from __future__ import annotations

from tenth.core.errors import InputError
from tenth.core.records import TensorSpec
from tenth.models.arch._base import QKV_BIAS, Architecture, Entry
from tenth.models.arch._config import Config, number, only
from tenth.models.formats.vocabulary import Keys

BLOCK: dict[str, Entry] = {
    "attn_norm.weight": Entry("model.layers.{i}.input_layernorm.weight", "hidden"),
    "attn_norm.bias": Entry("model.layers.{i}.input_layernorm.bias", "hidden"),
    "attn_q.weight": Entry("model.layers.{i}.self_attn.q_proj.weight", "heads", "hidden"),
    "attn_k.weight": Entry("model.layers.{i}.self_attn.k_proj.weight", "kv_heads", "hidden"),
    "attn_v.weight": Entry("model.layers.{i}.self_attn.v_proj.weight", "kv_heads", "hidden"),
    **QKV_BIAS,
    "attn_output.weight": Entry("model.layers.{i}.self_attn.dense.weight", "hidden", "heads"),
    "attn_output.bias": Entry("model.layers.{i}.self_attn.dense.bias", "hidden"),
    "ffn_up.weight": Entry("model.layers.{i}.mlp.fc1.weight", "ffn", "hidden"),
    "ffn_up.bias": Entry("model.layers.{i}.mlp.fc1.bias", "ffn"),
    "ffn_down.weight": Entry("model.layers.{i}.mlp.fc2.weight", "hidden", "ffn"),
    "ffn_down.bias": Entry("model.layers.{i}.mlp.fc2.bias", "hidden"),
}
FINAL: dict[str, Entry] = {
    "output_norm.weight": Entry("model.final_layernorm.weight", "hidden"),
    "output_norm.bias": Entry("model.final_layernorm.bias", "hidden"),
    "output.bias": Entry("lm_head.bias", "vocab"),
}


class Phi(Architecture):
    """The graph requires an output matrix and takes head_dim = hidden / heads for granted."""

    def epsilon(self, config: Config) -> Keys:
        """The key of LayerNorm's epsilon, not RMSNorm's."""
        key = f"{self.gguf_arch}.attention.layer_norm_epsilon"
        return {key: number(config, "layer_norm_eps", high=1.0)}

    def specs(self, config: Config) -> list[TensorSpec]:
        """A tied head is refused: the graph would need the embedding twice."""
        if self.shape(config).tied:
            raise InputError(
                "config.json: tie_word_embeddings = true, but llama.cpp's phi2 graph needs a head of its own"
            )
        return super().specs(config)

    def validate(self, config: Config) -> None:
        """No norm on q and k."""
        only(config, "qk_layernorm", [False], "llama.cpp's phi2 graph has no norm on q and k")
        self.whole_heads(config)


ARCHITECTURE = Phi(
    model_type="phi",
    gguf_arch="phi2",
    defaults={
        "vocab_size": 51200,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "gelu_new",
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "qk_layernorm": False,
        "partial_rotary_factor": 0.5,
    },
    partial=True,
    sequential=False,
    table=BLOCK,
    final=FINAL,
    rope_kinds=("default", "dynamic", "linear"),
    activations=("gelu_new", "gelu_pytorch_tanh"),
)
