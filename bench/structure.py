"""Structure taken out of a Llama, tenth's way and by rivals: one JSON line a method and ratio, and once more
after the same healing.

    python bench/structure.py MODEL --text FILE --eval-text FILE [--methods A,B] [--ratios 10,20,30]
        [--heal TOKENS [--heal-text FILE]] [--device cuda] [--seed 0]
    python bench/structure.py --plot LINES.jsonl OUT.svg

A ratio is the share in percent of all parameters but embedding and head that go; every method removes that or
more, `removed` says how much, with what it adds counted against it. Bits per byte and KL (nats per token) are
held-out, in float32. A rival that has a choice takes what is nearest the original on 16 of the calibration
windows (`how`). Healing is AdamW on all weights down the KL to the original, of as many tokens for everyone.
The last lines hold ours against the best rival. --plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pruners
import slicing
import torch
from slim import Llama, Referee, load

from tenth.calibration.fisher import calibrate
from tenth.calibration.windows import Wanted, cut
from tenth.core.jobs import Compute
from tenth.distillation.distil import RATE
from tenth.distillation.targets import Live
from tenth.distillation.training import BETAS, CLIP, EPSILON, Schedule, gradient
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.pruning import knapsack, removal, structure
from tenth.pruning.settings import RefitSettings, RemovalSettings
from tenth.pruning.shape import PruningLimits, Sizes

LENGTH, CALIBRATE, JUDGE = 512, 128, 48  # tokens of a window, and windows
SEEDS = 3  # of random
EVERYTHING = 1 << 30  # windows

Rival = Callable[[Llama, pruners.Calibration, int], pruners.Found]
RIVALS: dict[str, Rival] = {
    "magnitude": pruners.magnitude,
    "wanda": pruners.wanda,
    "taylor": pruners.taylor,
    "flap": pruners.flap,
    "shortgpt": pruners.shortgpt,
    "contiguous": pruners.contiguous,
    "sleb": pruners.sleb,
    "sublayers": pruners.sublayers,
    "slicegpt": slicing.slicegpt,
    "slicegpt-one": slicing.one_rotation,
}
OURS = {"ours": PruningLimits(), "ours-alike": PruningLimits(uneven=False)}
METHODS = ("random", *RIVALS, *OURS)


def silent(event: dict[str, Any]) -> None:
    """No progress."""


class Ours:
    """tenth's own stages on the same windows, in this process."""

    def __init__(self, checkpoint: Checkpoint, windows: Path, work: Path, given: argparse.Namespace) -> None:
        start = time.perf_counter()
        self._checkpoint, self._work = checkpoint, work
        calibration, costs = work / "calibration", work / "costs"
        for folder in (calibration, costs):
            folder.mkdir()
        compute = Compute(threads=given.threads, device=given.device)
        calibrate(checkpoint.path, windows, given.seed, calibration, compute, silent)
        self._given = RemovalSettings(
            model=checkpoint.path,
            tokens=(windows,),
            calibration=calibration,
            folder=costs,
            threads=given.threads,
            device=given.device,
        )
        self._costs = removal.removal_costs(self._given, silent)
        self.seconds = time.perf_counter() - start

    def __call__(self, name: str, weights: int) -> tuple[str, Llama]:
        """The smaller model, written and read again, and its sizes."""
        sizes = Sizes.of(self._checkpoint)
        chosen = knapsack.without(self._costs, sizes, weights, OURS[name])
        with tempfile.TemporaryDirectory(dir=self._work) as folder:
            settings = RefitSettings(**dict(self._given) | {"folder": Path(folder)}, shape=chosen)
            structure.refitted(settings, silent)
            made = load(open_checkpoint(Path(folder)), self._given.device)
        return f"channels {list(chosen.ffn)}, KV heads {list(chosen.kv_heads)}", made


def nearest(found: pruners.Found, given: pruners.Calibration, most: int) -> tuple[str, Llama]:
    """The one of least KL on calibration windows, of those with at most that many parameters."""
    models = list(found)
    if any(model.parameters() > most for _, model in models):
        raise SystemExit("a method left more parameters than the ratio allows: a mistake in bench/pruners.py")
    return min(models, key=lambda pair: given.referee(pair[1])[1])


