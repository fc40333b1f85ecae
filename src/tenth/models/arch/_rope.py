"""Rotary settings: Hugging Face's several spellings in, GGUF keys and factor tensors out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tenth.core.errors import InputError
from tenth.models.arch._config import Config, integer, number, numbers

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def parameters(config: Config, theta: float = 10000.0, kind: str | None = None) -> dict[str, Any]:
    """The rotary parameters with "rope_type" and "rope_theta" filled in, from ``rope_parameters`` or
    ``rope_scaling``.

    kind names the layer type ("full_attention") where the parameters are given for each.
    """
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(found, dict) and kind is not None and isinstance(found.get(kind), dict):
        found = found[kind]
    if not isinstance(found, dict):
        raise InputError("config.json: rope_parameters / rope_scaling must be an object")
    rope = dict(found)
    name = rope.get("rope_type", rope.get("type")) or "default"
    rope["rope_type"] = "longrope" if name == "su" else name
    if rope["rope_type"] not in KINDS:
        raise InputError(f"config.json: unknown rope type {name!r:.60}; known: {', '.join(KINDS)}")
    rope["rope_theta"] = number({**config, **rope}, "rope_theta", theta, low=1.0)
    return rope


def metadata(arch: str, config: Config, rope: dict[str, Any], n_rot: int) -> dict[str, Any]:
    """The GGUF keys of these parameters; n_rot is the number of rotated values of a head."""
    keys: dict[str, Any] = {
        f"{arch}.rope.dimension_count": n_rot,
        f"{arch}.rope.freq_base": rope["rope_theta"],
    }
    kind = rope["rope_type"]
    if kind == "linear":
        keys[f"{arch}.rope.scaling.type"] = "linear"
        keys[f"{arch}.rope.scaling.factor"] = number(rope, "factor", low=1e-3, high=1e6)
    elif kind == "yarn":
        keys |= _yarn(arch, config, rope)
    elif kind == "longrope":
        keys[f"{arch}.rope.scaling.type"] = "longrope"
        keys[f"{arch}.rope.scaling.original_context_length"] = original(config, rope)
        keys[f"{arch}.rope.scaling.attn_factor"] = _longrope_attention(config, rope)
    return keys


def tensors(config: Config, rope: dict[str, Any], n_rot: int) -> dict[str, np.ndarray]:
    """Factor tensors [n_rot / 2], float32, by which llama.cpp divides the rotary frequencies."""
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3(config, rope, n_rot)}
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{length}.weight": np.array(
                numbers(rope, f"{length}_factor", n_rot // 2), np.float32
            )
            for length in ("long", "short")
        }
    return {}


def original(config: Config, rope: dict[str, Any]) -> int:
    """The context length that the model had before its rotary frequencies were stretched."""
    most = integer(config, "max_position_embeddings", 2048)
    return integer({**config, **rope}, "original_max_position_embeddings", most)


def _llama3(config: Config, rope: dict[str, Any], n_rot: int) -> np.ndarray:
    """Llama 3.1's frequency bands (transformers, modeling_rope_utils.py, _compute_llama3_parameters)."""
    factor = number(rope, "factor", 8.0, low=1e-3, high=1e6)
    low = number(rope, "low_freq_factor", 1.0, low=1e-6)
    high = number(rope, "high_freq_factor", 4.0, low=1e-6)
    if high <= low:
        raise InputError("config.json: rope high_freq_factor must be larger than low_freq_factor")
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)
    smooth = np.clip((original(config, rope) / wavelengths - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - smooth) / factor + smooth), np.float32)


def _longrope_attention(config: Config, rope: dict[str, Any]) -> float:
    """LongRoPE's scaling of the rotated values (arXiv 2402.13753, as in transformers)."""
    if rope.get("attention_factor") is not None:
        return number(rope, "attention_factor", low=1e-3, high=1e3)
    before = original(config, rope)
    scale = integer(config, "max_position_embeddings", before) / before
    if scale <= 1.0:
        scale = number(rope, "factor", 1.0, low=1e-3, high=1e6)
    return math.sqrt(1.0 + math.log(scale) / math.log(before)) if scale > 1.0 and before > 1 else 1.0


def _yarn(arch: str, config: Config, rope: dict[str, Any]) -> dict[str, Any]:
    """YaRN (arXiv 2309.00071). llama.cpp multiplies its attention factor, 0.1 ln(factor) + 1, by the file's
    own.
    """
    for key, usual in (
        ("beta_fast", 32),
        ("beta_slow", 1),
        ("truncate", True),
        ("mscale", None),
        ("mscale_all_dim", None),
    ):
        if rope.get(key, usual) not in (usual, None):
            raise InputError(
                f"config.json: YaRN with {key} = {rope[key]!r:.60} has no place in a GGUF of this model"
            )
    prefix = f"{arch}.rope.scaling"
    factor = number(rope, "factor", low=1.0, high=1e6)
    standard = 0.1 * math.log(factor) + 1.0
    return {
        f"{prefix}.type": "yarn",
        f"{prefix}.factor": factor,
        f"{prefix}.original_context_length": original(config, rope),
        f"{prefix}.attn_factor": number(rope, "attention_factor", standard, low=1e-3, high=1e3) / standard,
    }
