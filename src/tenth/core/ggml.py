"""ggml's storage types, one row each: their blocks, their numbers in files, what llama.cpp's kernels do with
them, and what they may be chosen for.

The facts are those of llama.cpp b11549; tests/core/test_ggml.py compares every row with the loaded library
and with the gguf package. A type that is to be planned with too is one more row; a grid
(quantization/grids) lets error feedback round to it.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Literal

from tenth.core.errors import InputError

# Lengths of the blocks in which the CPU backend rounds activations to 8 bits (ggml-common.h: block_q8_K ...).
_ROUNDED: dict[str | None, int] = {"Q8_K": 256, "Q8_0": 32, "Q8_1": 32}


@dataclass(frozen=True)
class StorageType:
    """How ggml stores the weights of a tensor: blocks of so many weights in so many bytes, along its rows."""

    name: str  # ggml's, in upper case
    number: int  # in a GGUF file (enum ggml_type)
    weights: int  # of one block
    bytes: int  # of one block
    file_type: int | None  # of a file that holds mostly this type (enum llama_ftype); None: it has none
    # What the CPU backend converts activations to before a product with it (vec_dot_type of ggml-cpu.c).
    activations: str | None  # None: ggml multiplies with no such weights
    kernels: Literal["float", "scalar", "codebook"] | None  # codes are floats, numbers, places in a table
    tiled: bool = False  # products take kernels that want scratch memory (ggml-cpu/tiled)
    needs_importance: bool = False  # its encoder aborts the process without importance weights
    # The CPU backend keeps an interleaved second copy of matrices whose rows are a multiple of this
    # (ggml-cpu/repack.cpp); 0: of none.
    avx2_rows: int = 0
    dotprod_rows: int = 0  # ARM with dot products
    for_weights: bool = True  # a plan may choose it for a matrix
    for_kv: bool = False  # a plan may choose it for the KV cache

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage per weight, scales included."""
        return 8 * self.bytes / self.weights

    @property
    def activation_block(self) -> int | None:
        """Length of the blocks in which activations are rounded to 8 bits; None: they stay floats."""
        return _ROUNDED.get(self.activations)

    def holds(self, columns: int) -> bool:
        """Whether rows of that many weights divide into whole blocks."""
        return columns % self.weights == 0

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of that many weights; a last block that is not full counts whole."""
        return -(-columns // self.weights) * self.bytes

    def repackable(self, rows: int, columns: int, machine: str | None = None) -> bool:
        """Whether llama.cpp would keep an interleaved copy of a matrix of that shape.

        machine: "x86_64" (the wheel has AVX2 kernels), "arm64" (Apple's, with dot products) or "aarch64" (the
        Linux wheel's baseline has none); default: this machine. Columns need whole blocks only.
        """
        machine = machine or platform.machine()
        steps = {"x86_64": self.avx2_rows, "AMD64": self.avx2_rows, "arm64": self.dotprod_rows}
        step = steps.get(machine, 0)
        return step > 0 and rows % step == 0 and self.holds(columns)


# By bits per weight. Those with for_weights are all types of 1.56 to 16 bits that stock llama.cpp both
# encodes and runs. Not here: Q2_0, which the gguf package (0.19) cannot name yet, and Q8_1 and Q8_K, which
# are of activations only.
_ROWS = (
    StorageType("Q1_0", 41, 128, 18, 40, "Q8_0", "scalar", for_weights=False),
    StorageType("IQ1_S", 19, 256, 50, 24, "Q8_K", "codebook", tiled=True, needs_importance=True),
    StorageType("TQ1_0", 34, 256, 54, 36, "Q8_K", "scalar"),
    StorageType("IQ1_M", 29, 256, 56, 31, "Q8_K", "codebook", tiled=True),
    StorageType("TQ2_0", 35, 256, 66, 37, "Q8_K", "scalar"),
    StorageType("IQ2_XXS", 16, 256, 66, 19, "Q8_K", "codebook", tiled=True, needs_importance=True),
    StorageType("IQ2_XS", 17, 256, 74, 20, "Q8_K", "codebook", tiled=True, needs_importance=True),
    StorageType("IQ2_S", 22, 256, 82, 28, "Q8_K", "codebook", tiled=True),
    StorageType("Q2_K", 10, 256, 84, 10, "Q8_K", "scalar", tiled=True),
    StorageType("IQ3_XXS", 18, 256, 98, 23, "Q8_K", "codebook", tiled=True),
    StorageType("IQ3_S", 21, 256, 110, 26, "Q8_K", "codebook", tiled=True),
    StorageType("Q3_K", 11, 256, 110, 12, "Q8_K", "scalar", tiled=True),
    StorageType("IQ4_XS", 23, 256, 136, 30, "Q8_K", "codebook", tiled=True),
    StorageType("MXFP4", 39, 32, 17, None, "Q8_0", "codebook", avx2_rows=8, dotprod_rows=4),
    # A scale of the whole tensor stands beside the blocks of NVFP4.
    StorageType("NVFP4", 40, 64, 36, 39, "Q8_0", "codebook", for_weights=False),
    StorageType("IQ4_NL", 20, 32, 18, 25, "Q8_0", "codebook", avx2_rows=8, dotprod_rows=4, for_kv=True),
    StorageType("Q4_0", 2, 32, 18, 2, "Q8_0", "scalar", avx2_rows=8, dotprod_rows=4, for_kv=True),
    StorageType("Q4_K", 12, 256, 144, 15, "Q8_K", "scalar", tiled=True, avx2_rows=8, dotprod_rows=8),
    StorageType("Q4_1", 3, 32, 20, 3, "Q8_1", "scalar", for_kv=True),
    StorageType("Q5_0", 6, 32, 22, 8, "Q8_0", "scalar", for_kv=True),
    StorageType("Q5_K", 13, 256, 176, 17, "Q8_K", "scalar", tiled=True, dotprod_rows=8),
    StorageType("Q5_1", 7, 32, 24, 9, "Q8_1", "scalar", for_kv=True),
    StorageType("Q6_K", 14, 256, 210, 18, "Q8_K", "scalar", tiled=True, dotprod_rows=8),
    StorageType("Q8_0", 8, 32, 34, 7, "Q8_0", "scalar", dotprod_rows=4, for_kv=True),
    StorageType("BF16", 30, 1, 2, 32, "BF16", "float"),
    StorageType("F16", 1, 1, 2, 1, "F16", "float", for_kv=True),
    StorageType("F32", 0, 1, 4, 0, "F32", "float", for_weights=False),
    StorageType("F64", 28, 1, 8, None, None, None, for_weights=False),
    StorageType("I8", 24, 1, 1, None, None, None, for_weights=False),
    StorageType("I16", 25, 1, 2, None, None, None, for_weights=False),
    StorageType("I32", 26, 1, 4, None, None, None, for_weights=False),
    StorageType("I64", 27, 1, 8, None, None, None, for_weights=False),
)
STORAGE_TYPES = {row.name: row for row in _ROWS}
BY_NUMBER = {row.number: row for row in _ROWS}
WEIGHT_TYPES = tuple(row.name for row in _ROWS if row.for_weights)  # by bits per weight
KV_TYPES = tuple(row.name.lower() for row in reversed(_ROWS) if row.for_kv)  # the finest first
FLOATS = tuple(row.name for row in _ROWS if row.kernels == "float")
ACTIVATION_BLOCKS = tuple(sorted(set(_ROUNDED.values()), reverse=True))


def storage_type(name: str) -> StorageType:
    """The row of a ggml type, by its name in any case. Raises InputError for an unknown one."""
    try:
        return STORAGE_TYPES[name.upper()]
    except KeyError:
        raise InputError(f"unknown ggml type {name!r:.80}; known: {', '.join(STORAGE_TYPES)}") from None