def middling(original: Llama, given: pruners.Calibration, weights: int, seed: int) -> tuple[str, Llama]:
    """The median of some random ones by KL on calibration windows."""
    most, models = original.parameters() - weights, []
    for number in range(SEEDS):
        found = pruners.random(original, given, weights, SEEDS * seed + number)
        models.append(nearest(found, given, most))
    how, model = sorted(models, key=lambda pair: given.referee(pair[1])[1])[SEEDS // 2]
    return f"{how}, median of {SEEDS} seeds", model


def heal(model: Llama, original: Llama, windows: np.ndarray, given: argparse.Namespace) -> Llama:
    """The same steps for whatever model; bfloat16 in the blocks on a GPU, as tenth heals."""
    cuda = given.device == "cuda"
    student, parameters = model.trainable()

    def forward_of(model: Llama) -> Callable[[np.ndarray], torch.Tensor]:
        def forward(tokens: np.ndarray) -> torch.Tensor:
            hidden = model.begin(torch.from_numpy(tokens.astype(np.int64)).to(given.device))
            with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
                for block in model.blocks:
                    hidden = model.feed(block, model.attend(block, hidden))
            return model.logits(hidden.float())

        return forward

    steps = max(1, round(given.heal / LENGTH / given.batch))
    schedule = Schedule(steps, given.batch, given.rate, steps, given.seed, given.batch if cuda else 1)
    targets, forward = Live(forward_of(original), windows), forward_of(student)
    optimiser = torch.optim.AdamW(parameters, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True)
    torch.set_float32_matmul_precision("high")
    for step in range(steps):
        rows = schedule.rows(step, len(windows))
        loss = float(gradient(forward, parameters, targets, rows, schedule.micro_batch))  # type: ignore[arg-type]
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        if not math.isfinite(loss):
            raise SystemExit(f"healing diverged at step {step} (KL {loss}); give a lower --rate")
        optimiser.param_groups[0]["lr"] = schedule.at(step)
        optimiser.step()
    torch.set_float32_matmul_precision("highest")
    for parameter in parameters:
        parameter.requires_grad_(False)
    return student


def compare(given: argparse.Namespace, work: Path) -> None:
    """Print the lines."""
    checkpoint = open_checkpoint(given.model)
    original = load(checkpoint, given.device)
    whole = original.parameters()
    ids, size, calibration = _windows(given, work, "text", given.text, given.windows)
    given_windows = pruners.Calibration(original, calibration, given.batch)
    referee = Referee(original, ids, size, given.batch)
    learning = np.zeros((0, LENGTH), np.int32)
    if given.heal:
        learning = _windows(given, work, "heal", given.heal_text or given.text, EVERYTHING)[2].cpu().numpy()
    bits, _ = referee(original)
    rises: dict[tuple[float, bool], dict[str, float]] = {}

    def line(method: str, ratio: float, model: Llama, seconds: float, healed: bool, how: str) -> None:
        found, kl = referee(model)
        rises.setdefault((ratio, healed), {})[method] = found - bits
        row = {
            "bench": "structure",
            "method": method,
            "ratio": ratio,
            "healed": healed,
            "bits_per_byte": round(found, 5),
            "rise": round(found - bits, 5),
            "kl": round(kl, 5),
            "parameters": model.parameters(),
            "removed": round(100 * (1 - model.parameters() / whole), 3),
            "total": model.total(),
            "seconds": round(seconds, 1),
            "how": how,
        }
        print(json.dumps(row), flush=True)

    line("original", 0, original, 0.0, False, f"{len(ids)} windows of {LENGTH} tokens, {given.device}")
    own = None
    for method in given.methods.split(","):
        for ratio in map(float, given.ratios.split(",")):
            weights, start = math.ceil(whole * ratio / 100), time.perf_counter()
            seconds = 0.0
            if method in OURS:
                own = own or Ours(checkpoint, work / "text" / "calibration.npy", work, given)
                start, seconds = time.perf_counter(), own.seconds
                how, model = own(method, weights)
            elif method == "random":
                how, model = middling(original, given_windows, weights, given.seed)
            else:
                found = RIVALS[method](original, given_windows, weights)
                how, model = nearest(found, given_windows, whole - weights)
            line(method, ratio, model, seconds + time.perf_counter() - start, False, how)
            if given.heal:
                start = time.perf_counter()
                model = heal(model, original, learning, given)
                line(method, ratio, model, time.perf_counter() - start, True, f"{given.heal} tokens")
    for (ratio, healed), rise in rises.items():
        rivals = {method: value for method, value in rise.items() if method not in (*OURS, "original")}
        mine = {name: rise[name] for name in OURS if name in rise}
        if rivals and mine:
            best = min(rivals, key=lambda method: rivals[method])
            shares = {name: round(value / rivals[best], 3) for name, value in mine.items()}
            row = {"bench": "structure", "ratio": ratio, "healed": healed, "best_rival": best}
            print(json.dumps(row | {"best_rise": round(rivals[best], 5), "to_best": shares}), flush=True)


def _windows(
    given: argparse.Namespace, work: Path, name: str, source: Path | None, count: int
) -> tuple[torch.Tensor, int, torch.Tensor]:
    """(held-out windows, bytes predicted there, windows of the text), as every fit makes them."""
    folder = work / name
    folder.mkdir()
    wanted = Wanted(length=LENGTH, calibrate=count, train=0, judge=given.eval_windows, seed=given.seed)
    texts = cut(given.model, source, given.eval_text, wanted, folder)
    held, windows = (
        torch.from_numpy(np.load(folder / f"{file}.npy").astype(np.int64)).to(given.device)
        for file in ("held-out", "calibration")
    )
    return held, texts.bytes, windows


def plot(lines: Path, out: Path) -> None:
    """The rise in bits per byte against what was removed, before and after healing."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "tenth"  # the same bytes for the same lines
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    rows = [row for row in rows if row.get("ratio") and "rise" in row]
    panels = sorted({row["healed"] for row in rows})
    figure, axes = plt.subplots(1, len(panels), figsize=(6.2 * len(panels), 5.2), squeeze=False)
    colours = [f"C{number}" for number in range(10)]
    for axis, healed in zip(axes[0], panels, strict=True):
        for number, method in enumerate(METHODS):
            points = [
                (r["removed"], r["rise"]) for r in rows if (r["method"], r["healed"]) == (method, healed)
            ]
            if points:
                mine = method in OURS
                axis.plot(
                    *zip(*sorted(points), strict=True),
                    label=method,
                    marker="*" if mine else "o",
                    color=("#d55e00", "#0072b2")[method == "ours-alike"] if mine else colours[number % 10],
                    lw=2.4 if mine else 1.0,
                    ls="-" if number < 10 or mine else "--",
                    ms=9 if mine else 4,
                )
        axis.set(
            yscale="log",
            xlabel="parameters removed, % of all but the embedding",
            ylabel="rise in held-out bits per byte",
            title="healed" if healed else "not healed",
        )
        axis.grid(visible=True, which="both", color="#e8ecf0")
        axis.set_axisbelow(True)
    axes[0][-1].legend(frameon=False, fontsize=8)
    figure.savefig(out, metadata={"Date": None}, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--eval-text", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--ratios", default="10,20,30")
    parser.add_argument("--heal", type=int, default=0, help="tokens")
    parser.add_argument("--heal-text", type=Path, help="default: --text")
    parser.add_argument("--rate", type=float, default=RATE, help="of healing")
    parser.add_argument("--batch", type=int, default=8, help="windows")
    parser.add_argument("--windows", type=int, default=CALIBRATE)
    parser.add_argument("--eval-windows", type=int, default=JUDGE)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, nargs=2, metavar=("LINES", "OUT"))
    given = parser.parse_args()
    if given.plot:
        plot(*given.plot)
        return
    if given.model is None:
        parser.error("give a model's folder")
    if unknown := set(given.methods.split(",")) - set(METHODS):
        parser.error(f"no method {sorted(unknown)[0]!r}; there are {', '.join(METHODS)}")
    if given.threads:
        torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {given.device}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as work:
        compare(given, Path(work))


if __name__ == "__main__":
    main()
