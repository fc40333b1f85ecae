"""KL at equal bytes: stock recipes with an importance matrix, our plan rounded to nearest, our rounding.

    python bench/quality.py MODEL [--text FILE] [--eval-text FILE] [--effort normal] [--recipes A,B]
        [--other FILE ...]

For each stock recipe one JSON line a method, of whole files that are no larger than the recipe's. Held-out
KL in stock llama.cpp (f32 KV cache, flash attention off), nats per token. `ratio` is to the recipe,
`envelope_ratio` to the lower envelope of all recipes, log KL interpolated between file sizes. --other: texts
of other domains; the lines then have `others`, file name -> [KL, KL of the recipe].
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fit import REFEREE, stock_figures, value
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from tenth.cli.console import ConsoleReporter
from tenth.core.ggml import WEIGHT_TYPES, storage_type
from tenth.core.jobs import Compute
from tenth.core.records import MB, TensorSpec
from tenth.core.store import default_work
from tenth.measurement.quality import quality
from tenth.models.checkpoint import open_checkpoint
from tenth.models.formats.gguf import tensor_bytes
from tenth.pipeline.effort import EFFORTS, WORTH_TRAINING
from tenth.pipeline.steps import Stages, Workshop
from tenth.quantization.sensitivity import Sensitivities

RECIPES = "IQ2_XXS,IQ2_XS,IQ2_S,IQ2_M,Q2_K_S,Q2_K,IQ3_XXS,IQ3_S,IQ3_M,Q3_K_M,IQ4_XS,Q4_K_S,Q4_K_M,Q5_K_M,Q6_K"


def allocate(specs: list[TensorSpec], sensitivities: Sensitivities, limit: int) -> dict[str, str]:
    """Types of least predicted KL in at most `limit` bytes of tensor data."""
    options = [(i, t) for i, s in enumerate(specs) for t in WEIGHT_TYPES if storage_type(t).holds(s.columns)]
    predicted_kl = np.array([sensitivities[specs[i].name][t] for i, t in options])
    size = np.array([tensor_bytes(specs[i], t) for i, t in options], float) / MB
    one = sparse.csr_matrix((np.ones(len(options)), ([i for i, _ in options], range(len(options)))))
    found = milp(
        predicted_kl / predicted_kl.max(),
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(size[None], -np.inf, limit / MB)],
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-3},
    )
    return {specs[options[j][0]].name: options[j][1] for j in np.flatnonzero(found.x > 0.5)}


def envelope(points: Mapping[int, float], size: int) -> float:
    """KL of the lower envelope of (bytes, KL) at a size: the convex hull in log KL."""
    known = sorted((b, float(np.log(k))) for b, k in points.items())
    lines = [
        a[1] + (c[1] - a[1]) * (size - a[0]) / (c[0] - a[0])
        for a in known
        for c in known
        if a[0] <= size <= c[0] and a[0] < c[0]
    ]
    return float(np.exp(min([*lines, *(k for b, k in known if b <= size)], default=known[0][1])))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--eval-text", type=Path)
    parser.add_argument("--effort", choices=tuple(EFFORTS), default="normal")
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--other", type=Path, nargs="*", default=[])
    parser.add_argument("--device-compute", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("out/bench-quality"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    checkpoint, effort = open_checkpoint(given.model), EFFORTS[given.effort]
    linear = [spec for spec in checkpoint.specs() if spec.linear]

    compute = Compute(device=given.device_compute)
    workshop = Workshop(default_work(), ConsoleReporter(), given.out / "log.txt", compute)
    stages = Stages(checkpoint, workshop)
    texts = stages.texts(given.text, given.eval_text, 512, effort, 0)
    calibration, reference = stages.calibration(texts, 0), stages.reference(texts)
    others = {
        path.name: stages.reference(stages.texts(given.text, path, 512, effort, 0)) for path in given.other
    }
    sensitivities = stages.sensitivities(calibration)
    stock = {name: stages.stock(name) for name in given.recipes.split(",")}
    figures = {
        name: stock_figures(stages, types, calibration, reference, name) for name, types in stock.items()
    }
    curve = {int(row["bytes"]): row["kl"] for row in figures.values()}
    ratios = []
    for name, types in stock.items():
        ours = allocate(linear, sensitivities, sum(tensor_bytes(spec, types[spec.name]) for spec in linear))

        def line(method: str, path: Path, name: str = name, **more: Any) -> float:
            kl = value(quality(path, reference, REFEREE, log=workshop.log), "kl")
            found = {
                label: [
                    round(value(quality(path, folder, REFEREE, log=workshop.log), "kl"), 6),
                    round(stock_figures(stages, stock[name], calibration, folder, name)["kl"], 6),
                ]
                for label, folder in others.items()
            }
            ratio, size = kl / figures[name]["kl"], path.stat().st_size
            row = {
                "bench": "quality",
                "recipe": name,
                "method": method,
                "bytes": size,
                "stock_bytes": int(figures[name]["bytes"]),
                "stock_kl": round(figures[name]["kl"], 6),
                "kl": round(kl, 6),
                "ratio": round(ratio, 3),
                "envelope_ratio": round(kl / envelope(curve, size), 3),
                **more,
            }
            print(json.dumps(row | ({"others": found} if others else {})), flush=True)
            path.unlink()
            return ratio

        path = given.out / f"{name}.gguf"
        line("nearest", stages.write(ours, calibration, path, f"store {name}'s bytes"))
        if effort.rounds is not None:
            start = time.perf_counter()
            rounded = stages.rounded(texts, calibration, ours, effort)
            predicted_kl = sum(sensitivities[tensor][kind] for tensor, kind in ours.items())
            if effort.steps and predicted_kl > WORTH_TRAINING:
                rounded = stages.trained(texts, rounded, ours, effort, 0)
            seconds = round(time.perf_counter() - start, 1)
            stages.write(ours, calibration, path, f"store {name}'s bytes", rounded)
            ratios.append(line(given.effort, path, seconds=seconds))
    if ratios:
        median, worst = round(statistics.median(ratios), 3), round(max(ratios), 3)
        print(json.dumps({"bench": "quality", "effort": given.effort, "median": median, "worst": worst}))


if __name__ == "__main__":
    main()
