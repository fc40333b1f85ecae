"""Storing weights: ggml's own encoders with importance weights.

An `Encode` (formats/gguf.py) turns rows of float32 into blocks of a ggml type. `Rounding` is the stock one:
what llama-quantize does with an importance matrix, except that the importance of a column is its share of the
model's Fisher information (calibrate.py) in place of the input's second moment; on ref-46m the two are equal
within 1 % of KL.

ggml aborts the process on what it does not like, so it is asked first: some types need importance weights,
none takes NaN, and a block of zero importance is given a small uniform one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from tenth import native
from tenth.errors import InputError
from tenth.records import TensorSpec

# Every storage type of 1.56 to 16 bits that stock llama.cpp b11549 both encodes and runs, by bits per weight.
# Not here: Q2_0, which the gguf package (0.19) cannot name yet, NVFP4 (a per-tensor scale beside the blocks),
# Q8_1 and Q8_K (internal).
TYPES = (
    "IQ1_S", "TQ1_0", "IQ1_M", "TQ2_0", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K",
    "IQ4_XS", "MXFP4", "IQ4_NL", "Q4_0", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0", "BF16",
    "F16",
)  # fmt: skip
# Scales and minima are half-precision (up to 65504) and may exceed the largest weight; past it ggml writes
# infinities, and the types with a grid abort the process.
LARGEST = 32768.0
FLOOR = 1e-4  # of the mean importance, so that no column counts for nothing


@cache
def block(type_name: str) -> tuple[int, int]:
    """(weights, bytes) of one block of a ggml type. InputError for an unknown name."""
    try:
        weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    except KeyError:
        raise InputError(f"unknown ggml type {type_name!r}; known: {', '.join(TYPES)}") from None
    return int(weights), int(size)


def holds(type_name: str, columns: int) -> bool:
    """Whether rows of that many weights divide into the type's blocks."""
    return columns % block(type_name)[0] == 0


def bits_per_weight(type_name: str) -> float:
    """Bits per weight of a ggml type."""
    weights, size = block(type_name)
    return 8 * size / weights


def activation_block(type_name: str) -> int | None:
    """Length of the blocks in which ggml rounds activations to 8 bits before a product with this type; None:
    it does not.

    From the vec_dot_type of ggml-cpu.c's type traits: block_q8_K (256) for K-, I- and ternary types,
    block_q8_0 or q8_1 (32) for the others.
    """
    if type_name in ("F32", "F16", "BF16"):
        return None
    return 32 if block(type_name)[0] < 256 else 256


def quantise(rows: np.ndarray, type_name: str, importance: np.ndarray | None = None) -> np.ndarray:
    """Encode float32 rows [n, columns] with ggml; returns uint8 [n, bytes].

    importance: [columns], any non-negative scale. Thread-safe; releases the interpreter lock while it works.
    Raises InputError for rows that are no whole blocks, or hold NaN, infinity or weights beyond `LARGEST`.
    """
    rows = np.ascontiguousarray(rows, np.float32)
    count, columns = rows.shape
    if not holds(type_name, columns):
        raise InputError(
            f"rows of {columns} do not divide into {type_name}'s blocks of {block(type_name)[0]}"
        )
    largest = float(np.abs(rows).max(initial=0.0))
    if not np.isfinite(largest):
        raise InputError(f"a weight to be stored as {type_name} is NaN or infinite")
    if largest > LARGEST and type_name not in ("F32", "BF16"):
        raise InputError(
            f"a weight of {largest:.3g} is beyond the half-precision scales of {type_name}"
            f" (up to {LARGEST:g}); give a checkpoint without such outliers"
        )
    lib, number = native.library(), native.type_id(type_name)
    if importance is None and lib.ggml_quantize_requires_imatrix(number):
        importance = np.ones(columns, np.float32)
    weights = None if importance is None else _usable(importance, columns)
    out = np.zeros((count, lib.ggml_row_size(number, columns)), np.uint8)
    lib.ggml_quantize_chunk(
        number,
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
    """The stock `Encode`: ggml's encoder on all threads. (rounding.py has the better one.)

    importance: Hugging Face weight name -> importance of its columns, or None.
    """

    def __init__(self, importance: Callable[[str], np.ndarray | None], threads: int = 0) -> None:
        self._importance = cache(importance)
        self._threads = threads or native.cores()
        self._pool = ThreadPoolExecutor(self._threads)

    def __call__(self, spec: TensorSpec, type_name: str, rows: np.ndarray, start: int) -> np.ndarray:  # noqa: ARG002
        """Blocks of `rows`, which begin at row `start` of the GGUF tensor. uint8 [n, row bytes]."""
        return self.weighted(rows, type_name, self._importance(spec.source))

    def weighted(self, rows: np.ndarray, type_name: str, importance: np.ndarray | None) -> np.ndarray:
        """`quantise` on all threads."""
        parts = [part for part in np.array_split(rows, self._threads) if len(part)]
        return np.concatenate(list(self._pool.map(lambda part: quantise(part, type_name, importance), parts)))
