"""What every grid shares: tables of bit positions, and reading and writing through them.

A block of a ggml type is a string of bits, byte 0 first and the lowest bit of each byte first, so that
little-endian words read as they are written. A table, int64 [numbers, width], says where the bits of each
number stand in it, lowest first: one table for the codes, one for the half-precision super-scales, one for
the sub-scales. The tables come from the decoders of gguf-py (gguf/quants.py) and ggml-quants.c.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import torch

from tenth.core.errors import InputError
from tenth.core.ggml import storage_type


def bits(start: int, *axes: tuple[int, int], width: int) -> np.ndarray:
    """A table of `width`-bit numbers: the first begins at bit `start`, the others at the strides of `axes`,
    pairs (count, stride in bits), outermost first. int64 [product of counts, width].
    """
    places = np.array(start)
    for count, stride in axes:
        places = places[..., None] + stride * np.arange(count)
    return places.reshape(-1, 1) + np.arange(width)


def take(blocks: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The numbers of blocks uint8 [..., block bytes] at `table`: the least unsigned type, [..., numbers].

    Takes a byte of scratch for each bit of `blocks`.
    """
    stored = np.unpackbits(blocks, axis=-1, bitorder="little")
    numbers = np.zeros((*blocks.shape[:-1], len(table)), np.min_scalar_type((1 << table.shape[1]) - 1))
    for k, places in enumerate(table.T):
        numbers |= np.take(stored, places, axis=-1).astype(numbers.dtype) << k
    return numbers


def put(blocks: np.ndarray, table: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """A copy of `blocks` in which `take` finds those numbers, integers [..., numbers] below 2^width."""
    stored = np.unpackbits(blocks, axis=-1, bitorder="little")
    for k, places in enumerate(table.T):
        stored[..., places] = numbers >> k & 1
    return np.packbits(stored, axis=-1, bitorder="little")


@dataclass(frozen=True, eq=False, kw_only=True)
class Grid(ABC):
    """The values that a ggml type can store, and where it stores them: weight = scale * point + offset.

    Scale and offset are shared by `group` weights; a point has `vector` coordinates and one code. Bytes
    are numpy's, uint8 [rows, row bytes] as `tenth.quantization.encode.quantise` returns them; rounding is
    torch's, on any device.

    name: of the ggml type. codes, supers, subs, lows: tables of bit positions in a block, for the codes, the
    half-precision super-scales and the numbers in each group's scale and offset. The scale is the first
    super-scale (1: none stored) times `steps[sub]`; the offset is the second super-scale, or where there is
    one only the scale, times `low_steps[low]`; no `low_steps`, no offset.
    """

    name: str
    codes: np.ndarray
    supers: np.ndarray = field(default_factory=lambda: bits(0, width=16))
    subs: np.ndarray = field(default_factory=lambda: bits(0, width=0))
    steps: np.ndarray = field(default_factory=lambda: np.ones(1))
    lows: np.ndarray = field(default_factory=lambda: bits(0, width=0))
    low_steps: np.ndarray | None = None

    @property
    def group(self) -> int:
        """Weights that share one scale and offset."""
        return storage_type(self.name).weights // max(len(self.subs), len(self.lows))

    @property
    def vector(self) -> int:
        """How many weights are coded together."""
        return storage_type(self.name).weights // len(self.codes)

    def scales(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Scale and offset of each group, float32 [rows, columns / group]; the offset None where the type has
        none. With them `points` gives the decoder's weights to the rounding of float32.
        """
        rows, supers = self._blocks(blocks), self.super_scales(blocks)
        scale = self.steps.astype(np.float32)[take(rows, self.subs)]
        if len(self.supers):
            scale = supers[..., :1] * scale
        offset = None
        if self.low_steps is not None:
            unit = supers[..., 1:] if len(self.supers) > 1 else scale
            offset = (unit * self.low_steps.astype(np.float32)[take(rows, self.lows)]).reshape(len(rows), -1)
        return scale.reshape(len(rows), -1), offset

    def unpack(self, blocks: np.ndarray) -> np.ndarray:
        """The codes, uint8, uint16 or uint32 [rows, columns / vector]."""
        rows = self._blocks(blocks)
        return self._read(rows).reshape(len(rows), rows.shape[1] * len(self.codes))

    def pack(self, blocks: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """A copy of `blocks` with codes of any integer type, [rows, columns / vector], and its own scales."""
        rows = self._blocks(blocks)
        return self._write(rows, codes.reshape(*rows.shape[:2], -1)).reshape(blocks.shape)

    def super_scales(self, blocks: np.ndarray) -> np.ndarray:
        """float32 [rows, blocks per row, k]. k = 2: d and dmin or m; k = 1: d; k = 0: MXFP4."""
        return take(self._blocks(blocks), self.supers).astype(np.uint16).view(np.float16).astype(np.float32)

    def with_super_scales(self, blocks: np.ndarray, values: np.ndarray) -> np.ndarray:
        """A copy of `blocks` with these super-scales, rounded to half precision; shape as `super_scales`.

        Raises InputError for one that is no number or beyond half precision (65504).
        """
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise InputError(f"a super-scale of {self.name} is beyond half precision")
        return put(self._blocks(blocks), self.supers, halves.view(np.uint16)).reshape(blocks.shape)

    @abstractmethod
    def points(self, codes: torch.Tensor) -> torch.Tensor:
        """float32 [..., vector] of codes, int64 [...]."""

    @abstractmethod
    def nearest(
        self, x: torch.Tensor, weight: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Code int64 [n] and point float32 [n, vector] of least sum_j weight[j] (x_j - point_j)^2.

        x: float32 [n, vector], (weights - offset) / scale; may be infinite, not NaN. weight: non-negative
        float32 [vector], up to 1e6; None: ones.
        """

    def _blocks(self, blocks: np.ndarray) -> np.ndarray:
        """[rows, blocks per row, block bytes]."""
        size = storage_type(self.name).bytes
        return blocks.reshape(len(blocks), blocks.shape[1] // size, size)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        return take(rows, self.codes)

    def _write(self, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return put(rows, self.codes, codes)
