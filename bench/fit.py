"""Fit one model into a row of budgets and hold each result against the stock recipes: one JSON line per
budget.

    python bench/fit.py MODEL --text CALIBRATION --eval-text HELD_OUT [--context 1024] [--out FOLDER]
    [--recipes Q4_K_M,...]

Stock recipes are made with the same importance weights and measured in the same run and conditions (f32 KV
cache, flash attention off, as in llama.cpp's own reference figures). A recipe fits a budget if its file, run
as ours is, stays within it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np

from tenth.cli.console import ConsoleReporter
from tenth.core.records import MB, Budget, Plan, Reading, Runtime
from tenth.core.store import default_work
from tenth.measurement.quality import quality
from tenth.models.checkpoint import open_checkpoint
from tenth.pipeline import fit
from tenth.pipeline.effort import EFFORTS
from tenth.pipeline.options import Making, Target
from tenth.pipeline.steps import Stages, Workshop
from tenth.planning import memory as cost
from tenth.planning.plan import Problem, smallest_decision
from tenth.quantization import recipes

BUDGETS = 8
REFEREE = Runtime(n_ctx=512, n_ubatch=512, type_k="f32", type_v="f32", flash_attention=False)


def value(readings: list[Reading], name: str) -> float:
    return next(r.value for r in readings if r.name == name)


def stock_figures(
    stages: Stages, types: dict[str, str], calibration: Path, reference: Path, recipe: str
) -> dict[str, float]:
    """Bytes and KL of a stock recipe; kept in the work folder like every stage."""

    def build(folder: Path) -> None:
        path = stages.write(types, calibration, folder / "stock.gguf", f"store {recipe}")
        kl = value(quality(path, reference, REFEREE, log=stages.workshop.log), "kl")
        (folder / "figures.json").write_text(json.dumps({"bytes": path.stat().st_size, "kl": kl}))
        path.unlink()

    made_from = {"recipe": recipe, "from": [calibration.name, reference.name]}
    figures: dict[str, float] = json.loads(
        (stages.store.stage("stock", made_from, build) / "figures.json").read_text()
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--eval-text", type=Path)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("out/bench-fit"))
    parser.add_argument(
        "--recipes", default=",".join(n for n in recipes.BASES if n not in ("F16", "TQ1_0", "TQ2_0"))
    )
    parser.add_argument("--effort", choices=tuple(EFFORTS), default="normal")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    voice, checkpoint = ConsoleReporter(), open_checkpoint(given.model)
    specs = checkpoint.specs()

    workshop = Workshop(default_work(), voice, given.out / "log.txt")
    stages = Stages(checkpoint, workshop)
    texts = stages.texts(given.text, given.eval_text, 512, EFFORTS[given.effort], 0)
    reference, calibration = stages.reference(texts), stages.calibration(texts, 0)
    problem = Problem(
        checkpoint.shape,
        specs,
        stages.sensitivities(calibration),
        stages.kv_sensitivities(texts, given.context),
        given.context,
        cost.Constants(),
    )

    stock = {}
    for name in given.recipes.split(","):
        types = stages.stock(name)
        figures = stock_figures(stages, types, calibration, reference, name)
        stock[name] = (types, figures["kl"])
        print(json.dumps({"bench": "stock", "recipe": name, **figures}), flush=True)

    smallest = smallest_decision(problem).memory.total
    f16 = smallest_decision(replace(problem, sensitivities={s.name: {"F16": 0.0} for s in specs if s.linear}))
    ratios, making = [], Making(given.text, given.eval_text, given.effort)
    for memory in np.geomspace(1.01 * smallest, 1.06 * f16.memory.total, BUDGETS):
        budget = Budget(memory=int(memory), context=given.context)
        out = given.out / f"{memory / MB:.1f}MB"
        options = fit.FitOptions((given.model,), out, Target(budget), making, overwrite=True, baselines=0)
        card = fit.fit(options, voice)
        plan = Plan.model_validate_json((out / "plan.json").read_text())
        kl = value(quality(out / "model.gguf", reference, REFEREE, log=workshop.log), "kl")
        fitting = {
            n: k for n, (t, k) in stock.items() if problem.memory(t, plan.runtime).total <= budget.memory
        }
        best = min(fitting, key=lambda n: fitting[n]) if fitting else None
        if best:
            ratios.append(kl / fitting[best])
        ours, proof, run = card.candidates[0], card.proof, plan.runtime
        line = {
            "bench": "fit",
            "budget": budget.memory,
            "bits_per_weight": round(plan.bits_per_weight, 3),
            "file": ours.file_bytes,
            "predicted_peak": proof.predicted,
            "measured_peak": proof.peak,
            "error": round(proof.error, 4),
            "fits": proof.fits,
            "attempts": proof.attempts,
            "limit": proof.limit,
            "runtime": f"ubatch {run.n_ubatch} kv {run.type_k}/{run.type_v} repack {run.repack}",
            "predicted_kl": round(plan.predicted_kl, 5),
            "kl_shipped": round(ours.value("kl") or 0.0, 6),
            "kl": round(kl, 6),
            "best_stock": best,
            "best_stock_kl": round(fitting[best], 6) if best else None,
            "ratio": round(kl / fitting[best], 3) if best else None,
        }
        print(json.dumps(line), flush=True)
    print(
        json.dumps(
            {
                "bench": "fit",
                "median_ratio": round(statistics.median(ratios), 3),
                "worst_ratio": round(max(ratios), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
