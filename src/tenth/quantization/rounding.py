"""Every matrix of a plan rounded with error feedback, block by block; kept by tensor and type.

A folder of `<GGUF tensor>.<type>.npy`, uint8 [rows, row bytes], which only grows: plans for other budgets
use what is there. The model is walked once, forwards, in its own weights: a block's Gram matrices
(quantization/gram.py) are made, its matrices rounded, then they are dropped. Peak memory is one block as
float32 with its Gram matrices, and four more of the widest; the hidden states of two block boundaries are on
disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tenth.calibration.fisher import Stats
from tenth.core.records import TensorSpec
from tenth.core.store import atomic
from tenth.models.checkpoint import HEAD, Checkpoint, open_checkpoint
from tenth.models.formats.gguf import Encode, source_rows
from tenth.quantization.encode import LARGEST, Rounding

if TYPE_CHECKING:
    import torch

    from tenth.calibration.layerwise import Hidden, LayerwiseModel

SLICE = 32_000_000  # bytes of float32 rows that are rounded together
GPU_ROWS = 4096  # of a matrix; columns of fewer take a GPU longer to start than a processor to round


def path_of(folder: Path, name: str, type_name: str) -> Path:
    """Where a rounded tensor lies."""
    return folder / f"{name}.{type_name}.npy"


def keep(folder: Path, name: str, type_name: str, values: np.ndarray) -> None:
    """Put a tensor there, whole or not at all."""
    with atomic(path_of(folder, name, type_name)) as partial, partial.open("wb") as file:
        np.save(file, values, allow_pickle=False)


class Rounded:
    """An `Encode` that hands out what was rounded; where nothing was, `otherwise` encodes.

    folders: the first that has a tensor counts.
    """

    def __init__(self, folders: Sequence[Path], otherwise: Encode) -> None:
        self._folders, self._otherwise = folders, otherwise

    def __call__(self, spec: TensorSpec, type_name: str, rows: np.ndarray, start: int) -> np.ndarray:
        """Blocks of `rows`, which begin at row `start` of the GGUF tensor. uint8 [n, row bytes]."""
        for folder in self._folders:
            with suppress(FileNotFoundError):
                whole = np.load(path_of(folder, spec.name, type_name), mmap_mode="r", allow_pickle=False)
                return np.ascontiguousarray(whole[start : start + len(rows)])
        return self._otherwise(spec, type_name, rows, start)


def trained_vectors(folders: Sequence[Path], specs: Iterable[TensorSpec]) -> dict[str, np.ndarray]:
    """The vectors in folders (quantization/scales.py), float32 [n] by GGUF name."""
    found = {}
    for spec in specs:
        for folder in folders:
            path = path_of(folder, spec.name, "F32")
            if len(spec.shape) == 1 and spec.name not in found and path.exists():
                found[spec.name] = np.load(path, allow_pickle=False)
    return found


def run(
    emit: Callable[[dict[str, Any]], None],
    model: str,
    tokens: str,
    calibration: str,
    types: dict[str, str],
    folder: str,
    rounds: int,
    threads: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """In a child process: put what `types` (GGUF tensor name -> ggml type) asks for into `folder`.

    Resumes by tensor. tokens: tokens.npy int32 [windows, T], those of `calibration`, a folder of stats. Types
    without a grid (F16, BF16) and embeddings without a head are left to the plain encoder. device: of torch.
    Emits {"done": weights, "total": weights}.
    """
    import torch

    from tenth.calibration.layerwise import Hidden, LayerwiseModel
    from tenth.quantization import gram

    here, stats, windows = Path(folder), Stats(Path(calibration)), np.load(tokens, allow_pickle=False)
    checkpoint = open_checkpoint(Path(model))
    rounder = Rounder(checkpoint, types, here, stats, rounds, threads, emit)
    if not rounder.missing:
        for left in here.glob("hidden-*"):  # by a run that was killed at its very end
            left.unlink()
        return {"tensors": 0}
    layerwise = LayerwiseModel(checkpoint, threads, device)
    state = Hidden(here, len(windows), windows.shape[1], layerwise.width, layerwise.device)
    depth = len(layerwise.blocks)
    with torch.no_grad():
        for index in range(_start(layerwise, state, windows, rounder.missing), depth):
            if not rounder.missing:
                break
            wanted = {m: name for m, name in layerwise.linears(index).items() if name in rounder.missing}
            with (
                layerwise.block(index),
                gram.Grams({m: stats.energy(name) for m, name in wanted.items()}) as grams,
            ):
                state.write(index + 1, (layerwise.run(index, hidden) for hidden in state.read(index)))
            for module, name in wanted.items():
                rounder.put(name, grams.take(module, stats[name].cols))
            state.drop(index)
        source = layerwise.source_of(layerwise.embedding) if checkpoint.tied else HEAD
        if source in rounder.missing:
            with layerwise.head() as head, gram.Grams({head: stats.energy(HEAD)}) as grams:
                for hidden in state.read(depth):
                    layerwise.logits(hidden)
            matrix = grams.take(head, stats[HEAD].cols)
            matrix.diagonal().copy_(torch.from_numpy(stats[source].cols))  # errors of lookups do not mix
            rounder.put(source, matrix)
    state.clear()
    return {"tensors": rounder.count}


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
        with layerwise.embed() as embed:
            state.write(0, (embed(window) for window in windows))
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
        emit: Callable[[dict[str, Any]], None],
        done: int = 0,
    ) -> None:
        from tenth.quantization.grids import GRIDS

        self._checkpoint, self._types, self._folder, self._rounds = checkpoint, types, folder, rounds
        self._emit, self._done, self.count = emit, done, 0
        self._encode = Rounding(lambda source: stats[source].cols, threads)
        self.missing: dict[str, list[TensorSpec]] = defaultdict(list)
        for spec in checkpoint.specs():
            kind = types.get(spec.name, "")
            multiplied = spec.role != "token_embd" or checkpoint.tied
            if multiplied and kind in GRIDS and not path_of(folder, spec.name, kind).exists():
                self.missing[spec.source].append(spec)
        self.total = done + sum(spec.count for specs in self.missing.values() for spec in specs)

    def put(self, source: str, matrix: torch.Tensor, shift: torch.Tensor | None = None) -> None:
        """Round and keep the tensors that are made of `source`; matrix: H of its columns, used up.

        shift: what is stored comes near to W + W shift instead of W; float32 [in, in].
        """
        from tenth.quantization import gptq

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
        import torch

        from tenth.quantization import gptq
        from tenth.quantization.grids import GRIDS

        def encode(rows: np.ndarray, importance: np.ndarray) -> np.ndarray:
            return self._encode.weighted(rows.clip(-LARGEST, LARGEST), kind, importance)

        for _, rows in source_rows(self._checkpoint, spec, SLICE):
            weight = torch.from_numpy(np.ascontiguousarray(rows)).to(h.device)
            if shift is not None:
                weight = weight.addmm(weight, shift)
            yield gptq.round_rows(weight, h, GRIDS[kind], encode, self._rounds)
            self._done += rows.size
            self._emit({"done": self._done, "total": self.total})
