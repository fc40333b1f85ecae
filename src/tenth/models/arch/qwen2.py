"""Qwen2 and Qwen2.5 (arXiv 2412.15115): Llama's shape with biases on q, k and v."""

from __future__ import annotations

from tenth.models.arch._base import LLAMA_BLOCK, QKV_BIAS, Architecture
from tenth.models.arch._config import Config, flag


class Qwen2(Architecture):
    """The sliding window counts only where it is switched on."""

    def window(self, config: Config) -> int | None:
        """The window of the layers above max_window_layers, if it is used at all."""
        return super().window(config) if flag(config, "use_sliding_window") else None

    def validate(self, config: Config) -> None:
        """The graph derives the head's length from hidden_size."""
        self.whole_heads(config)


ARCHITECTURE = Qwen2(model_type="qwen2", gguf_arch="qwen2", table=LLAMA_BLOCK | QKV_BIAS)
