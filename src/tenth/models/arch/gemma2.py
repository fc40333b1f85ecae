"""Gemma 2 (arXiv 2408.00118): norms around both halves of a block, soft-capped logits, every other layer
windowed.
"""

from __future__ import annotations

from typing import Any

from tenth.core.errors import InputError
from tenth.models.arch._base import LLAMA_BLOCK, Architecture, Entry
from tenth.models.arch._config import Config, integer, number

BLOCK: dict[str, Entry] = {
    **LLAMA_BLOCK,
    "post_attention_norm.weight": Entry("model.layers.{i}.post_attention_layernorm.weight", "hidden"),
    "ffn_norm.weight": Entry("model.layers.{i}.pre_feedforward_layernorm.weight", "hidden"),
    "post_ffw_norm.weight": Entry("model.layers.{i}.post_feedforward_layernorm.weight", "hidden"),
}


class Gemma(Architecture):
    """What Gemma 2 and 3 share: norm weights are stored minus one; windows are the graph's own."""

    period = 2  # of the full-attention layers, where the config does not say
    hidden_scale_layers = (
        46  # the size for which llama.cpp scales queries by hidden / heads instead of head_dim
    )

    def offset(self, role: str) -> float:
        """Gemma's RMSNorm multiplies by 1 + weight."""
        return 1.0 if "norm" in role else 0.0

    def window(self, config: Config) -> int | None:  # noqa: ARG002
        """None: llama.cpp's graph has the window."""
        return None

    def sliding(self, config: Config) -> list[bool]:
        """For each layer, whether it looks through the window."""
        layers = self.layers(config)
        kinds = config.get("layer_types")
        if kinds is None:
            period = integer(config, "sliding_window_pattern", self.period, high=512)
            return [bool((i + 1) % period) for i in range(layers)]
        known = ("sliding_attention", "full_attention")
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
            raise InputError(f"config.json: layer_types must be {layers} of {' or '.join(known)}")
        return [kind == "sliding_attention" for kind in kinds]

    def normalised_config(self, config: Config) -> Config:
        """Which layers have the window."""
        kinds = ["sliding_attention" if sliding else "full_attention" for sliding in self.sliding(config)]
        rest = {key: value for key, value in config.items() if key != "sliding_window_pattern"}
        return {**rest, "layer_types": kinds}

    def extra_metadata(self, config: Config) -> dict[str, Any]:
        """The window, and which layers have it."""
        sliding = self.sliding(config)
        if not any(sliding):
            raise InputError(
                "config.json: no layer has a sliding window, which is no Gemma that llama.cpp knows"
            )
        a = f"{self.gguf_arch}.attention"
        return {
            f"{a}.sliding_window": integer(config, "sliding_window", high=1 << 30),
            f"{a}.sliding_window_pattern": sliding,
        }

    def validate(self, config: Config) -> None:
        """The scale of the queries is fixed in the graph; head counts, in transformers."""
        axes, heads = self.axes(config), self.heads(config)[0]
        fixed = (
            axes["hidden"] // heads if self.layers(config) == self.hidden_scale_layers else axes["head_dim"]
        )
        if number(config, "query_pre_attn_scalar", 256.0) != fixed:
            raise InputError(
                f"config.json: query_pre_attn_scalar = {config['query_pre_attn_scalar']}, but llama.cpp's"
                f" {self.gguf_arch} graph scales by {fixed}"
            )
        if axes["hidden"] % heads:
            raise InputError(
                f"config.json: hidden_size {axes['hidden']} is not a multiple of {heads} heads,"
                " which transformers' Gemma does not allow"
            )
        self.no_biases(config, "attention_bias")


class Gemma2(Gemma):
    """Soft-capping on attention scores and logits; the head is always the embedding."""

    def extra_metadata(self, config: Config) -> dict[str, Any]:
        """Both caps: the graph always applies them."""
        return {
            **super().extra_metadata(config),
            f"{self.gguf_arch}.attn_logit_softcapping": number(
                config, "attn_logit_softcapping", 50.0, low=1e-3
            ),
            f"{self.gguf_arch}.final_logit_softcapping": number(
                config, "final_logit_softcapping", 30.0, low=1e-3
            ),
        }

    def validate(self, config: Config) -> None:
        """An untied head, besides."""
        super().validate(config)
        if not self.tied(config):
            raise InputError(
                "config.json: tie_word_embeddings = false, but llama.cpp's gemma2 graph ties the head"
            )


ARCHITECTURE = Gemma2(
    model_type="gemma2",
    gguf_arch="gemma2",
    sequential=False,
    table=BLOCK,
    rope_kinds=("default", "dynamic"),
    activations=("gelu_pytorch_tanh",),
    activation_key="hidden_activation",
    defaults={
        "tie_word_embeddings": True,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
    },
)
