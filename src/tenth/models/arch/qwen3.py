"""Qwen3, dense (arXiv 2505.09388): Llama's shape with a norm on every head of q and k."""

from __future__ import annotations

from tenth.models.arch._base import LLAMA_BLOCK, QK_NORM
from tenth.models.arch._config import Config
from tenth.models.arch.qwen2 import DEFAULTS, NULLABLE, Qwen


class Qwen3(Qwen):
    """llama.cpp's graph has no output bias, which comes with attention_bias."""

    def validate(self, config: Config) -> None:
        """Refuse biases, for which the graph has no slots."""
        self.no_biases(config, "attention_bias")


ARCHITECTURE = Qwen3(
    model_type="qwen3",
    gguf_arch="qwen3",
    defaults={**DEFAULTS, "head_dim": 128, "attention_bias": False},
    nullable=NULLABLE,
    table=LLAMA_BLOCK | QK_NORM,
)
