"""Tasks: do both routes agree on the same weights, and what does the cache's roll-back save?

    python bench/tasks.py MODEL --data FOLDER [--tasks piqa,arc_easy,winogrande,lambada] [--limit 200]

MODEL is a Hugging Face folder or `bundled`. Its F32 GGUF is written to a temporary folder. One JSON line for
each task: scores of both routes in points, how far apart, items on which they differ, seconds an item. Then
one line for each of two shapes of item: seconds with roll-back and with every choice evaluated from its first
token (medians of --repeats runs, in turns), and how far apart the log-likelihoods are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rollback import Rollback

from tenth.cli.console import ConsoleReporter
from tenth.core import jobs
from tenth.evaluation import evaluate, results
from tenth.evaluation.settings import EvalSettings
from tenth.models import source as models
from tenth.models.checkpoint import open_checkpoint
from tenth.models.formats.gguf import write_gguf


def main() -> None:
    """Both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", default="piqa,arc_easy,winogrande,lambada")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--items", type=int, default=50, help="of the roll-back's comparison")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    folder = models.resolve(given.model)
    with tempfile.TemporaryDirectory() as scratch:
        gguf = Path(scratch) / "model.gguf"
        checkpoint = open_checkpoint(folder)
        write_gguf(checkpoint, {s.name: "F32" for s in checkpoint.specs() if s.linear}, gguf)
        if given.limit:
            agreement(gguf, folder, given)
        for name, pairs in shapes(given.data, given.items).items():
            job = Rollback(path=gguf, pairs=pairs, repeats=given.repeats, threads=given.threads)
            print(json.dumps({"shape": name, **jobs.run(job).model_dump()}), flush=True)


def agreement(gguf: Path, folder: Path, given: argparse.Namespace) -> None:
    """Every task by both routes."""
    tasks = tuple(given.tasks.split(","))
    settings = EvalSettings(tasks=tasks, limit=given.limit, data=given.data, threads=given.threads)
    ours, outcomes = evaluate.evaluate(evaluate.subject(str(gguf)), settings, ConsoleReporter())
    theirs, original = evaluate.evaluate(evaluate.subject(str(folder)), settings, ConsoleReporter())
    compared = results.compare(ours.tasks, outcomes, original)
    for one, other, pair in zip(ours.tasks, theirs.tasks, compared, strict=True):
        scores = {
            score.metric: [round(100 * s.value.value, 3) for s in (score, same)]
            for score, same in zip(one.scores, other.scores, strict=True)
        }
        line = {
            "task": one.task,
            "items": one.items,
            "gguf and hf, points": scores,
            "apart, points": max(round(abs(a - b), 3) for a, b in scores.values()),
            "differ": pair.lost + pair.won,
            "s/item, gguf": one.seconds / one.items,
            "s/item, hf": other.seconds / other.items,
        }
        print(json.dumps(line), flush=True)


def shapes(data: Path, count: int) -> dict[str, list[tuple[str, str]]]:
    """Short questions with four answers, and questions with about five behind ten examples."""
    short, long = [], []
    for row in _rows(data / "arc_easy_test.jsonl", count):
        short += [(f"Question: {row['question']}\nAnswer:", f" {text}") for text in row["choices"]["text"]]
    examples = "\n\n".join(
        f"Question: {row['question']}\nAnswer: {row['choices']['text'][0]}"
        for row in _rows(data / "arc_easy_test.jsonl", count + 10)[count:]
    )
    for row in _rows(data / "truthfulqa_mc_validation.jsonl", count):
        context = f"{examples}\n\nQuestion: {row['question']}\nAnswer:"
        long += [(context, f" {text}") for text in row["mc1_targets"]["choices"]]
    return {"arc_easy": short, "truthfulqa_mc1 after 10 examples": long}


def _rows(file: Path, count: int) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as source:
        return [json.loads(line) for line, _ in zip(source, range(count), strict=False)]


if __name__ == "__main__":
    main()
