"""Strangers' folders, all of a kind: is what we make of them what transformers makes of them?

    python bench/strangers.py layouts config tokens [--family NAME] > strangers.jsonl

One JSON line a cell: a layout of the weights (tests/layouts.py), a key of config.json left out, null or with
another value (tests/configs.py), or a tokenizer (bench/strangers_tokens.py), of one family. "verdict" is
"equal" (logits of our float32 GGUF in llama.cpp within 0.01 of transformers, or the same ids), "refused" (and
what was said), "theirs" (which transformers refuses, and we as well), "unrun" (which transformers cannot run
and we would, so that the check at the start of a fit refuses it), or, silently wrong, "different". The last
line counts them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tenth.models import arch

# By name, since the tests are not typed.
configs, layouts = importlib.import_module("configs"), importlib.import_module("layouts")


def layout_cells(family: str) -> Iterator[tuple[str, Any]]:
    for layout in layouts.LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                reference = layouts.make_layout(Path(folder) / "model", family, layout)
            except (StopIteration, KeyError):  # the family has no such tensor
                continue
            yield layout, layouts.compared(Path(folder) / "model", reference)


def config_cells(family: str) -> Iterator[tuple[str, Any]]:
    for name, config in configs.changed(family):
        with tempfile.TemporaryDirectory() as folder:
            yield name, configs.config_cell(Path(folder) / "model", family, config)


def lines(kinds: list[str], families: list[str]) -> Iterator[dict[str, Any]]:
    for kind in kinds:
        if kind == "tokens":
            yield from importlib.import_module("strangers_tokens").cells()
            continue
        make = layout_cells if kind == "layouts" else config_cells
        for family in families:
            for cell, found in make(family):
                yield {
                    "kind": kind,
                    "family": family,
                    "cell": cell,
                    "verdict": found.verdict,
                    "difference": found.difference,
                    "why": found.why[:300],
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("kinds", nargs="+", choices=("layouts", "config", "tokens"))
    parser.add_argument("--family", nargs="*", default=arch.names())
    chosen = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    logs: Any = transformers.utils.logging
    logs.disable_progress_bar()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    for line in lines(chosen.kinds, chosen.family):
        counts[line["verdict"]] += 1
        print(json.dumps(line), flush=True)
    silent = counts["different"]
    summary = {"cells": counts.total(), **{verdict: counts[verdict] for verdict in sorted(counts)}}
    print(json.dumps({**summary, "silent_differences": silent}), flush=True)
    sys.exit(1 if silent else 0)


if __name__ == "__main__":
    main()
