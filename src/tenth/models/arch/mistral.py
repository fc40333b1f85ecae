"""Mistral 7B and its dense relatives (arXiv 2310.06825): Llama's shape without biases, with an optional
sliding window. llama.cpp has no window for them, so contexts stay within the model's.
"""

from __future__ import annotations

from tenth.models.arch._base import Architecture

ARCHITECTURE = Architecture(
    model_type="mistral",
    gguf_arch="llama",
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "sliding_window": 4096,
    },
    nullable=frozenset({"sliding_window"}),
    interleaved=True,
    rope_kinds=("default", "dynamic", "linear", "llama3", "yarn"),
)
