"""Types that code four or eight weights together, by the number of a grid point and the signs: IQ1, IQ2, IQ3.

The grids are gguf-py's. IQ1's points are ternary and have their signs in them; the other grids are of
magnitudes. IQ2_S and IQ3_S store every sign; IQ2_XXS, IQ2_XS and IQ3_XXS store seven of eight, the last one
making the number of negatives even.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from gguf import quants

from tenth.quantization.grids._base import Grid, bits

_SCORES = {"cpu": 1 << 20}  # scores in one product: 4 MiB, which a cache holds; elsewhere 64 MiB
_HUGE = 1e28  # of a coordinate, so that scores stay finite


@dataclass(frozen=True, eq=False, kw_only=True)
class Lattice(Grid):
    """A grid of several coordinates. signs: how many of them a code stores.

    A code has, lowest bits first, the numbers of the grid points that make up its vector (two in IQ3_XXS,
    else one), and the signs, 1 for negative.
    """

    signs: int

    def points(self, codes: torch.Tensor) -> torch.Tensor:
        """The lattice points of codes (`Grid.points`)."""
        grid, numbers, signs = _tables(self, codes.device)
        sign = 1.0 - 2.0 * (codes[..., None] >> signs & 1)
        if self.signs < self.vector:  # the product over no signs is one
            last = sign.prod(-1, keepdim=True).expand(*codes.shape, self.vector - self.signs)
            sign = torch.cat([sign, last], -1)
        return sign * grid[codes[..., None] >> numbers & len(grid) - 1].flatten(-2)

    def nearest(
        self, x: torch.Tensor, weight: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Grid.nearest`. Where seven signs are stored and those of x do not do, the coordinate of least
        weight[j] |x_j| changes sides: up to 3 % above the least mean distance.
        """
        x = x.clamp(-_HUGE, _HUGE)
        weight = x.new_ones(self.vector) if weight is None else weight
        sign = torch.where(x < 0, -1.0, 1.0) if self.signs else torch.ones_like(x)
        if self.signs == 7:
            least = (weight * x.abs()).argmin(1, keepdim=True)
            sign = sign.scatter(1, least, sign.gather(1, least) * sign.prod(1, keepdim=True))
        grid, numbers, signs = _tables(self, x.device)
        parts = zip(torch.split(sign * x, grid.shape[1], 1), torch.split(weight, grid.shape[1]), strict=True)
        chosen = torch.stack([_closest(part, share, grid) for part, share in parts], 1)
        negative = (sign[:, : self.signs] < 0).long()
        return (chosen << numbers).sum(1) + (negative << signs).sum(1), sign * grid[chosen].flatten(1)


def _closest(x: torch.Tensor, weight: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Index of the grid point of least weighted square distance, int64 [n]."""
    slopes, heights = -2 * weight[:, None] * grid.T, grid.square() @ weight
    pieces = torch.split(x, _SCORES.get(x.device.type, 1 << 24) // len(grid))
    return torch.cat([torch.addmm(heights, piece, slopes).min(1).indices for piece in pieces])


@cache
def _tables(lattice: Lattice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The grid, and where in a code the numbers and the signs stand."""
    kind = getattr(quants, lattice.name)
    kind.init_grid()
    grid = torch.tensor(kind.grid[0, 0], device=device)
    width, parts = len(grid).bit_length() - 1, lattice.vector // grid.shape[1]
    signs = torch.arange(lattice.signs, device=device) + width * parts
    return grid, width * torch.arange(parts, device=device), signs


LATTICES = (
    Lattice(
        name="IQ1_S",
        signs=0,
        codes=np.hstack([bits(16, (32, 8), width=8), bits(272, (8, 16), (4, 3), width=3)]),
        subs=bits(284, (8, 16), width=3),
        steps=1 + 2 * np.arange(8),
        lows=bits(287, (8, 16), width=1),
        low_steps=np.array([0.125, -0.125]),
    ),
    Lattice(
        name="IQ1_M",
        signs=0,
        codes=np.hstack([bits(0, (32, 8), width=8), bits(256, (32, 4), width=3)]),
        supers=bits(396, (4, 16), (4, 1), width=1).reshape(1, 16),
        subs=bits(384, (4, 16), (4, 3), (2, 0), width=3),
        steps=1 + 2 * np.arange(8),
        lows=bits(259, (32, 4), width=1),
        low_steps=np.array([0.125, -0.125]),
    ),
    Lattice(
        name="IQ2_XXS",
        signs=7,
        codes=np.hstack([bits(16, (8, 64), (4, 8), width=8), bits(48, (8, 64), (4, 7), width=7)]),
        subs=bits(76, (8, 64), width=4),
        steps=(np.arange(16) + 0.5) / 4,
    ),
    Lattice(
        name="IQ2_XS",
        signs=7,
        codes=bits(16, (32, 16), width=16),
        subs=bits(528, (16, 4), width=4),
        steps=(np.arange(16) + 0.5) / 4,
    ),
    Lattice(
        name="IQ2_S",
        signs=8,
        codes=np.hstack(
            [bits(16, (32, 8), width=8), bits(528, (32, 2), width=2), bits(272, (32, 8), width=8)]
        ),
        subs=bits(592, (16, 4), width=4),
        steps=(np.arange(16) + 0.5) / 4,
    ),
    Lattice(
        name="IQ3_XXS",
        signs=7,
        codes=np.hstack([bits(16, (32, 16), width=16), bits(528, (8, 32), (4, 7), width=7)]),
        subs=bits(556, (8, 32), width=4),
        steps=(np.arange(16) + 0.5) / 2,
    ),
    Lattice(
        name="IQ3_S",
        signs=4,
        codes=np.hstack(
            [bits(16, (64, 8), width=8), bits(528, (64, 1), width=1), bits(592, (64, 4), width=4)]
        ),
        subs=bits(848, (8, 4), width=4),
        steps=1 + 2 * np.arange(16),
    ),
)
