"""Every matrix of a plan rounded with error feedback, block by block; kept by tensor and type.

A folder of `<GGUF tensor>.<type>.npy`, uint8 [rows, row bytes], which only grows: plans for other budgets
use what is there. The model is walked once, forwards, in its own weights: a block's Gram matrices
(quantization/gram.py) are made, its matrices rounded, then they are dropped. Peak memory is one block as
float32 with its Gram matrices, and four more of the widest; the hidden states of two block boundaries are on
disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from tenth.calibration.layerwise import Hidden, LayerwiseModel
from tenth.calibration.stats import Stats
from tenth.core import digests
from tenth.core.jobs import Compute, Emit
from tenth.core.records import TensorSpec
from tenth.models.checkpoint import HEAD, Checkpoint, open_checkpoint
from tenth.models.formats.gguf import source_rows
from tenth.quantization import gptq, gram
from tenth.quantization.encode import Rounding, keep, largest, path_of
from tenth.quantization.grids import GRIDS

SLICE = 32_000_000  # bytes of float32 rows that are rounded together
GPU_ROWS = 4096  # of a matrix; columns of fewer take a GPU longer to start than a processor to round


def round_plan(
    model: Path,
    tokens: Path,
    calibration: Path,
    types: Mapping[str, str],
    folder: Path,
    rounds: int,
    compute: Compute,
    emit: Emit,
) -> int:
    """Put what `types` (GGUF tensor name -> ggml type) asks for into `folder`; resumes by tensor.

    tokens: npy, int32 [windows, T], those of `calibration`, a folder of statistics. rounds: of refitting
    scales. Types without a grid (F16, BF16) and embeddings without a head are left to the plain encoder.
    Emits {"done": weights, "total": weights}. Returns how many tensors were rounded now.
    """
    stats, windows = Stats(calibration), np.load(tokens, allow_pickle=False)
    checkpoint = open_checkpoint(model)
    rounder = Rounder(checkpoint, types, folder, stats, rounds, compute.threads, emit)
    if not rounder.missing:
        for left in folder.glob("hidden-*"):  # by a run that was killed at its very end
            digests.forget(left)
        return 0
    layerwise = LayerwiseModel(checkpoint, compute.threads, compute.device)
    state = Hidden(folder, len(windows), windows.shape[1], layerwise.width, layerwise.device)
    depth = len(layerwise.blocks)
    with torch.no_grad():
        for index in range(_start(layerwise, state, windows, rounder.missing), depth):
            if not rounder.missing:
                break
            linears = {m: name for m, name in layerwise.linears(index).items() if name in rounder.missing}
            energies = {module: stats.energy(name) for module, name in linears.items()}
            with layerwise.block(index), gram.Grams(energies) as grams:
                layerwise.advance(index, state)
            for module, name in linears.items():
                rounder.put(name, grams.take(module, stats[name].cols))
            state.drop(index)
        source = layerwise.source_of(layerwise.embedding) if checkpoint.shape.tied else HEAD
        if source in rounder.missing:
            with layerwise.head() as head, gram.Grams({head: stats.energy(HEAD)}) as grams:
                for hidden in state.read(depth):
                    layerwise.logits(hidden)
            matrix = grams.take(head, stats[HEAD].cols)
            matrix.diagonal().copy_(torch.from_numpy(stats[source].cols))  # errors of lookups do not mix
            rounder.put(source, matrix)
    state.clear()
    return rounder.count


def _start(
    layerwise: LayerwiseModel, state: Hidden, windows: np.ndarray, missing: Mapping[str, object]
) -> int:
    """The last block boundary before all that is missing whose hidden states a killed run left, or 0."""
    depth = len(layerwise.blocks)
    first = next(
        (i for i in range(depth) if not missing.keys().isdisjoint(layerwise.linears(i).values())), depth
    )
    known = [index for index in range(first + 1) if state.has(index)]
    if not known:
        layerwise.embed_windows(windows, state)
    return max(known, default=0)


class Rounder:
    """What is still to be rounded, and the folder that it goes to.

    missing: source -> the GGUF tensors that are made of it. count: how many tensors were kept. done: weights
    that were rounded elsewhere and count in the progress.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        types: Mapping[str, str],
        folder: Path,
        stats: Stats,
        rounds: int,
        threads: int,
        emit: Emit,
    ) -> None:
        self._checkpoint, self._types, self._folder, self._rounds = checkpoint, types, folder, rounds
        self._emit, self.done, self.count = emit, 0, 0
        self._encode = Rounding(lambda source: stats[source].cols, threads)
        self.missing: dict[str, list[TensorSpec]] = defaultdict(list)
        for spec in checkpoint.specs():
            kind = types.get(spec.name, "")
            multiplied = spec.role != "token_embd" or checkpoint.shape.tied
            if multiplied and kind in GRIDS and not path_of(folder, spec.name, kind).exists():
                self.missing[spec.source].append(spec)
        self.total = sum(spec.count for specs in self.missing.values() for spec in specs)

    def put(self, source: str, matrix: torch.Tensor, shift: torch.Tensor | None = None) -> None:
        """Round and keep the tensors that are made of `source`; matrix: H of its columns, used up.

        shift: what is stored comes near to W + W shift instead of W; float32 [in, in].
        """
        h = gptq.damped(matrix)
        for spec in self.missing.pop(source):
            kind = self._types[spec.name]
            on = h if spec.shape[0] >= GPU_ROWS else h.cpu()
            moved = None if shift is None else shift.to(on.device)
            keep(self._folder, spec.name, kind, np.concatenate(list(self._slices(spec, kind, on, moved))))
            self.count += 1

    def _slices(
        self, spec: TensorSpec, kind: str, h: torch.Tensor, shift: torch.Tensor | None
    ) -> Iterable[np.ndarray]:
        def encode(rows: np.ndarray, importance: np.ndarray) -> np.ndarray:
            most = largest(kind)
            return self._encode.weighted(rows.clip(-most, most), kind, importance)

        for _, rows in source_rows(self._checkpoint, spec, SLICE):
            weight = torch.from_numpy(np.ascontiguousarray(rows)).to(h.device)
            if shift is not None:
                weight = weight.addmm(weight, shift)
            yield gptq.round_rows(weight, h, GRIDS[kind], encode, self._rounds)
            self.done += rows.size
            self._emit({"done": self.done, "total": self.total})
