"""Storing weights: ggml's own encoders with importance weights.

An `Encode` (models/formats/gguf.py) turns rows of float32 into blocks of a ggml type. `Rounding` is the stock
one: what llama-quantize does with an importance matrix, except that the importance of a column is its share
of the model's Fisher information (calibration/fisher.py) in place of the input's second moment; on ref-46m
the two are equal within 1 % of KL.

ggml aborts the process on what it does not like, so it is asked first: some types need importance weights,
none takes NaN, and a block of zero importance is given a small uniform one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from tenth.core.errors import InputError
from tenth.core.ggml import storage_type
from tenth.core.records import TensorSpec
from tenth.core.store import atomic
from tenth.models.formats.gguf import Encode
from tenth.runtime import llama

# Scales and minima are half-precision (up to 65504) and may exceed the largest weight; past it ggml writes
# infinities, and the types with a grid abort the process.
LARGEST = 32768.0
# Types that hold more: floats, and blocks whose scale is their largest weight over 8 or 127.
LARGER = {
    "F32": float("inf"),
    "BF16": float("inf"),
    "F16": 65504.0,
    "Q4_0": 8 * LARGEST,
    "Q8_0": 64 * LARGEST,
}
FLOOR = 1e-4  # of the mean importance, so that no column counts for nothing


def largest(type_name: str) -> float:
    """The largest weight that a type is trusted with."""
    return LARGER.get(type_name, LARGEST)


def quantise(rows: np.ndarray, type_name: str, importance: np.ndarray | None = None) -> np.ndarray:
    """Encode float32 rows [n, columns] with ggml; returns uint8 [n, bytes].

    importance: [columns], any non-negative scale. Thread-safe; releases the interpreter lock while it works.
    Raises InputError for rows that are no whole blocks, or hold NaN, infinity or weights beyond `largest`.
    """
    rows = np.ascontiguousarray(rows, np.float32)
    count, columns = rows.shape
    kind = storage_type(type_name)
    if not kind.holds(columns):
        raise InputError(f"rows of {columns} do not divide into {type_name}'s blocks of {kind.weights}")
    found, most = float(np.abs(rows).max(initial=0.0)), largest(type_name)
    if not np.isfinite(found):
        raise InputError(f"a weight to be stored as {type_name} is NaN or infinite")
    if found > most:
        raise InputError(
            f"a weight of {found:.3g} is beyond the half-precision scales of {type_name} (up to {most:g});"
            " choose another type for its matrix"
        )
    if importance is None and kind.needs_importance:
        importance = np.ones(columns, np.float32)
    weights = None if importance is None else _usable(importance, columns)
    out = np.zeros((count, kind.row_bytes(columns)), np.uint8)
    llama.library().ggml_quantize_chunk(
        kind.number,
        rows.ctypes.data,
        out.ctypes.data,
        0,
        count,
        columns,
        None if weights is None else weights.ctypes.data,
    )
    return out


def _usable(importance: np.ndarray, columns: int) -> np.ndarray:
    """float32 [columns], mean one, no zero and nothing that is no number."""
    if importance.shape != (columns,):
        raise InputError(f"importance of shape {list(importance.shape)} for rows of {columns}")
    weights = np.nan_to_num(np.asarray(importance, np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(0.0)
    mean = float(weights.mean())
    weights = weights / mean if mean > 0 else np.ones(columns)
    return np.ascontiguousarray(weights.clip(FLOOR), dtype=np.float32)


class Rounding:
    """The stock `Encode`: ggml's encoder on all threads; quantization/rounding.py has the better one.

    importance: Hugging Face weight name -> importance of its columns, or None.
    """

    def __init__(self, importance: Callable[[str], np.ndarray | None], threads: int = 0) -> None:
        self._importance = cache(importance)
        self._threads = threads or llama.cores()
        self._pool = ThreadPoolExecutor(self._threads)

    def __call__(self, spec: TensorSpec, type_name: str, rows: np.ndarray, start: int) -> np.ndarray:  # noqa: ARG002
        """Blocks of `rows`, which begin at row `start` of the GGUF tensor. uint8 [n, row bytes]."""
        return self.weighted(rows, type_name, self._importance(spec.source))

    def weighted(self, rows: np.ndarray, type_name: str, importance: np.ndarray | None) -> np.ndarray:
        """Quantise rows by `quantise` on all threads."""
        parts = [part for part in np.array_split(rows, self._threads) if len(part)]
        return np.concatenate(list(self._pool.map(lambda part: quantise(part, type_name, importance), parts)))


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
