"""Gemma 2 (arXiv 2408.00118): norms around both halves of a block, soft-capped logits, every other layer
windowed.
"""

from __future__ import annotations

from tenth.core.errors import InputError
from tenth.models.arch._base import LLAMA_BLOCK, Architecture, Entry, layer_types
from tenth.models.arch._config import Config, integer, number, only
from tenth.models.formats.vocabulary import Keys

BLOCK: dict[str, Entry] = {
    **LLAMA_BLOCK,
    "post_attention_norm.weight": Entry("model.layers.{i}.post_attention_layernorm.weight", "hidden"),
    "ffn_norm.weight": Entry("model.layers.{i}.pre_feedforward_layernorm.weight", "hidden"),
    "post_ffw_norm.weight": Entry("model.layers.{i}.post_feedforward_layernorm.weight", "hidden"),
}
DEFAULTS: dict[str, object] = {  # that Gemma 2 and 3 share
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
}


class Gemma(Architecture):
    """What Gemma 2 and 3 share: norm weights are stored minus one; windows are the graph's own."""

    hidden_scale_layers = 46  # of the model whose queries llama.cpp scales by hidden / heads, not head_dim

    def full_period(self, config: Config) -> int:  # noqa: ARG002
        """Every so many layers one has full attention, where layer_types does not say it."""
        return 2

    def complete(self, config: Config) -> Config:
        """Which layers look through the window is written out as a list."""
        config = super().complete(config)
        if config["layer_types"] is None:
            layers, period = integer(config, "num_hidden_layers", high=512), self.full_period(config)
            config["layer_types"] = layer_types(bool((i + 1) % period) for i in range(layers))
        return config

    def offset(self, role: str) -> float:
        """Gemma's RMSNorm multiplies by 1 + weight."""
        return 1.0 if "norm" in role else 0.0

    def extra_metadata(self, config: Config) -> Keys:
        """The window, and which layers have it."""
        window, sliding = self.window(config), self.sliding(config)
        if window is None:
            raise InputError(
                "config.json: no layer has a sliding window, which is no Gemma that llama.cpp knows"
            )
        a = f"{self.gguf_arch}.attention"
        return {f"{a}.sliding_window": window, f"{a}.sliding_window_pattern": sliding}

    def validate(self, config: Config) -> None:
        """The scale of the queries is fixed in the graph; head counts, in transformers."""
        shape = self.shape(config)
        heads, hidden = max(shape.heads), shape.hidden
        fixed = hidden // heads if shape.layers == self.hidden_scale_layers else max(shape.head_dims)
        if number(config, "query_pre_attn_scalar") != fixed:
            raise InputError(
                f"config.json: query_pre_attn_scalar = {config['query_pre_attn_scalar']}, but llama.cpp's"
                f" {self.gguf_arch} graph scales by {fixed}"
            )
        if hidden % heads:
            raise InputError(
                f"config.json: hidden_size {hidden} is not a multiple of {heads} heads,"
                " which transformers' Gemma does not allow"
            )
        self.no_biases(config, "attention_bias")
        why = f"llama.cpp's {self.gguf_arch} graph is causal"
        only(config, "use_bidirectional_attention", [False, None], why)


class Gemma2(Gemma):
    """Soft-capping on attention scores and logits; the head is always the embedding."""

    def extra_metadata(self, config: Config) -> Keys:
        """Both caps: the graph always applies them."""
        return {
            **super().extra_metadata(config),
            f"{self.gguf_arch}.attn_logit_softcapping": number(config, "attn_logit_softcapping", low=1e-3),
            f"{self.gguf_arch}.final_logit_softcapping": number(config, "final_logit_softcapping", low=1e-3),
        }

    def validate(self, config: Config) -> None:
        """Refuse an untied head too."""
        super().validate(config)
        if not self.shape(config).tied:
            raise InputError(
                "config.json: tie_word_embeddings = false, but llama.cpp's gemma2 graph ties the head"
            )


ARCHITECTURE = Gemma2(
    model_type="gemma2",
    gguf_arch="gemma2",
    defaults={
        "vocab_size": 256000,
        **DEFAULTS,
        "max_position_embeddings": 8192,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "use_bidirectional_attention": None,
    },
    nullable=frozenset({"sliding_window", "final_logit_softcapping", "attn_logit_softcapping"}),
    sequential=False,
    windowed=True,
    table=BLOCK,
    rope_kinds=("default", "dynamic"),
    activations=("gelu_pytorch_tanh",),
    activation_key="hidden_activation",
)
