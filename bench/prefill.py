"""Prefill and decode time against n_ubatch and repacking, as ratios of one run; plan.SLOWNESS is from here.

    python bench/prefill.py MODEL [--type Q4_K] [--rounds 5]

One JSON line per setting: seconds are medians over rounds; ratios are medians of the round's own quotients to
n_ubatch 512 without repacking, so that a machine whose speed drifts does not tilt them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from tenth.cli.console import ConsoleReporter
from tenth.core.ggml import storage_type
from tenth.core.records import Runtime
from tenth.models.checkpoint import open_checkpoint
from tenth.pipeline.steps import Stages, Workshop
from tenth.planning.plan import SLOWNESS
from tenth.runtime.llama import Session

PREFILL, DECODE = 1024, 64


def run(path: Path, n_ubatch: int, repack: bool) -> tuple[float, float]:
    """Seconds of a prefill of 1024 tokens, and of one decoded token after it."""
    runtime = Runtime(n_ctx=PREFILL + DECODE, n_ubatch=n_ubatch, repack=repack)
    with Session.serving(path, runtime) as session:
        ids = np.random.default_rng(0).integers(0, session.n_vocab, PREFILL + DECODE).astype(np.int32)
        start = time.perf_counter()
        session.decode(ids[:PREFILL], 0, all_logits=False)
        filled = time.perf_counter()
        for place in range(PREFILL, PREFILL + DECODE):
            session.decode(ids[place : place + 1], place, all_logits=False)
        return filled - start, (time.perf_counter() - filled) / DECODE


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--type", default="Q4_K")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    checkpoint = open_checkpoint(given.model)
    with tempfile.TemporaryDirectory() as scratch:
        stages = Stages(checkpoint, Workshop(Path(scratch), ConsoleReporter(), Path(scratch) / "log.txt"))
        types = {
            s.name: given.type if storage_type(given.type).holds(s.columns) else "Q8_0"
            for s in checkpoint.specs()
            if s.linear
        }
        path = stages.write(types, None, Path(scratch) / "model.gguf", f"store {given.type}")
        settings = [(batch, repack) for repack in (False, True) for batch in SLOWNESS]
        base = (max(SLOWNESS), False)
        seconds: dict[tuple[int, bool], list[tuple[float, float]]] = {s: [] for s in settings}
        for _ in range(given.rounds):
            for setting in settings:
                seconds[setting].append(run(path, *setting))
        for setting in settings:
            prefill, decode = zip(*seconds[setting], strict=True)
            base_prefill, base_decode = zip(*seconds[base], strict=True)
            line = {
                "bench": "prefill",
                "type": given.type,
                "n_ubatch": setting[0],
                "repack": setting[1],
                "prefill_s": round(statistics.median(prefill), 3),
                "prefill_ratio": round(
                    statistics.median(a / b for a, b in zip(prefill, base_prefill, strict=True)), 3
                ),
                "decode_ms": round(1000 * statistics.median(decode), 2),
                "decode_ratio": round(
                    statistics.median(a / b for a, b in zip(decode, base_decode, strict=True)), 3
                ),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
