"""How fast llama.cpp decodes and prefills with every storage type on the machine that it runs on.

    python bench/kernels.py [--layers 8] [--rounds 3] [--types Q4_0 Q4_K ...] [--no-repack]

A model of one shape is stored as each type (a tile of real encodings repeated) and run. One JSON line for the
reading speed of numpy, one a type: decode in B/s of weights read, prefill in weights/s; the best of the
rounds, because whatever else the machine does only ever takes away. With the numbers of another machine the
class of its kernels in src/tenth/data/kernels.json, or a device file, is written.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np

from tenth.core.ggml import WEIGHT_TYPES, storage_type
from tenth.core.records import Runtime
from tenth.devices.probe import reading_speed
from tenth.quantization.encode import quantise
from tenth.runtime.llama import Session, build

HIDDEN, FFN, VOCAB, HEADS = 2048, 6144, 259, 16
PREFILL, DECODE, TILE = 256, 24, 64


def write(path: Path, kind: str, layers: int) -> int:
    """A llama of that type; returns the weights that a token reads."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types([2, 3, 3, *[6] * 256])
    rng, total = np.random.default_rng(0), 0
    tiles = {
        columns: quantise((0.02 * rng.standard_normal((TILE, columns))).astype(np.float32), kind)
        for columns in (HIDDEN, FFN)
    }
    shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN), "attn_v": (HIDDEN, HIDDEN)}
    shapes |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN)}
    shapes |= {"ffn_down": (HIDDEN, FFN)}
    number = gguf.GGMLQuantizationType[kind]
    writer.add_tensor("token_embd.weight", (rng.standard_normal((VOCAB, HIDDEN)) * 0.02).astype(np.float32))
    for layer in range(layers):
        for role, (rows, columns) in shapes.items():
            data = np.tile(tiles[columns], (rows // TILE, 1))
            writer.add_tensor(f"blk.{layer}.{role}.weight", data, raw_dtype=number)
            total += rows * columns
        for role in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{role}.weight", np.ones(HIDDEN, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return total


def run(path: Path, repack: bool) -> tuple[float, float]:
    """Seconds of one decoded token and of one token of prefill."""
    runtime = Runtime(n_ctx=1 + PREFILL + DECODE, n_ubatch=PREFILL, repack=repack)
    with Session.serving(path, runtime) as session:
        ids = np.ones(PREFILL, np.int32)
        session.decode(ids[:1], 0, all_logits=False)  # brings the file into memory
        start = time.perf_counter()
        session.decode(ids, 1, all_logits=False)
        filled = time.perf_counter()
        times = []
        for place in range(1 + PREFILL, 1 + PREFILL + DECODE):
            begin = time.perf_counter()
            session.decode(ids[:1], place, all_logits=False)
            times.append(time.perf_counter() - begin)
        return min(times), (filled - start) / PREFILL


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--types", nargs="*", default=list(WEIGHT_TYPES))
    parser.add_argument("--no-repack", action="store_true")
    given = parser.parse_args()
    print(json.dumps({"bench": "kernels", "reading_gbps": round(reading_speed() / 1e9, 2), "build": build()}))
    for kind in given.types:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            weights = write(path, kind, given.layers)
            decode, prefill = (
                min(values)
                for values in zip(*(run(path, not given.no_repack) for _ in range(given.rounds)), strict=True)
            )
        line = {
            "bench": "kernels",
            "type": kind,
            "repack": not given.no_repack,
            "weights": weights,
            "decode_gbps": round(weights * storage_type(kind).bits_per_weight / 8 / decode / 1e9, 2),
            "prefill_gweights": round(weights / prefill / 1e9, 2),
            "rounds": given.rounds,
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
