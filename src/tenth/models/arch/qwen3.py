"""Qwen3, dense (arXiv 2505.09388): Llama's shape with a norm on every head of q and k."""

from __future__ import annotations

from tenth.models.arch._base import LLAMA_BLOCK, QK_NORM, Architecture
from tenth.models.arch._config import Config, flag


class Qwen3(Architecture):
    """The sliding window counts only where it is switched on."""

    def window(self, config: Config) -> int | None:
        """The window of the layers above max_window_layers, if it is used at all."""
        return super().window(config) if flag(config, "use_sliding_window") else None

    def validate(self, config: Config) -> None:
        """The graph has no output bias, which comes with attention_bias."""
        self.no_biases(config, "attention_bias")


ARCHITECTURE = Qwen3(
    model_type="qwen3",
    gguf_arch="qwen3",
    table=LLAMA_BLOCK | QK_NORM,
    defaults={"head_dim": 128, "num_key_value_heads": 32},
)
