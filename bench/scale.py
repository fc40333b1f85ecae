"""Fit a 1.1 B Llama-shaped checkpoint with random weights and record the compressor's time and peak memory.

    python bench/scale.py [--memory 600MB] [--out FOLDER] [--layers 16] [--effort fast]

The peak is the largest sum of the resident anonymous memory and shared-library pages (RSS) of the process
tree, sampled ten times a second, page cache of mapped model files included. One JSON line per stage and one
for the whole.
"""

from __future__ import annotations

import argparse
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tenth.cli.console import ConsoleReporter
from tenth.core.records import MB, Budget
from tenth.devices.catalogue import parse_size
from tenth.models import source as models
from tenth.pipeline import fit
from tenth.pipeline.options import Making, Target

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}


def make(folder: Path, layers: int) -> None:
    """Random bf16 weights in shards of one layer, with the bundled model's tokenizer."""
    import torch
    from safetensors.torch import save_file

    source = models.bundled()
    vocab = json.loads((source / "config.json").read_text())["vocab_size"]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    config = {**CONFIG, "num_hidden_layers": layers, "vocab_size": vocab}
    h, f, kv = 2048, 8192, 512
    draw = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        made: torch.Tensor = torch.randn(rows, columns, generator=draw) * columns**-0.5
        return made.to(torch.bfloat16)

    index: dict[str, str] = {}
    for i in range(-1, layers):
        if i < 0:
            shard = {
                "model.embed_tokens.weight": matrix(vocab, h),
                "lm_head.weight": matrix(vocab, h),
                "model.norm.weight": torch.ones(h, dtype=torch.bfloat16),
            }
        else:
            p = f"model.layers.{i}."
            shard = {
                p + "self_attn.q_proj.weight": matrix(h, h),
                p + "self_attn.k_proj.weight": matrix(kv, h),
                p + "self_attn.v_proj.weight": matrix(kv, h),
                p + "self_attn.o_proj.weight": matrix(h, h),
                p + "mlp.gate_proj.weight": matrix(f, h),
                p + "mlp.up_proj.weight": matrix(f, h),
                p + "mlp.down_proj.weight": matrix(h, f),
                p + "input_layernorm.weight": torch.ones(h, dtype=torch.bfloat16),
                p + "post_attention_layernorm.weight": torch.ones(h, dtype=torch.bfloat16),
            }
        name = f"model-{i + 2:05d}-of-{layers + 1:05d}.safetensors"
        save_file(shard, folder / name)
        index |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config))


def tree_rss() -> int:
    """Bytes resident in this process and its descendants (Linux)."""
    parents, sizes = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry.name)], sizes[int(entry.name)] = int(fields[1]), int(fields[21]) * 4096
            except OSError:
                continue  # it ended meanwhile
    import os

    ours, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in ours} - ours
        ours, grown = ours | more, bool(more)
    return sum(sizes.get(pid, 0) for pid in ours)


class Stopwatch(ConsoleReporter):
    """The usual progress, and per stage its seconds and peak."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.whole = 0
        self.running = True
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, tree_rss())
            self.whole = max(self.whole, self.peak)
            time.sleep(0.1)

    @contextmanager
    def step(self, name: str, total: float, unit: str = "") -> Iterator[Callable[[float], None]]:
        """The step, timed."""
        self.peak, start = 0, time.perf_counter()
        with super().step(name, total, unit) as advance:
            yield advance
        seconds = round(time.perf_counter() - start, 1)
        print(
            json.dumps(
                {"bench": "scale", "stage": name, "seconds": seconds, "peak_mb": round(self.peak / MB)}
            ),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", default="600MB")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("out/bench-scale"))
    parser.add_argument("--effort", default="fast")
    given = parser.parse_args()
    model = given.out / "model"
    if not (model / "config.json").exists():
        make(model, given.layers)
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors")) // 2
    watch, start = Stopwatch(), time.perf_counter()
    options = fit.FitOptions(
        (model,),
        given.out / "fit",
        Target(Budget(memory=parse_size(given.memory), context=1024)),
        Making(effort=given.effort, windows=16),
        work=given.out / "work",
        overwrite=True,
        baselines=0,
    )
    card = fit.fit(options, watch)
    proof = card.proof
    print(
        json.dumps(
            {
                "bench": "scale",
                "weights": weights,
                "seconds": round(time.perf_counter() - start, 1),
                "peak_mb": round(watch.whole / MB),
                "budget": proof.budget,
                "predicted_peak": proof.predicted,
                "measured_peak": proof.peak,
                "fits": proof.fits,
                "kl": card.candidates[0].value("kl"),
            }
        )
    )


if __name__ == "__main__":
    main()
