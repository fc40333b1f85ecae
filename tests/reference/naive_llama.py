"""A llama forward pass written for reading: one token after the other, float64, no cache."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def load(path: Path) -> tuple[dict[str, np.ndarray], int, int]:
    """(weights by GGUF name, heads, key-value heads)."""
    reader = gguf.GGUFReader(path)
    weights = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors
    }
    heads, kv_heads = (
        int(reader.fields[f"llama.attention.{key}"].contents()) for key in ("head_count", "head_count_kv")
    )
    return weights, heads, kv_heads


def _norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean() + 1e-5) * weight


def _rotate(x: np.ndarray, position: int) -> np.ndarray:
    """Neighbouring pairs of one head, turned by position * 10000^(-2i/d)."""
    out = x.copy()
    for i in range(0, len(x), 2):
        angle = position * 10000.0 ** (-i / len(x))
        out[i] = x[i] * np.cos(angle) - x[i + 1] * np.sin(angle)
        out[i + 1] = x[i] * np.sin(angle) + x[i + 1] * np.cos(angle)
    return out


def logits(path: Path, tokens: list[int]) -> np.ndarray:
    """[tokens, vocabulary]."""
    w, heads, kv_heads = load(path)
    layers = sum(name.endswith("attn_norm.weight") for name in w)
    size = w["blk.0.attn_q.weight"].shape[0] // heads
    hidden = [w["token_embd.weight"][token] for token in tokens]
    for i in range(layers):
        b = {name.split(".", 2)[2]: value for name, value in w.items() if name.startswith(f"blk.{i}.")}
        keys, values, after = [], [], []
        for position, x in enumerate(hidden):
            n = _norm(x, b["attn_norm.weight"])
            q = (b["attn_q.weight"] @ n).reshape(heads, size)
            k = (b["attn_k.weight"] @ n).reshape(kv_heads, size)
            keys.append([_rotate(head, position) for head in k])
            values.append((b["attn_v.weight"] @ n).reshape(kv_heads, size))
            mixed = []
            for h in range(heads):
                shared = h // (heads // kv_heads)
                turned = _rotate(q[h], position)
                scores = np.array([turned @ key[shared] for key in keys]) / np.sqrt(size)
                share = np.exp(scores - scores.max())
                share /= share.sum()
                mixed.append(sum(s * value[shared] for s, value in zip(share, values, strict=True)))
            x = x + b["attn_output.weight"] @ np.concatenate(mixed)
            n = _norm(x, b["ffn_norm.weight"])
            gate = b["ffn_gate.weight"] @ n
            after.append(x + b["ffn_down.weight"] @ (gate / (1 + np.exp(-gate)) * (b["ffn_up.weight"] @ n)))
        hidden = after
    return np.array([w["token_embd.weight"] @ _norm(x, w["output_norm.weight"]) for x in hidden])
