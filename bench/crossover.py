"""Bits alone against a smaller model with more bits, budget by budget: where the one overtakes the other.

    python bench/crossover.py MODEL --budgets 36MB,39MB,42MB --text CALIBRATION --eval-text HELD_OUT
        [--context 512] [--effort fast] [--heal 5Mtok] [--out FOLDER]
    python bench/crossover.py --plot LINES.jsonl OUT.svg

One JSON line a budget: held-out bits per byte of both files, as `tenth fit` made and measured them, and which
it kept; null for what does not fit, or promised too little to be made. --plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tenth.cli.console import ConsoleReporter
from tenth.core.records import MB, Budget, Candidate, Plan, Scorecard
from tenth.devices.catalogue import parse_size
from tenth.pipeline import fit
from tenth.pipeline.options import Making, Removal, Target
from tenth.runtime import bundle

ALONE, SMALLER = "bits alone", "a smaller model"


def line(plan: Plan, card: Scorecard) -> dict[str, object]:
    """What one fit found."""
    ours, *beside = card.candidates
    kept = SMALLER if plan.structure and plan.structure.shape else ALONE
    found: dict[str, Candidate] = {kept: ours}
    found |= {each.name: each for each in beside if each.name in (ALONE, SMALLER)}
    bits = {name: each.value("bits_per_byte") for name, each in found.items()}
    shape = plan.structure.shape if plan.structure else None
    return {
        "bench": "crossover",
        "model": card.model,
        "budget": plan.budget.memory,
        "kept": kept,
        "bits_alone": bits.get(ALONE),
        "smaller": bits.get(SMALLER),
        "original": next(r.value for r in card.original if r.name == "bits_per_byte"),
        "peak": card.proof.peak,
        "ffn": shape and shape.ffn,
        "kv_heads": shape and shape.kv_heads,
        "healed": plan.structure.healed if plan.structure else "",
    }


def plot(lines: Path, out: Path) -> None:
    """Bits per byte of both over the budget."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "tenth"  # the same bytes for the same lines
    rows = sorted(map(json.loads, lines.read_text().splitlines()), key=lambda row: row["budget"])
    figure, axis = plt.subplots(figsize=(7, 4.4))
    for key, label, colour in (
        ("bits_alone", "bits alone", "#0072b2"),
        ("smaller", "a smaller model with more bits", "#d55e00"),
    ):
        points = [(row["budget"] / MB, row[key]) for row in rows if row[key] is not None]
        axis.plot(*zip(*points, strict=True), marker="o", label=label, color=colour)
    axis.axhline(rows[0]["original"], color="#888888", lw=1, ls="--", label="the original")
    axis.set(xlabel="memory budget, MB", ylabel="held-out bits per byte")
    axis.grid(visible=True, color="#e8ecf0")
    axis.set_axisbelow(True)
    axis.legend(frameon=False)
    figure.savefig(out, metadata={"Date": None}, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--budgets", default="")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--eval-text", type=Path)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--heal")
    parser.add_argument("--out", type=Path, default=Path("out/bench-crossover"))
    parser.add_argument("--plot", type=Path, nargs=2, metavar=("LINES", "OUT"))
    given = parser.parse_args()
    if given.plot:
        plot(*given.plot)
        return
    if given.model is None or not given.budgets:
        parser.error("give a model's folder and --budgets")
    for words in given.budgets.split(","):
        destination = given.out / words
        if not destination.exists():
            options = fit.FitOptions(
                (given.model,),
                destination,
                Target(Budget(memory=parse_size(words), context=given.context)),
                Making(given.text, given.eval_text, given.effort),
                Removal(heal=given.heal),
                baselines=0,
            )
            fit.fit(options, ConsoleReporter())
        print(json.dumps(line(*bundle.read_bundle(destination))), flush=True)


if __name__ == "__main__":
    main()
