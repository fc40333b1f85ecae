"""The speed model tensor by tensor, in plain loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gguf

from tenth.core.records import Runtime, TensorSpec


def seconds(
    config: Mapping[str, Any],
    specs: Sequence[TensorSpec],
    types: Mapping[str, str],
    runtime: Runtime,
    depth: int,
    bandwidth: Mapping[str, float],
    overhead: float,
) -> float:
    """Of one decoded token of a model without sliding windows. bandwidth: B/s by type."""
    total, tied = overhead, True
    for spec in specs:
        if spec.name == "output.weight":
            tied = False
    for spec in specs:
        if spec.name == "token_embd.weight" and not tied:
            continue
        kind = types[spec.name] if spec.linear else "F32"
        weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        rows = spec.count // spec.shape[-1]
        total += rows * (spec.shape[-1] // weights * size) / bandwidth[kind]
    heads = config["num_attention_heads"]
    width = config.get("num_key_value_heads", heads) * config.get("head_dim", config["hidden_size"] // heads)
    for kind in (runtime.type_k.upper(), runtime.type_v.upper()):
        weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        for _ in range(config["num_hidden_layers"]):
            for _ in range(depth):
                total += width // weights * size / bandwidth[kind]
    return total
