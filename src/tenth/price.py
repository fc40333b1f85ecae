"""What every storage type would cost every tensor of this model, in nats: encode, decode, weigh the error.

The price of a type on a tensor is the KL divergence it is expected to cause (calibrate.py has the formula): the weight error
of ggml's own encoder, weighted by the Fisher information, plus the noise of 8-bit activations that a product with that type
brings in llama.cpp. Large tensors are priced on a sample of rows, drawn evenly through the rows sorted by sensitivity,
and scaled up; the sample is the same for every type, so that differences between types are sharp.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tenth.calibrate import SiteStats, Stats
from tenth.checkpoint import LazyTensor, open_checkpoint
from tenth.encode import TYPES, activation_block, holds, quantise
from tenth.native import cores, dequantize
from tenth.records import TensorSpec

SAMPLE = 1 << 18  # weights of a tensor that are priced, at the least 64 rows
Prices = dict[str, dict[str, float]]  # GGUF tensor name -> ggml type -> nats per token


def sampled_rows(stats: SiteStats, columns: int, weights: int = SAMPLE) -> np.ndarray:
    """Row numbers to price: all, or an even walk through the rows in order of sensitivity."""
    rows = len(stats.rows)
    wanted = max(64, weights // columns)
    if rows <= wanted:
        return np.arange(rows)
    order = np.argsort(stats.rows, kind="stable")
    places = np.linspace(0, rows - 1, wanted).round().astype(int)
    return np.sort(order[places])


def load_rows(tensor: LazyTensor, rows: np.ndarray) -> np.ndarray:
    """The named rows (ascending), float32; reads runs of neighbours together."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return np.concatenate([tensor.load(int(run[0]), int(run[-1]) + 1) for run in np.split(rows, breaks)])


def price(weight: np.ndarray, rows: np.ndarray, stats: SiteStats, types: Sequence[str]) -> dict[str, float]:
    """Damage in nats per token of each type on a tensor of which `weight` [n, columns] are the given rows."""
    total, seen = float(stats.rows.sum(dtype=np.float64)), float(stats.rows[rows].sum(dtype=np.float64))
    scale = total / seen if seen > 0 else 0.0
    grads, seen_grads = float(stats.grad2.sum(dtype=np.float64)), float(stats.grad2[rows].sum(dtype=np.float64))
    noise_scale = grads / seen_grads if seen_grads > 0 else 0.0
    noise = {n: noise_scale * stats.activation_damage(weight, n, rows) for n in stats.noise}
    prices = {}
    for name in types:
        if holds(name, weight.shape[1]):
            error = dequantize(quantise(weight, name, stats.cols), name, weight.shape[1]) - weight
            block = activation_block(name)
            prices[name] = scale * stats.damage(error, rows) + (noise[block] if block else 0.0)
    return prices


def run(
    emit: Callable[[dict[str, Any]], None], model: str, calibration: str, destination: str, threads: int
) -> dict[str, Any]:
    """In a child process: price every linear tensor of the model folder; resumes by tensor.

    Writes destination (JSON lines, one tensor each). Emits {"done": weights, "total": weights}.
    """
    checkpoint, stats, path = open_checkpoint(Path(model)), Stats(Path(calibration)), Path(destination)
    specs = [spec for spec in checkpoint.specs() if spec.linear]
    finished = load(path) if path.exists() else {}
    total, done = sum(spec.count for spec in specs), sum(spec.count for spec in specs if spec.name in finished)

    def one(spec: TensorSpec) -> tuple[TensorSpec, dict[str, float]]:
        site = stats[spec.source]
        rows = sampled_rows(site, spec.columns)
        return spec, price(load_rows(checkpoint.tensors[spec.source], rows), rows, site, TYPES)

    with ThreadPoolExecutor(threads or cores()) as pool, path.open("a", encoding="utf-8") as file:
        for spec, prices in pool.map(one, [spec for spec in specs if spec.name not in finished]):
            file.write(json.dumps({"name": spec.name, "prices": prices}) + "\n")
            file.flush()
            done += spec.count
            emit({"done": done, "total": total})
    return {"tensors": len(specs)}


def load(path: Path) -> Prices:
    """Prices as `run` wrote them; a last line cut short by a kill is dropped."""
    prices: Prices = {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole), encoding="utf-8")
    for line in whole:
        entry = json.loads(line)
        prices[entry["name"]] = entry["prices"]
    return prices
