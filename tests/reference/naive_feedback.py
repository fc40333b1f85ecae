"""Error feedback written for reading: float64 numpy, one vector at a time, every inverse made anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants

from tenth.quantization.grids import Grid

CHUNK = 256  # columns whose scales are chosen together
EXHAUSTIVE = 1 << 14  # codes that are all tried
Encode = Callable[[np.ndarray, np.ndarray], np.ndarray]
Step = tuple[np.ndarray, np.ndarray]


def eliminations(h: np.ndarray, vector: int) -> list[Step]:
    """For each vector of columns: the cost of its errors after all that the columns behind it can do,
    [vector, vector]; and what an error puts onto these, [vector, columns behind].

    From the inverse Hessian of the columns that are still free; a vector that is done is eliminated from it
    (GPTQ, equations 2 and 3).
    """
    inverse, found = np.linalg.inv(h), []
    while len(inverse):
        cost = np.linalg.inv(inverse[:vector, :vector])
        spread = cost @ inverse[:vector, vector:]
        found.append((cost, spread))
        inverse = inverse[vector:, vector:] - inverse[vector:, :vector] @ spread
    return found


def gptq(
    weight: np.ndarray, grid: Grid, encode: Encode, steps: list[Step], importance: np.ndarray
) -> np.ndarray:
    """Blocks of weight [n, in]. steps: `eliminations` for the grid's vectors; importance: the costs of
    `eliminations` for single columns.
    """
    x, out = weight.astype(np.float64), []
    for start in range(0, x.shape[1], CHUNK):
        stop = min(start + CHUNK, x.shape[1])
        blocks = encode(x[:, start:stop].astype(np.float32), importance[start:stop])
        codes = []
        for here in range(start, stop, grid.vector):
            cost, spread = steps[here // grid.vector]
            want = x[:, here : here + grid.vector]
            code, stored = nearest(want, grid, blocks, here - start, cost.diagonal())
            x[:, here + grid.vector :] -= (want - stored) @ spread
            codes.append(code)
        out.append(grid.pack(blocks, np.stack(codes, 1)))
    return np.concatenate(out, axis=1)


def descent(weight: np.ndarray, h: np.ndarray, grid: Grid, blocks: np.ndarray) -> np.ndarray:
    """Every vector in order is put where it is best, all others as they stand."""
    weight, stored, codes = weight.astype(np.float64), decoded(grid, blocks), grid.unpack(blocks).copy()
    for here in range(0, weight.shape[1], grid.vector):
        columns = slice(here, here + grid.vector)
        corner = h[columns, columns]
        others = stored.copy()
        others[:, columns] = weight[:, columns]  # the rest's error only
        want = weight[:, columns] + (weight - others) @ h[:, columns] @ np.linalg.inv(corner)
        code, new = nearest(want, grid, blocks, here, corner.diagonal())
        before, after = stored[:, columns] - want, new - want
        better = ((after @ corner) * after).sum(1) < ((before @ corner) * before).sum(1)
        codes[:, here // grid.vector] = np.where(better, code, codes[:, here // grid.vector])
        stored[:, columns] = np.where(better[:, None], new, stored[:, columns])
    return grid.pack(blocks, codes)


def nearest(
    want: np.ndarray, grid: Grid, blocks: np.ndarray, column: int, importance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of [n, vector] at that column: the best code [n] and what it stores, with the scales of `blocks`."""
    scales, offsets = grid.scales(blocks)
    scale = scales[:, column // grid.group, None].astype(np.float64)
    offset = 0.0 if offsets is None else offsets[:, column // grid.group, None].astype(np.float64)
    count = 1 << grid.codes.shape[1]
    if count <= EXHAUSTIVE:
        points = grid.points(torch.arange(count)).double().numpy()
        distance = sum(
            importance[j] * (want[:, j, None] - (scale * points[:, j] + offset)) ** 2
            for j in range(grid.vector)
        )
        code = distance.argmin(1)
    else:
        inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)
        x = torch.from_numpy((want - offset) * inverse).float()
        code = grid.nearest(x, torch.from_numpy(importance.copy()).float())[0].numpy()
    point = grid.points(torch.from_numpy(code)).double().numpy()
    return code, scale * point + offset


def decoded(grid: Grid, blocks: np.ndarray) -> np.ndarray:
    """The weights of blocks by gguf-py, float64."""
    return quants.dequantize(blocks, GGMLQuantizationType[grid.name]).astype(np.float64)


def loss(weight: np.ndarray, h: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Of each row, [n]."""
    error = stored.astype(np.float64) - weight
    return ((error @ h) * error).sum(1)


def best_super_scales(weight: np.ndarray, h: np.ndarray, grid: Grid, blocks: np.ndarray) -> np.ndarray:
    """The super-scales of least loss for the codes of `blocks`: ordinary least squares, one row at a time."""
    old = grid.super_scales(blocks)
    count, kinds = old.shape[1:]
    root = np.linalg.cholesky(h).T  # h = root^T root
    found = np.zeros((len(weight), count * kinds))
    basis = []  # what a super-scale of one does to the weights
    for place in range(count * kinds):
        unit = np.zeros_like(old)
        unit.reshape(len(old), -1)[:, place] = 1.0
        basis.append(decoded(grid, grid.with_super_scales(blocks, unit)))
    for row in range(len(weight)):
        columns = np.stack([one[row] for one in basis], 1)
        found[row] = np.linalg.lstsq(root @ columns, root @ weight[row].astype(np.float64), rcond=None)[0]
    return found.reshape(old.shape)
