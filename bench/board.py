"""A board of a dozen submissions from one model, honest and not, judged: one JSON line for each.

    python bench/board.py --out board [--model bundled] [--share 0.55%]
                          [--fit 27MB,29MB,33MB | --bundles DIR...] [--slim 43MB]
                          [--tasks piqa,arc_easy --data DATA --limit 200]

Stock recipes without an importance matrix; ours at three budgets (--effort fast --no-structure), or bundles
made before; one in half precision with 5/8 of the feed-forward channels, those of the largest weights, or
(--slim) what tenth fit --no-quantise makes, which takes its time; the model itself as trained from scratch; a
head of zeros, one over the budget, one cut short.
BOARD/submissions, BOARD/results; a second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tenth.cli.console import ConsoleReporter
from tenth.core.records import TensorSpec
from tenth.leaderboard import run, submission
from tenth.leaderboard.records import Division, Manifest, Verdict
from tenth.leaderboard.submission import MANIFEST
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.models.edit import take
from tenth.models.formats.folder import write_folder
from tenth.models.formats.gguf import write_gguf
from tenth.models.source import resolve
from tenth.quantization import recipes
from tenth.quantization.encode import Rounding

LICENCE, DATA = "as the original", "the package's own text"
STOCK = ("Q8_0", "Q4_K_M", "Q3_K_M", "Q2_K")
SHOWN = ("bits_per_byte", "kl", "top1", "size", "peak", "decode", "device_decode", "device_joules")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--device", default="pixel-8")
    parser.add_argument("--share", default="0.55%")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--fit", default="27MB,29MB,33MB", help="budgets of ours")
    parser.add_argument("--bundles", type=Path, nargs="*", default=[], help="instead of fitting")
    parser.add_argument("--slim", help="budget of the one in half precision")
    parser.add_argument("--tasks", default="")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--passages", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cluster")
    given = parser.parse_args()
    place: Path = given.out / "submissions"
    checkpoint = open_checkpoint(resolve(given.model))
    stock(place, checkpoint)
    cheats(place, checkpoint)
    usual = ["--context", str(given.context), "--effort", "fast", "--baselines", "0"]
    for bundle in given.bundles:
        if not (place / bundle.name).exists():
            declared = submission.Statement(data=DATA, licence=LICENCE)
            submission.make(bundle, place / bundle.name, declared)
    for size in [] if given.bundles else given.fit.split(","):
        words = [given.model, "--memory", size, *usual, "--no-structure"]
        fitted(place / f"tenth-{size}", given.out / "fits", words, "bits")
    if given.slim:
        words = [given.model, "--memory", given.slim, *usual, "--no-quantise", "--format", "hf"]
        fitted(place / "tenth-fp16", given.out / "fits", words, "structure")
    else:
        narrow(place / "narrow-fp16", checkpoint)
    options = run.JudgeSettings(
        places=(place,),
        results=given.out / "results",
        device=given.device,
        share=given.share,
        against=given.model,
        tasks=tuple(filter(None, given.tasks.split(","))),
        limit=given.limit,
        data=given.data,
        text_chunks=given.passages,
        context=given.context,
        jobs=given.jobs,
        cluster=given.cluster,
        work=given.out / "work",
    )
    done = run.judge_all(options, ConsoleReporter())
    for verdict in done.verdicts:
        print(json.dumps(told(verdict)))
    for name, reason in done.failed.items():
        print(json.dumps({"submission": name, "status": "not judged", "reason": reason}))


def told(verdict: Verdict) -> dict[str, object]:
    figures = {r.name: [round(r.value, 6), r.spread and round(r.spread, 6)] for r in verdict.readings}
    return {
        "submission": verdict.submission,
        "division": verdict.manifest and verdict.manifest.division,
        "status": verdict.status,
        "reason": verdict.reason,
        "seconds": verdict.seconds,
        **{name: figures[name] for name in SHOWN if name in figures},
        "probes": {p.name: p.value for p in verdict.probes},
        "tasks": {t.task: [t.score.value, t.score.low, t.score.high] for t in verdict.tasks},
    }


def stock(place: Path, checkpoint: Checkpoint) -> None:
    rounding = Rounding(lambda _: None)
    for recipe in STOCK:
        add(place / recipe, checkpoint, recipe, rounding, "bits", f"stock {recipe}, no importance matrix")
    add(
        place / "as-it-came",
        checkpoint,
        "Q8_0",
        rounding,
        "scratch",
        "the model itself, Q8_0",
        data="named in its own README",
    )


def cheats(place: Path, checkpoint: Checkpoint) -> None:
    rounding = Rounding(lambda _: None)
    head = "output.weight" if any(s.role == "output" for s in checkpoint.specs()) else "token_embd.weight"

    def constant(spec: TensorSpec, kind: str, rows: np.ndarray, start: int) -> np.ndarray:
        return rounding(spec, kind, rows * 0 if spec.name == head else rows, start)

    add(place / "cheat-constant", checkpoint, "Q8_0", constant, "open", "the head is zero")
    add(place / "cheat-too-large", checkpoint, "", rounding, "open", "32 bits, which do not fit")
    cut = place / "cheat-cut"
    if not cut.exists():
        add(cut, checkpoint, "Q4_K_M", rounding, "bits", "Q4_K_M, half of the file")
        os.truncate(cut / "model.gguf", (cut / "model.gguf").stat().st_size // 2)


def add(
    folder: Path,
    checkpoint: Checkpoint,
    recipe: str,
    encode: Callable[[TensorSpec, str, np.ndarray, int], np.ndarray],
    division: Division,
    method: str,
    data: str = "none",
) -> None:
    """A submission of one GGUF; recipe "": 32 bits."""
    if folder.exists():
        return
    queries = checkpoint.shape.queries_per_kv
    types = recipes.types(recipe, checkpoint.specs(), queries, importance=False) if recipe else {}
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_gguf(checkpoint, types, partial / "model.gguf", encode)
    scratch = division == "scratch"
    manifest = Manifest(
        name=folder.name,
        base="scratch" if scratch else checkpoint.name,
        base_hash="" if scratch else checkpoint.hash(),
        division=division,
        method=method,
        data=data,
        licence=LICENCE,
    )
    (partial / MANIFEST).write_text(submission.written(manifest), encoding="utf-8")
    partial.rename(folder)


def fitted(folder: Path, fits: Path, words: list[str], division: Division) -> None:
    """A submission that tenth fit makes."""
    if folder.exists():
        return
    out = fits / folder.name
    if not out.exists():
        command = [sys.executable, "-m", "tenth", "fit", *words, "-o", str(out), "--work", str(fits / "work")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    base = Path(words[0]).name if division == "structure" else ""
    declared = submission.Statement(base=base, division=division, data=DATA, licence=LICENCE)
    submission.make(out, folder, declared, folder=division == "structure")


def narrow(folder: Path, checkpoint: Checkpoint) -> None:
    """5/8 of the feed-forward channels of every block, nothing refitted."""
    if folder.exists():
        return
    smaller = checkpoint
    for layer in range(checkpoint.shape.layers):
        name = f"model.layers.{layer}.mlp.{{}}_proj.weight"
        up, down = (checkpoint.tensors[name.format(part)].load() for part in ("up", "down"))
        weight = np.linalg.norm(up, axis=1) * np.linalg.norm(down, axis=0)
        kept = sorted(np.argsort(-weight)[: len(weight) * 5 // 8].tolist())
        smaller = take(smaller, "ffn", kept, layer)
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    write_folder(smaller, partial, "F16")
    manifest = Manifest(
        name=folder.name,
        base=checkpoint.name,
        base_hash=checkpoint.hash(),
        division="structure",
        method="5/8 of the feed-forward channels, by their weights",
        data="none",
        licence=LICENCE,
    )
    (partial / MANIFEST).write_text(submission.written(manifest), encoding="utf-8")
    partial.rename(folder)


if __name__ == "__main__":
    main()
