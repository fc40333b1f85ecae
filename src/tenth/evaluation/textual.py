"""Scores of answers in words that lm-eval leaves to others: programs that are run, words in common."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

from tenth.evaluation import programs

Item = dict[str, Any]  # of a task's data, as lm-eval hands it over
Scorer = Callable[[Item, str], float]


def scorer(name: str) -> Scorer | None:
    """The function of that name in a task's file; None for lm-eval's own scoring.

    NativeError where programs are to be run and this machine has no sandbox.
    """
    if name == "program":
        programs.require()
        return passes
    return {"f1": overlap}.get(name)


def passes(doc: Item, answer: str) -> float:
    """1 where prompt and answer together pass HumanEval's tests of that item."""
    program = f"{doc['prompt']}{answer}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return float(programs.run_program(program).passed)


def overlap(doc: Item, answer: str) -> float:
    """The best F1 of words in common with one of the right answers, as SQuAD and LongBench count it."""
    return max((_f1(_words(answer), _words(str(right))) for right in doc["answers"]), default=0.0)


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and articles."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _f1(answer: list[str], right: list[str]) -> float:
    common = sum((Counter(answer) & Counter(right)).values())
    if not common:
        return 0.0
    precision, recall = common / len(answer), common / len(right)
    return 2 * precision * recall / (precision + recall)
