"""The tensor types of llama.cpp's stock recipes, as `llama-quantize --imatrix` of b11549 picks them for dense
models.

Restated from src/llama-quant.cpp (llama_tensor_get_type_impl, tensor_type_fallback): a recipe is a base type,
plus exceptions by the tensor's role and layer. They are the baselines: what a person would take otherwise.
tests/test_recipes.py holds the file sizes of llama-quantize itself against these.
"""

# ruff: noqa: ARG005 -- every rule takes the same three arguments

from __future__ import annotations

from collections.abc import Callable, Sequence

from tenth.core.ggml import storage_type
from tenth.core.records import TensorSpec

# Rule: (layer, layers, query heads per key-value head) -> type, or None for the base type.
Rule = Callable[[int, int, int], str | None]

BASES = {
    "IQ1_S": "IQ1_S",
    "IQ1_M": "IQ1_M",
    "TQ1_0": "TQ1_0",
    "TQ2_0": "TQ2_0",
    "IQ2_XXS": "IQ2_XXS",
    "IQ2_XS": "IQ2_XS",
    "IQ2_S": "IQ2_XS",
    "IQ2_M": "IQ2_S",
    "Q2_K_S": "Q2_K",
    "Q2_K": "Q2_K",
    "IQ3_XXS": "IQ3_XXS",
    "IQ3_XS": "IQ3_S",
    "IQ3_S": "IQ3_S",
    "IQ3_M": "IQ3_S",
    "Q3_K_S": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_L": "Q3_K",
    "IQ4_XS": "IQ4_XS",
    "IQ4_NL": "IQ4_NL",
    "Q4_0": "Q4_0",
    "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K",
    "Q6_K": "Q6_K",
    "Q8_0": "Q8_0",
    "F16": "F16",
}
_SMALL = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
_FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def _always(name: str) -> Rule:
    return lambda layer, layers, gqa: name


def _first(name: str, part: int) -> Rule:
    """The first layers / part layers."""
    return lambda layer, layers, gqa: name if layer < layers // part else None


def _wide(name: str, otherwise: str | None = None) -> Rule:
    """Where at least four query heads share a key-value head."""
    return lambda layer, layers, gqa: name if gqa >= 4 else otherwise


def _more_bits(name: str) -> Rule:
    """The first and last eighth, and every third layer between."""
    return lambda i, n, gqa: name if i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2 else None


def _middle(name: str) -> Rule:
    return lambda i, n, gqa: name if n // 8 <= i < 7 * n // 8 else None


def _two_step(first: str, layers_first: int, then: str) -> Rule:
    return lambda layer, layers, gqa: first if layer < layers_first else then


_RULES: dict[str, dict[str, Rule]] = {
    **{
        r: {"attn_v": _wide("Q4_K", "Q2_K"), "ffn_down": _first("Q2_K", 8)}
        for r in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS")
    },
    **{
        r: {"attn_v": _wide("Q4_K", "IQ3_S"), "ffn_down": _first("IQ3_S", 8), "attn_output": _always("IQ3_S")}
        for r in ("IQ2_S", "IQ2_M")
    },
    "Q2_K": {"attn_v": _wide("Q4_K", "Q3_K"), "ffn_down": _always("Q3_K"), "attn_output": _always("Q3_K")},
    "Q2_K_S": {"attn_v": _wide("Q4_K"), "ffn_down": _first("Q4_K", 8)},
    "IQ3_XXS": {
        "attn_v": _wide("Q4_K"),
        "attn_q": _always("IQ2_S"),
        "attn_k": _always("IQ2_S"),
        "attn_output": _always("IQ3_S"),
    },
    "IQ3_XS": {
        "attn_v": _wide("Q4_K"),
        "attn_q": _always("IQ3_XXS"),
        "attn_k": _always("IQ3_XXS"),
        "ffn_gate": _middle("IQ3_XXS"),
        "ffn_up": _middle("IQ3_XXS"),
    },
    "IQ3_S": {"attn_v": _wide("Q4_K")},
    "IQ3_M": {
        "attn_v": _always("Q4_K"),
        "attn_output": _always("Q4_K"),
        "ffn_down": _first("Q4_K", 8),
        "attn_qkv": _always("Q4_K"),
    },
    "Q3_K_M": {
        "attn_v": _two_step("Q5_K", 2, "Q4_K"),
        "attn_output": _always("Q4_K"),
        "attn_qkv": _always("Q4_K"),
        "ffn_down": lambda layer, layers, gqa: "Q5_K" if layer < layers // 16 else "Q4_K",
    },
    "Q3_K_L": {
        "attn_v": _always("Q5_K"),
        "attn_output": _always("Q5_K"),
        "ffn_down": _always("Q5_K"),
        "attn_qkv": _always("Q4_K"),
    },
    "IQ4_XS": {"attn_v": _wide("Q5_K")},
    "IQ4_NL": {"attn_v": _wide("Q5_K")},
    "Q4_0": {"ffn_down": _first("Q4_1", 8)},
    "Q4_K_S": {
        "attn_v": lambda layer, layers, gqa: "Q5_K" if layer < 4 else None,
        "ffn_down": _first("Q5_K", 8),
    },
    "Q4_K_M": {"attn_v": _more_bits("Q6_K"), "ffn_down": _more_bits("Q6_K"), "attn_qkv": _always("Q5_K")},
    "Q5_K_M": {"attn_v": _more_bits("Q6_K"), "ffn_down": _more_bits("Q6_K"), "attn_qkv": _always("Q6_K")},
}
for _recipe in ("IQ1_S", "IQ1_M"):
    _RULES[_recipe] = {**_RULES[_recipe], "attn_output": _always("IQ2_XXS")}


def types(recipe: str, specs: Sequence[TensorSpec], gqa: int, importance: bool = True) -> dict[str, str]:
    """GGUF tensor name -> ggml type of every linear tensor. gqa: query heads per key-value head.

    importance: whether an importance matrix is used; without one Q4_0 keeps Q4_0 everywhere.
    """
    layers = 1 + max((spec.layer for spec in specs if spec.layer is not None), default=0)
    tied = all(spec.role != "output" for spec in specs)
    rules = _RULES.get(recipe, {}) if importance or recipe != "Q4_0" else {}
    chosen = {}
    for spec in specs:
        if spec.linear:
            name = BASES[recipe]
            if spec.role == "output" or (spec.role == "token_embd" and tied):
                name = _output(recipe, name, spec.columns)
            elif spec.role == "token_embd":
                name = _embedding(recipe, name)
            elif spec.role in rules and spec.layer is not None:
                name = rules[spec.role](spec.layer, layers, gqa) or name
            chosen[spec.name] = _held(name, spec.columns)
    return chosen


def _output(recipe: str, base: str, columns: int) -> str:
    if base == "F16":
        return base
    if not storage_type(base).holds(columns):
        return "Q8_0"
    if recipe in (*_SMALL, "IQ3_XXS"):
        return "Q5_K"
    return base if base == "Q8_0" else "Q6_K"


def _embedding(recipe: str, base: str) -> str:
    if recipe in ("IQ2_S", "IQ2_M", "IQ3_XXS"):
        return "IQ3_S"
    if recipe in ("TQ1_0", "TQ2_0"):
        return "Q4_K"
    return "Q2_K" if recipe in _SMALL else base


def _held(name: str, columns: int) -> str:
    if storage_type(name).holds(columns):
        return name
    fallback = _FALLBACK.get(name, "F16")
    return fallback if storage_type(fallback).holds(columns) else "F16"
