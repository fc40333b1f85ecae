"""Gram matrices of the inputs of linear sites, streamed block by block, for error-compensated rounding.

G = sum over tokens of x x^T / tokens, float32 [in, in]. Sites that read the same hidden state (q, k, v; gate
and up) share one matrix. Each lies in a file of its own, mapped into memory while it grows, so that the
system may spill a large one; peak memory is one block, one window of hidden states, and its matrices.

Round-to-nearest storage does not use them: weighted by the full matrix the predicted KL is no better than
with the diagonal that calibrate.py keeps (docs/log.md), so a fit does not make them. Rounding that feeds
errors forward will.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tenth.store import write_text


class Grams:
    """Read-only view of a folder of Gram matrices, by Hugging Face weight name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, list[Any]] = {}
        for path in sorted(folder.glob("sites-*.json")):
            self._files |= json.loads(path.read_text(encoding="utf-8"))

    def __contains__(self, source: str) -> bool:
        return source in self._files

    def __getitem__(self, source: str) -> np.ndarray:
        """The matrix of that weight's inputs, float32 [in, in], mapped read-only. Raises KeyError."""
        name, side = self._files[source]
        return np.memmap(self._folder / Path(name).name, np.float32, "r", shape=(side, side))


def run(
    emit: Callable[[dict[str, Any]], None], model: str, tokens: str, folder: str, threads: int
) -> dict[str, Any]:
    """In a child process: fill `folder` from tokens.npy int32 [windows, T]; resumes by block.

    Emits {"done": blocks, "total": blocks}.
    """
    import torch

    from tenth.checkpoint import open_checkpoint
    from tenth.walk import Hidden, Walk

    here, windows = Path(folder), np.load(tokens, allow_pickle=False)
    walk = Walk(open_checkpoint(Path(model)), threads)
    depth, state = len(walk.blocks), Hidden(here, len(windows), windows.shape[1], walk.width)
    if not any(state.has(index) for index in range(depth + 1)):
        with walk.embed() as embed:
            state.write(0, (embed(window) for window in windows))
    for index in range(depth):
        if state.has(index):
            with walk.block(index) as block, torch.no_grad():
                collector = _Collector(here, index, block, windows.size)
                state.write(index + 1, (walk.run(index, hidden) for hidden in state.read(index)))
                collector.finish({module: walk.source_of(module, index) for module in collector.linears})
            state.drop(index)
        emit({"done": index + 1, "total": depth})
    state.clear()
    return {"windows": len(windows)}


class _Collector:
    """Adds up the inputs of one block's linear sites while it runs."""

    def __init__(self, folder: Path, index: int, block: Any, tokens: int) -> None:
        import torch

        self._folder, self._index, self._tokens = folder, index, tokens
        self._sums: dict[Any, Any] = {}  # the first site that reads an input -> its matrix
        self._leader: dict[Any, Any] = {}  # site -> that first site
        # Of the running window: address of an input -> the input, kept so that no other gets its address,
        # and the first site that read it.
        self._inputs: dict[int, tuple[Any, Any]] = {}
        self.linears = [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
        self._hooks = [module.register_forward_pre_hook(self._seen) for module in self.linears]
        self._hooks.append(block.register_forward_hook(lambda *_: self._inputs.clear()))

    def _seen(self, module: Any, args: tuple[Any, ...]) -> None:
        import torch

        x = args[0].reshape(-1, args[0].shape[-1])
        _, first = self._inputs.setdefault(args[0].data_ptr(), (args[0], module))
        if self._leader.setdefault(module, first) is not module:
            return
        if module not in self._sums:
            side, path = x.shape[1], self._folder / f"gram-{self._index:04d}-{len(self._sums)}.f32"
            path.unlink(missing_ok=True)  # of a killed run
            matrix = torch.from_file(str(path), shared=True, size=side * side, dtype=torch.float32)
            self._sums[module] = (path, matrix.view(side, side))
        self._sums[module][1].addmm_(x.T, x, alpha=1.0 / self._tokens)

    def finish(self, names: Mapping[Any, str]) -> None:
        """Store which matrix belongs to which site; the block is done when this file is there."""
        for hook in self._hooks:
            hook.remove()
        sites = {}
        for module, leader in self._leader.items():
            path, matrix = self._sums[leader]
            sites[names[module]] = [path.name, matrix.shape[0]]
        write_text(self._folder / f"sites-{self._index:04d}.json", json.dumps(sites))
