"""Made-up items of every task, as files of --data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tenth.evaluation import catalogue

WORDS = ["cat", "dog", "mat", "log", "fox", "bone", "café", "number"]


def _lettered(n: int, labels: str) -> dict[str, Any]:
    texts = [f"the {WORDS[(n + i) % len(WORDS)]}" for i in range(len(labels))]
    question = f"Who sat on the {WORDS[n % len(WORDS)]} {n}?"
    key = labels[n % len(labels)]
    return {"question": question, "choices": {"text": texts, "label": list(labels)}, "answerKey": key}


def _truthful(n: int) -> dict[str, Any]:
    one = {"choices": ["Yes, it sat.", "No.", "It never did."], "labels": [1, 0, 0]}
    many = {"choices": ["Yes.", "It did.", "No.", "Never."], "labels": [1, 1, 0, 0]}
    return {"question": f"Did cat {n} sit?", "mc1_targets": one, "mc2_targets": many}


def _program(n: int) -> dict[str, Any]:
    prompt = f'def add(x):\n    """Add {n} to x."""\n'
    test = f"def check(candidate):\n    assert candidate(1) == {n + 1}\n"
    return {"task_id": f"HumanEval/{n}", "prompt": prompt, "entry_point": "add", "test": test}


def item(file: str, n: int) -> dict[str, Any]:
    """The n-th item of a file."""
    two = WORDS[n % 8], WORDS[(n + 3) % 8]
    sat = f"The {two[0]} sat on the {two[1]}"
    rows: dict[str, dict[str, Any]] = {
        "arc": _lettered(n, "1234"),
        "bbh": {"input": f"not ( True ) and {n} is", "target": str(n % 3 == 0)},
        "chid": {
            "id": n,
            "candidates": ["不共戴天", "改朝换代", "it's 🙂"],
            "content": f"{'#idiom#' if n == 0 else f'你好 {n} #idiom#'} 世界'\"。",
            "answer": n % 3,
        },
        "commonsense": _lettered(n, "ABCDE"),
        "gsm8k": {"question": f"How many are {n} bones and 1?", "answer": f"Together {n + 1}.\n#### {n + 1}"},
        "hellaswag": {"query": sat, "choices": ["and waits.", "or flies.", "in vain."], "label": n % 3},
        "humaneval": _program(n),
        "lambada": {"text": f"{sat}. {sat}"},
        "longbench": {"input": f"Who sat {n}?", "context": f"{sat}. " * 9, "answers": [f"the {two[0]}"]},
        "piqa": {"goal": sat, "sol1": "Wait for it.", "sol2": "Jump over it.", "label": n % 2},
        "truthfulqa": _truthful(n),
        "winogrande": {
            "sentence": f"{sat} because _ was tired {n}.",
            "option1": two[0],
            "option2": two[1],
            "answer": str(1 + n % 2),
        },
    }
    return next(row for name, row in rows.items() if file.startswith(name))


def write(folder: Path, count: int, tasks: list[str] | None = None) -> Path:
    """Files of all tasks, or of those named, with `count` items each (5 more for examples)."""
    known = catalogue.known()
    for name in tasks or known:
        task = known[name]
        for member in task.members:
            for split, file in task.files.items():
                path = folder / file.format(member=member)
                path.parent.mkdir(parents=True, exist_ok=True)
                rows = (item(str(path.relative_to(folder)), n) for n in range(count + 5 * (split == "train")))
                text = "".join(json.dumps(row) + "\n" for row in rows)
                path.write_text(text, encoding="utf-8")
    return folder
