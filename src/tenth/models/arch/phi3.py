"""Phi-3, Phi-3.5 and Phi-4 (arXiv 2404.14219): fused q-k-v and gate-up, LongRoPE, and in Phi-4-mini partial
rotary.
"""

from __future__ import annotations

from tenth.models.arch import _rope
from tenth.models.arch._base import Architecture, Entry
from tenth.models.arch._config import Config, integer
from tenth.models.formats.vocabulary import Keys

BLOCK: dict[str, Entry] = {
    "attn_norm.weight": Entry("model.layers.{i}.input_layernorm.weight", "hidden"),
    "attn_qkv.weight": Entry(
        "model.layers.{i}.self_attn.qkv_proj.weight", "heads+kv_heads+kv_heads", "hidden"
    ),
    "attn_output.weight": Entry("model.layers.{i}.self_attn.o_proj.weight", "hidden", "heads"),
    "ffn_norm.weight": Entry("model.layers.{i}.post_attention_layernorm.weight", "hidden"),
    "ffn_up.weight": Entry("model.layers.{i}.mlp.gate_up_proj.weight", "ffn+ffn", "hidden"),
    "ffn_down.weight": Entry("model.layers.{i}.mlp.down_proj.weight", "hidden", "ffn"),
}


class Phi3(Architecture):
    """llama.cpp has switched this family's sliding window off; contexts stay within it."""

    def complete(self, config: Config) -> Config:
        """LongRoPE by its present name in the older key too, which transformers looks at first."""
        config = super().complete(config)
        if config.get("rope_scaling"):
            config["rope_scaling"] = config["rope_parameters"]
        return config

    def rope_parameters(self, config: Config) -> Config:
        """The rotary parameters, with LongRoPE's older names read too."""
        share = {"partial_rotary_factor": config.get("partial_rotary_factor", 1.0)}
        rope = share | _rope.parameters(config, self.rope_theta)
        if rope["rope_type"] in ("su", "yarn"):
            rope = _rope.completed(config, {**rope, "rope_type": "longrope"})
        return rope

    def extra_metadata(self, config: Config) -> Keys:
        """The context before stretching decides between the long and the short factors."""
        before = integer(config, "original_max_position_embeddings")
        return {f"{self.gguf_arch}.rope.scaling.original_context_length": before}

    def validate(self, config: Config) -> None:
        """The graph derives the head's length from hidden_size."""
        self.whole_heads(config)


ARCHITECTURE = Phi3(
    model_type="phi3",
    gguf_arch="phi3",
    defaults={
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "sliding_window": None,
    },
    table=BLOCK,
    partial=True,
    rope_kinds=("default", "longrope"),
)
