"""Rotary settings: transformers' several forms of them in, GGUF keys and factor tensors out."""

from __future__ import annotations

import math

import numpy as np

from tenth.core.errors import InputError
from tenth.models.arch._config import Config, integer, number, numbers, only
from tenth.models.formats.vocabulary import Keys

STRETCHED = ("llama3", "yarn", "longrope")  # kinds that know the context before they stretch it


def parameters(config: Config, theta: float) -> Config:
    """``rope_parameters`` as transformers 5 completes it (RotaryEmbeddingConfigMixin).

    ``rope_scaling``, where it is given, counts instead of ``rope_parameters``; the base and the rotated share
    may stand beside either. theta: the family's base where none is given.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict) or not given.keys().isdisjoint(("full_attention", "sliding_attention")):
        raise InputError(
            "config.json: rope_parameters / rope_scaling must be an object, the same for every layer"
        )
    return completed(config, {"rope_theta": config.get("rope_theta", theta), **given})


def completed(config: Config, rope: Config) -> Config:
    """The parameters of one kind of layer with what stands elsewhere in the config, or is left out."""
    rope = {"rope_type": rope.get("type", "default"), **rope}
    if config.get("partial_rotary_factor") is not None:
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    if rope["rope_type"] in STRETCHED:
        key = "original_max_position_embeddings"
        rope[key] = config[key] if key in config else rope.get(key, config["max_position_embeddings"])
    return rope


def metadata(arch: str, config: Config, rope: Config, n_rot: int) -> Keys:
    """The GGUF keys of these parameters; n_rot is the number of rotated values of a head."""
    keys: Keys = {
        f"{arch}.rope.dimension_count": n_rot,
        f"{arch}.rope.freq_base": number(rope, "rope_theta", low=1.0),
    }
    kind = rope["rope_type"]
    if kind == "linear":
        keys[f"{arch}.rope.scaling.type"] = "linear"
        keys[f"{arch}.rope.scaling.factor"] = number(rope, "factor", low=1e-3, high=1e6)
    elif kind == "yarn":
        keys |= _yarn(arch, rope)
    elif kind == "longrope":
        keys[f"{arch}.rope.scaling.type"] = "longrope"
        keys[f"{arch}.rope.scaling.original_context_length"] = _original(rope)
        keys[f"{arch}.rope.scaling.attn_factor"] = _longrope_attention(config, rope)
    return keys


def tensors(rope: Config, n_rot: int) -> dict[str, np.ndarray]:
    """Factor tensors [n_rot / 2], float32, by which llama.cpp divides the rotary frequencies."""
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3(rope, n_rot)}
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{length}.weight": np.array(
                numbers(rope, f"{length}_factor", n_rot // 2), np.float32
            )
            for length in ("long", "short")
        }
    return {}


def _original(rope: Config) -> int:
    """The context length that the model had before its rotary frequencies were stretched."""
    return integer(rope, "original_max_position_embeddings")


def _llama3(rope: Config, n_rot: int) -> np.ndarray:
    """Llama 3.1's frequency bands (transformers, modeling_rope_utils.py, _compute_llama3_parameters)."""
    factor = number(rope, "factor", low=1e-3, high=1e6)
    low, high = number(rope, "low_freq_factor", low=1e-6), number(rope, "high_freq_factor", low=1e-6)
    if high <= low:
        raise InputError("config.json: rope high_freq_factor must be larger than low_freq_factor")
    theta = number(rope, "rope_theta", low=1.0)
    wavelengths = 2 * math.pi * theta ** (np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)
    smooth = np.clip((_original(rope) / wavelengths - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - smooth) / factor + smooth), np.float32)


def _longrope_attention(config: Config, rope: Config) -> float:
    """LongRoPE's scaling of the rotated values (arXiv 2402.13753, as in transformers)."""
    if rope.get("attention_factor") is not None:
        return number(rope, "attention_factor", low=1e-3, high=1e3)
    before = _original(rope)
    scale = integer(config, "max_position_embeddings") / before
    if rope.get("factor") is not None:
        scale = number(rope, "factor", low=1e-3, high=1e6)
    return math.sqrt(1.0 + math.log(scale) / math.log(before)) if scale > 1.0 and before > 1 else 1.0


def _yarn(arch: str, rope: Config) -> Keys:
    """YaRN (arXiv 2309.00071). llama.cpp multiplies its attention factor, 0.1 ln(factor) + 1, by the file's
    own.
    """
    fixed = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "mscale": None, "mscale_all_dim": None}
    for key, usual in fixed.items():
        allowed = [usual] if key == "truncate" else [usual, None]
        only({key: usual} | rope, key, allowed, "YaRN with another has no place in a GGUF of this model")
    prefix = f"{arch}.rope.scaling"
    factor = number(rope, "factor", low=1.0, high=1e6)
    attention = standard = 0.1 * math.log(factor) + 1.0
    if rope.get("attention_factor") is not None:
        attention = number(rope, "attention_factor", low=1e-3, high=1e3)
    return {
        f"{prefix}.type": "yarn",
        f"{prefix}.factor": factor,
        f"{prefix}.original_context_length": _original(rope),
        f"{prefix}.attn_factor": attention / standard,
    }
