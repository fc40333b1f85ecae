"""Qwen2 and Qwen2.5 (arXiv 2412.15115): Llama's shape with biases on q, k and v."""

from __future__ import annotations

from tenth.models.arch._base import LLAMA_BLOCK, QKV_BIAS, Architecture, layer_types
from tenth.models.arch._config import Config, flag, integer

DEFAULTS: dict[str, object] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
NULLABLE = frozenset({"num_key_value_heads", "sliding_window"})


class Qwen(Architecture):
    """What Qwen2 and Qwen3 share: the sliding window counts only where it is switched on."""

    def complete(self, config: Config) -> Config:
        """The window is that of the layers from max_window_layers on."""
        config = super().complete(config)
        if not flag(config, "use_sliding_window"):
            config["sliding_window"] = None
        if config["layer_types"] is None:
            first = integer(config, "max_window_layers", low=0)
            layers, window = integer(config, "num_hidden_layers", high=512), config["sliding_window"]
            config["layer_types"] = layer_types(window is not None and i >= first for i in range(layers))
        return config


class Qwen2(Qwen):
    """llama.cpp's graph derives the head's length from hidden_size."""

    def validate(self, config: Config) -> None:
        """Refuse heads whose length is not hidden_size over the number of heads."""
        self.whole_heads(config)


ARCHITECTURE = Qwen2(
    model_type="qwen2", gguf_arch="qwen2", defaults=DEFAULTS, nullable=NULLABLE, table=LLAMA_BLOCK | QKV_BIAS
)
