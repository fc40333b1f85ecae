"""A random llama-shaped GGUF with a byte-level vocabulary, written on the spot by the reference writer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def vocabulary(size: int) -> tuple[list[str], list[str]]:
    """`size` tokens: the end of text, the bytes, and merges of what came before."""
    tokens = ["<|end|>", *byte_alphabet()]
    known, merges = set(tokens), []
    rng = np.random.default_rng(size)
    while len(tokens) < size:
        a, b = (tokens[i] for i in rng.integers(1, len(tokens), 2))
        if len(a + b) <= 12 and a + b not in known:
            tokens.append(a + b)
            known.add(a + b)
            merges.append(f"{a} {b}")
    return tokens, merges


def shapes(hidden: int, ffn: int, layers: int, vocab: int, kv_width: int) -> dict[str, tuple[int, ...]]:
    """GGUF tensor name -> numpy shape, in file order."""
    result: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, hidden)}
    for i in range(layers):
        result |= {
            f"blk.{i}.attn_norm.weight": (hidden,),
            f"blk.{i}.attn_q.weight": (hidden, hidden),
            f"blk.{i}.attn_k.weight": (kv_width, hidden),
            f"blk.{i}.attn_v.weight": (kv_width, hidden),
            f"blk.{i}.attn_output.weight": (hidden, hidden),
            f"blk.{i}.ffn_norm.weight": (hidden,),
            f"blk.{i}.ffn_gate.weight": (ffn, hidden),
            f"blk.{i}.ffn_up.weight": (ffn, hidden),
            f"blk.{i}.ffn_down.weight": (hidden, ffn),
        }
    return result | {"output_norm.weight": (hidden,)}


def write(
    path: Path,
    *,
    hidden: int = 64,
    ffn: int = 128,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int = 1,
    vocab: int = 300,
    kind: str = "F32",
    spoil: str = "",
    template: str = "",
    seed: int = 0,
) -> Path:
    """Write the file; tied embeddings. kind: F32, F16, Q8_0, Q4_0. spoil: a tensor that gets a NaN."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(vocab)
    tokens, merges = vocabulary(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (vocab - 1))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(False)
    if template:
        writer.add_chat_template(template)
    number = gguf.GGMLQuantizationType[kind]
    for name, shape in shapes(hidden, ffn, layers, vocab, hidden // heads * kv_heads).items():
        scale = 0.05 if len(shape) == 2 else 0.1
        data = (rng.standard_normal(shape) * scale + (len(shape) == 1)).astype(np.float32)
        if name == spoil:
            data.reshape(-1)[0] = np.nan
        if len(shape) == 2 and kind != "F32":
            writer.add_tensor(name, gguf.quants.quantize(data, number), raw_dtype=number)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
