"""What every storage type would cost every tensor of this model, in nats: encode, decode, weigh the error.

The sensitivity of a tensor to a type is the KL divergence it is expected to cause (the formula stands in
calibration/fisher.py): the weight error of ggml's own encoder, weighted by the Fisher information, plus the
noise of 8-bit activations that a product with that type brings in llama.cpp. Large tensors are tried on a
sample of rows, drawn in proportion to their sensitivity; it is the same for every type, so that differences
are sharp.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from tenth.calibration.stats import SiteStats, Stats
from tenth.core import digests
from tenth.core.ggml import storage_type
from tenth.core.jobs import Emit
from tenth.core.records import TensorSpec
from tenth.models.checkpoint import open_checkpoint
from tenth.models.formats.hf import LazyTensor
from tenth.quantization.encode import largest, quantise
from tenth.runtime.llama import cores, dequantize

READ = 1 << 22  # weights looked at together for the largest one
SAMPLE = 1 << 18  # weights of a tensor that are tried, at the least 64 rows
# Mean square relative error of rounding to a float of p fraction bits: 2^-2p / 12 * E[1/m^2], the mantissa m
# log-uniform in [1, 2). llama.cpp rounds activations to the type of a 16-bit matrix.
PLAIN_NOISE = {"BF16": 2**-14 / 12 * 0.541, "F16": 2**-20 / 12 * 0.541}
Sensitivities = dict[str, dict[str, float]]  # GGUF tensor name -> ggml type -> nats per token


def sampled_rows(stats: SiteStats, columns: int, weights: int = SAMPLE) -> tuple[np.ndarray, np.ndarray]:
    """Rows to try, ascending, and how many rows each stands for (float32): all, or a systematic sample.

    A row's chance is its share of the tensor's sensitivity (half of `rows`, half of `grad2`), and it stands
    for the inverse of that: systematic sampling with probability proportional to size (Madow 1949).
    """
    count, wanted = len(stats.rows), max(64, weights // columns)
    parts = [part.astype(np.float64) for part in (stats.rows, stats.grad2)]
    share = np.sum([part / max(part.sum(), 1e-300) for part in parts], axis=0)
    if count <= wanted or not share.any():
        return np.arange(min(count, wanted)), np.ones(min(count, wanted), np.float32)
    order = np.argsort(share, kind="stable")
    ends = np.cumsum(share[order])
    places = (np.arange(wanted) + 0.5) / wanted * ends[-1]
    rows, times = np.unique(order[np.searchsorted(ends, places)], return_counts=True)
    return rows, (times * ends[-1] / (wanted * share[rows])).astype(np.float32)


def load_rows(tensor: LazyTensor, rows: np.ndarray) -> np.ndarray:
    """The named rows (ascending), float32; reads runs of neighbours together."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return np.concatenate([tensor.load(int(run[0]), int(run[-1]) + 1) for run in np.split(rows, breaks)])


def largest_weight(tensor: LazyTensor) -> float:
    """The largest magnitude of all of a tensor, a few rows at a time."""
    step = max(1, READ // max(1, tensor.shape[-1]))
    starts = range(0, tensor.shape[0], step)
    return max(float(np.abs(tensor.load(at, min(at + step, tensor.shape[0]))).max()) for at in starts)


def sensitivity(
    weight: np.ndarray, rows: np.ndarray, stands: np.ndarray, stats: SiteStats, types: Sequence[str]
) -> dict[str, float]:
    """Predicted KL in nats per token of each type that holds the tensor's rows.

    weight: float32 [n, columns], the given rows of the tensor; stands: how many rows each stands for.
    """
    sample = replace(stats, rows=stats.rows[rows] * stands, grad2=stats.grad2[rows] * stands)
    noise = {block: sample.activation_kl(weight, block) for block in stats.noise}
    plain = 0.5 * float(sample.grad2 @ (weight * weight) @ stats.square)
    sensitivities = {}
    for name in types:
        kind = storage_type(name)
        if kind.holds(weight.shape[1]):
            error = dequantize(quantise(weight, name, stats.cols), name, weight.shape[1]) - weight
            block = kind.activation_block
            rounding = noise[block] if block else PLAIN_NOISE.get(name, 0.0) * plain
            sensitivities[name] = sample.predicted_kl(error) + rounding
    return sensitivities


def measure_sensitivities(
    model: Path, calibration: Path, path: Path, types: Sequence[str], threads: int, emit: Emit
) -> None:
    """Write what each type would cost each linear tensor, a line of JSON a tensor; resumes by tensor.

    model: a Hugging Face folder. calibration: folder of its statistics. path: of the lines. Emits {"done":
    weights, "total": weights}.
    """
    checkpoint, stats = open_checkpoint(model), Stats(calibration)
    specs = [spec for spec in checkpoint.specs() if spec.linear]
    finished = load(path) if path.exists() else {}
    total = sum(spec.count for spec in specs)
    done = sum(spec.count for spec in specs if spec.name in finished)

    def one(spec: TensorSpec) -> tuple[TensorSpec, dict[str, float]]:
        site = stats[spec.source]
        rows, stands = sampled_rows(site, spec.columns)
        weight = load_rows(checkpoint.tensors[spec.source], rows)
        # A type that cannot hold the largest weight is not offered for the tensor.
        most = largest_weight(checkpoint.tensors[spec.source])
        return spec, sensitivity(
            weight, rows, stands, site, [name for name in types if most <= largest(name)]
        )

    with ThreadPoolExecutor(threads or cores()) as pool, path.open("a", encoding="utf-8") as file:
        listed = digests.Growing(path)
        for spec, sensitivities in pool.map(one, [spec for spec in specs if spec.name not in finished]):
            file.write(json.dumps({"name": spec.name, "sensitivities": sensitivities}) + "\n")
            file.flush()
            listed.note()
            done += spec.count
            emit({"done": done, "total": total})


def load(path: Path) -> Sensitivities:
    """Sensitivities as they were written; a last line cut short by a kill is dropped."""
    sensitivities: Sensitivities = {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole), encoding="utf-8")
    for line in whole:
        entry = json.loads(line)
        sensitivities[entry["name"]] = entry["sensitivities"]
    return sensitivities
