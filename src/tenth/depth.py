"""What a model loses with its whole attention in one block, or with a whole block: the KL, measured.

All are measured in one walk. Every variant is a stream of hidden states of its own that begins where it
leaves the original, so a block is loaded once and runs on all streams that have begun.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenth.store import write_text
from tenth.walk import Hidden, Walk

RESULT = "depth.json"


@dataclass(frozen=True)
class Depth:
    """KL to the original in nats per token, for each block, without its attention and without all of it."""

    attention: list[float]
    whole: list[float]


def passes(blocks: int) -> int:
    """How many times a block runs."""
    return blocks + blocks * blocks


def measure(walk: Walk, windows: np.ndarray, folder: Path, progress: Callable[[float], None]) -> Depth:
    """From int32 [windows, T]; hidden states of all streams are in `folder` meanwhile. A result that is there
    is taken.
    """
    if (folder / RESULT).exists():
        return Depth(**json.loads((folder / RESULT).read_text()))
    state = Hidden(folder, len(windows), windows.shape[1], walk.width, walk.device)
    blocks, done = len(walk.blocks), 0
    with walk.embed() as embed:
        state.write("depth-original", (embed(window) for window in windows))
    for index in range(blocks):
        with walk.block(index):
            state.write(f"depth-whole-{index}", state.read("depth-original"))
            with _Silent(walk, index):
                _step(walk, index, state, "depth-original", f"depth-attention-{index}")
            streams = ["original", *(f"{kind}-{i}" for i in range(index) for kind in ("attention", "whole"))]
            for name in streams:
                _step(walk, index, state, f"depth-{name}", f"depth-{name}")
        done += len(streams) + 1
        progress(done)
    found: dict[str, list[float]] = {"attention": [], "whole": []}
    with walk.head():
        wanted = [walk.logits(hidden)[0].log_softmax(-1).cpu() for hidden in state.read("depth-original")]
        for kind, values in found.items():
            for index in range(blocks):
                parts = [
                    _divergence(logits.to(hidden.device), walk.logits(hidden)[0].log_softmax(-1))
                    for logits, hidden in zip(wanted, state.read(f"depth-{kind}-{index}"), strict=True)
                ]
                values.append(max(0.0, sum(parts) / len(parts)))
    write_text(folder / RESULT, json.dumps(found))
    clear_streams(state, blocks)
    return Depth(**found)


def clear(folder: Path) -> None:
    """Remove the kept result."""
    (folder / RESULT).unlink(missing_ok=True)


def clear_streams(state: Hidden, blocks: int) -> None:
    """Remove the hidden states."""
    state.drop("depth-original")
    for index in range(blocks):
        for kind in ("attention", "whole"):
            state.drop(f"depth-{kind}-{index}")


def _step(walk: Walk, index: int, state: Hidden, source: str, key: str) -> None:
    state.write(key, (walk.run(index, hidden) for hidden in state.read(source)))


def _divergence(wanted: torch.Tensor, found: torch.Tensor) -> float:
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


class _Silent:
    """A block whose attention gives nothing, for the length of the with statement."""

    def __init__(self, walk: Walk, index: int) -> None:
        source = walk.checkpoint.arch.block(walk.checkpoint.config)["attn_output.weight"].source
        name = source.format(i=index)
        self._module: Any = next(m for m, n in walk.linears(index).items() if n == name)

    def __enter__(self) -> None:
        self._hook = self._module.register_forward_hook(lambda _m, _a, out: torch.zeros_like(out))

    def __exit__(self, *_exc: object) -> None:
        self._hook.remove()
