"""Mistral 7B and its dense relatives (arXiv 2310.06825). Without a window in llama.cpp, contexts stay within
the model's.
"""

from __future__ import annotations

from tenth.models.arch._base import Architecture
from tenth.models.arch._config import Config, only


class Mistral(Architecture):
    """Llama's shape without biases, with an optional sliding window."""

    def validate(self, config: Config) -> None:
        """llama.cpp insists on whole heads being rotated."""
        only(
            {**config, **self.rope(config)},
            "partial_rotary_factor",
            [1.0],
            1.0,
            "llama.cpp rotates whole heads here",
        )


ARCHITECTURE = Mistral(
    model_type="mistral",
    gguf_arch="llama",
    interleaved=True,
    rope_kinds=("default", "dynamic", "linear", "llama3", "yarn"),
    defaults={"num_key_value_heads": 8},
)
