"""Types that code each weight by itself: the 32-weight types, the K-quants, IQ4 and the ternary types.

Bits are counted from the front of the block; see `_base.bits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from gguf import quants

from tenth.quantization.grids._base import Grid, bits


@dataclass(frozen=True, eq=False, kw_only=True)
class Scalar(Grid):
    """A grid of one coordinate. values: the point of each code, integers.

    Between integers the cells' edges are halves of integers, so that the nearest code is a table over
    floor(2 x), whether the values are evenly spaced or not.
    """

    values: np.ndarray

    def points(self, codes: torch.Tensor) -> torch.Tensor:
        """The levels of codes (`Grid.points`)."""
        return _tables(self, codes.device)[0][codes][..., None]

    def nearest(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | None = None,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Grid.nearest`; the weight changes nothing."""
        values, cells = _tables(self, x.device)
        low, high = 2 * int(self.values.min()), 2 * int(self.values.max())
        code = cells[(2 * x[:, 0]).floor().clamp(low, high).long() - low]
        return code, values[code][:, None]


@cache
def _tables(grid: Scalar, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Points by code, and codes by floor(2 x) from twice the least point."""
    twice = np.arange(2 * grid.values.min(), 2 * grid.values.max() + 1)
    cells = np.abs(2 * grid.values - (twice[:, None] + 0.5)).argmin(1)
    return torch.tensor(grid.values, dtype=torch.float32, device=device), torch.tensor(cells, device=device)


class Trits(Scalar):
    """TQ1_0: five digits of base 3 in a byte, as ceil(256/243 * number); digit k is the whole part of
    3 * (byte * 3^k mod 256) / 256. `codes` are places among the 5 * 52 digits.
    """

    def _read(self, rows: np.ndarray) -> np.ndarray:
        return self._digits(rows)[..., self.codes[:, 0]]

    def _write(self, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
        digits = self._digits(rows)
        digits[..., self.codes[:, 0]] = codes
        numbers = digits.reshape(*rows.shape[:2], 52, 5) @ 3 ** np.arange(4, -1, -1)
        return np.concatenate([((numbers * 256 + 242) // 243).astype(np.uint8), rows[..., 52:]], -1)

    def _digits(self, rows: np.ndarray) -> np.ndarray:
        shifted = rows[..., :52, None] * 3 ** np.arange(5, dtype=np.uint8)
        return (shifted.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(*rows.shape[:2], 260)


def _planes(byte: int, chunks: int, length: int, width: int) -> np.ndarray:
    """Numbers in chunks of bytes: the lowest bits of each byte of a chunk, then the next lowest."""
    return bits(8 * byte, (chunks, 8 * length), (8 // width, width), (length, 8), width=width)


_D_AND_M = bits(0, (2, 16), width=16)
_BYTE = np.arange(256).astype(np.int8).astype(np.int64)  # two's complement
_IQ4 = np.array(quants.IQ4_NL.kvalues)
# The 6-bit scales and minima of Q4_K and Q5_K: four whole, four of low bits here and high bits there.
_K = {
    "supers": _D_AND_M,
    "subs": np.vstack(
        [bits(32, (4, 8), width=6), np.hstack([bits(96, (4, 8), width=4), bits(38, (4, 8), width=2)])]
    ),
    "steps": np.arange(64),
    "lows": np.vstack(
        [bits(64, (4, 8), width=6), np.hstack([bits(100, (4, 8), width=4), bits(70, (4, 8), width=2)])]
    ),
    "low_steps": -np.arange(64),
}

SCALARS: tuple[Scalar, ...] = (
    Scalar(name="Q4_0", values=np.arange(-8, 8), codes=_planes(2, 1, 16, 4)),
    Scalar(
        name="Q4_1", values=np.arange(16), codes=_planes(4, 1, 16, 4), supers=_D_AND_M, low_steps=np.ones(1)
    ),
    Scalar(
        name="Q5_0", values=np.arange(-16, 16), codes=np.hstack([_planes(6, 1, 16, 4), _planes(2, 4, 1, 1)])
    ),
    Scalar(
        name="Q5_1",
        values=np.arange(32),
        codes=np.hstack([_planes(8, 1, 16, 4), _planes(4, 4, 1, 1)]),
        supers=_D_AND_M,
        low_steps=np.ones(1),
    ),
    Scalar(name="Q8_0", values=_BYTE, codes=_planes(2, 32, 1, 8)),
    Scalar(name="IQ4_NL", values=_IQ4, codes=_planes(2, 1, 16, 4)),
    Scalar(
        name="MXFP4",
        values=np.array(quants.MXFP4.kvalues),
        codes=_planes(1, 1, 16, 4),
        supers=bits(0, (0, 0), width=16),
        subs=bits(0, width=8),
        steps=quants.MXFP4.e8m0_to_fp32_half(np.arange(256)),
    ),
    Scalar(
        name="IQ4_XS",
        values=_IQ4,
        codes=_planes(8, 8, 16, 4),
        subs=np.hstack([bits(32, (8, 4), width=4), bits(16, (8, 2), width=2)]),
        steps=np.arange(-32, 32),
    ),
    Scalar(
        name="Q2_K",
        values=np.arange(4),
        codes=_planes(16, 2, 32, 2),
        supers=bits(8 * 80, (2, 16), width=16),
        subs=bits(0, (16, 8), width=4),
        steps=np.arange(16),
        lows=bits(4, (16, 8), width=4),
        low_steps=-np.arange(16),
    ),
    Scalar(
        name="Q3_K",
        values=np.arange(-4, 4),
        codes=np.hstack([_planes(32, 2, 32, 2), _planes(0, 1, 32, 1)]),
        supers=bits(8 * 108, width=16),
        subs=np.hstack([_planes(96, 1, 8, 4), _planes(104, 1, 4, 2)]),
        steps=np.arange(-32, 32),
    ),
    Scalar(name="Q4_K", values=np.arange(16), codes=_planes(16, 4, 32, 4), **_K),
    Scalar(
        name="Q5_K",
        values=np.arange(32),
        codes=np.hstack([_planes(48, 4, 32, 4), _planes(16, 1, 32, 1)]),
        **_K,
    ),
    Scalar(
        name="Q6_K",
        values=np.arange(-32, 32),
        codes=np.hstack([_planes(0, 2, 64, 4), _planes(128, 2, 32, 2)]),
        supers=bits(8 * 208, width=16),
        subs=bits(8 * 192, (16, 8), width=8),
        steps=_BYTE,
    ),
    Trits(
        name="TQ1_0",
        values=np.arange(-1, 2),
        codes=np.vstack(
            [
                bits(0, (5, 1), (32, 5), width=1),
                bits(160, (5, 1), (16, 5), width=1),
                bits(240, (4, 1), (4, 5), width=1),
            ]
        ),
        supers=bits(8 * 52, width=16),
    ),
    # Two bits hold a fourth point, 2, which ggml decodes but its encoder never writes.
    Scalar(name="TQ2_0", values=np.arange(-1, 3), codes=_planes(0, 2, 32, 2), supers=bits(8 * 64, width=16)),
)
