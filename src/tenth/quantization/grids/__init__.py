"""The values that each ggml type can store: scales read, numbers rounded to codes, codes written, scales set.

For rounding that makes up for its own errors (GPTQ, LDLQ), which takes ggml's scales and chooses other codes,
and for tuning the scales of fixed codes. See `Grid`.
"""

from tenth.quantization.grids._base import Grid
from tenth.quantization.grids.lattice import LATTICES
from tenth.quantization.grids.scalar import SCALARS

GRIDS: dict[str, Grid] = {grid.name: grid for grid in (*SCALARS, *LATTICES)}

__all__ = ["GRIDS", "Grid"]
