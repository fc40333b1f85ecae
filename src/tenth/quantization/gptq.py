r"""Error-compensated rounding on any ggml grid: what one column loses, the columns after it make good.

For a weight matrix W [out, in] and the Gram matrix H [in, in] of what it is multiplied with, storing Q costs
tr((W - Q) H (W - Q)^T). Three steps lower that, rows by themselves:

    compensate  Columns are rounded in order; the error of each, x_k - q_k, is made good by all columns after
                it as well as they can: x_j -= (x_k - q_k) U_kj / U_kk, with inverse(H) = U^T U, U upper
                (GPTQ, Frantar et al. 2022, arXiv 2210.17323). Types that code 4 or 8 weights together take
                as many columns at once (block LDLQ, Tseng et al. 2024, arXiv 2402.04396). Before each 256
                columns ggml's own encoder sees the x and chooses the scales, with 1 / U_kk^2 as the
                importance of columns: what an error there costs after all that can be done about it. The
                codes are then ours. (LDLQ's own form gives the same codes for given scales, but shows the
                encoder an x that lacks most of the compensation: 1.2 to 2.4 times the loss.)
    refit_super_scales  The super-block scales and minima by least squares, codes and sub-scales as they are.
    coordinate_descent
                Every code in order, given all others: x_k = q_k + ((W - Q) H)_k / H_kk.

float32 on any torch device. Takes a few times the memory of the rows given, and four H.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tenth.quantization.grids import Grid

CHUNK = 256  # columns whose scales are chosen together: one super-block
LEAF = 32  # columns between matrix products
UNKNOWNS = 128  # super-scales of a row that are fitted together; rows with more keep theirs
DAMP = 0.01  # of the mean diagonal, added to H
Encode = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows, importance of columns -> blocks


def damped(gram: torch.Tensor, damp: float = DAMP) -> torch.Tensor:
    """H scaled to a mean diagonal of one, plus `damp` times the identity; the identity where H is zero."""
    mean = gram.diagonal().mean()
    scaled = gram / mean if mean > 0 else torch.zeros_like(gram)
    scaled.diagonal().add_(damp if mean > 0 else 1.0)
    return scaled


def round_rows(weight: torch.Tensor, h: torch.Tensor, grid: Grid, encode: Encode, rounds: int) -> np.ndarray:
    """Blocks uint8 [n, row bytes] of weight float32 [n, in]: compensate; `rounds` times refit and descend.

    h: float32 [in, in], positive definite (`damped`). A step that made a row worse is not taken for that row.
    """
    blocks = compensate(weight, h, grid, encode)
    costs = loss(weight, h, grid, blocks)
    for _ in range(rounds):
        for step in (refit_super_scales, coordinate_descent):
            new = step(weight, h, grid, blocks)
            lower = loss(weight, h, grid, new)
            better = lower < costs
            blocks = np.where(better.cpu().numpy()[:, None], new, blocks)
            costs = torch.where(better, lower, costs)
    return blocks


def compensate(weight: torch.Tensor, h: torch.Tensor, grid: Grid, encode: Encode) -> np.ndarray:
    """Blocks of weight by error feedback, scales by `encode`."""
    root = torch.linalg.cholesky(h.flip(0, 1)).flip(0, 1)  # h = root root^T, upper: U is its inverse
    corners = _corners(root, grid.vector)
    upper = torch.linalg.solve_triangular(root, torch.eye(len(h), device=h.device), upper=True)
    mix = -(corners @ upper.reshape(len(corners), grid.vector, len(h))).flatten(0, 1)
    metric = corners @ corners.mT
    importance = root.diagonal().square().cpu().numpy()

    def scales(x: torch.Tensor, columns: slice) -> np.ndarray:
        return encode(x.cpu().numpy(), importance[columns])

    return _sweep(weight.clone(), mix, metric, grid, scales)


def coordinate_descent(weight: torch.Tensor, h: torch.Tensor, grid: Grid, blocks: np.ndarray) -> np.ndarray:
    """One pass of coordinate descent over the codes of `blocks`."""
    metric = _corners(h, grid.vector)
    inverse = torch.linalg.inv(metric)
    stored = decode(grid, blocks, weight.device)
    best, mix = stored + _blockwise((weight - stored) @ h, inverse), _blockwise(h, inverse)
    size = blocks.shape[1] * CHUNK // weight.shape[1]

    def scales(_x: torch.Tensor, columns: slice) -> np.ndarray:
        return blocks[:, columns.start * size // CHUNK : columns.stop * size // CHUNK]

    return _sweep(best, mix, metric, grid, scales, stored)


def refit_super_scales(weight: torch.Tensor, h: torch.Tensor, grid: Grid, blocks: np.ndarray) -> np.ndarray:
    """`blocks` with the super-scales that are best for its codes and sub-scales, which stay as they are.

    A slight pull to the old ones keeps the least squares solvable. Rows with more than UNKNOWNS super-scales
    are returned as they came.
    """
    old = grid.super_scales(blocks)
    n, count, kinds = old.shape
    if not 0 < kinds * count <= UNKNOWNS:
        return blocks
    units = []  # the weights are linear in the super-scales
    for kind in range(kinds):
        unit = np.zeros_like(old)
        unit[..., kind] = 1.0
        units.append(decode(grid, grid.with_super_scales(blocks, unit), weight.device))
    basis = torch.stack(units, 1)
    side, unknowns = weight.shape[1] // count, kinds * count

    def by_block(x: torch.Tensor) -> torch.Tensor:
        return (basis * x[:, None]).reshape(n, kinds, count, side).sum(3).reshape(n, unknowns)

    right = by_block(weight @ h)
    left = torch.stack(
        [
            by_block(unit[:, s * side : (s + 1) * side] @ h[s * side : (s + 1) * side])
            for unit in units
            for s in range(count)
        ],
        1,
    )
    start = torch.from_numpy(old).to(weight.device).transpose(1, 2).reshape(n, unknowns)
    pull = 1e-3 * left.diagonal(dim1=1, dim2=2)
    pull = pull + 1e-6 * pull.mean(1, keepdim=True) + 1e-30
    new = torch.linalg.solve((left + torch.diag_embed(pull)).double(), (right + pull * start).double())
    new = torch.nan_to_num(new.float(), 0.0).clamp(-65504, 65504)
    return grid.with_super_scales(blocks, new.reshape(n, kinds, count).transpose(1, 2).cpu().numpy())


def decode(grid: Grid, blocks: np.ndarray, device: torch.device) -> torch.Tensor:
    """The weights of blocks, float32 [n, columns]."""
    scale, offset = _scales(grid, blocks, device)
    codes = torch.from_numpy(grid.unpack(blocks).astype(np.int64)).to(device)
    stored = grid.points(codes).reshape(*scale.shape, grid.group).mul_(scale[..., None])
    return (stored if offset is None else stored.add_(offset[..., None])).flatten(1)


def loss(weight: torch.Tensor, h: torch.Tensor, grid: Grid, blocks: np.ndarray) -> torch.Tensor:
    """What storing costs each row, float32 [n]."""
    error = decode(grid, blocks, weight.device) - weight
    return ((error @ h) * error).sum(1)


def _sweep(
    x: torch.Tensor,
    mix: torch.Tensor,
    metric: torch.Tensor,
    grid: Grid,
    scales: Callable[[torch.Tensor, slice], np.ndarray],
    old: torch.Tensor | None = None,
) -> np.ndarray:
    """Round x [n, in] in order; each vector's change @ mix is added to the columns after it. x is used up.

    metric: [in / vector, vector, vector], the cost of a vector's error. scales: x of a chunk -> blocks, of
    which the scales are used. The change is what rounding takes from x; or with `old`, the weights of those
    blocks, what it takes from them, and codes stay where no better ones are found.
    """
    out = []
    for start in range(0, x.shape[1], CHUNK):
        columns = slice(start, min(start + CHUNK, x.shape[1]))
        blocks = scales(x[:, columns], columns)
        chunk = _Chunk(x, columns, mix, metric, grid, blocks, old)
        chunk.run(0, columns.stop - start)
        x[:, columns.stop :] += chunk.change.T @ mix[columns, columns.stop :]
        out.append(grid.pack(blocks, chunk.codes.T.cpu().numpy()))
    return np.concatenate(out, axis=1)


class _Chunk:
    """The columns of one super-block while they are rounded; [columns, n], since columns come one by one."""

    def __init__(
        self,
        x: torch.Tensor,
        columns: slice,
        mix: torch.Tensor,
        metric: torch.Tensor,
        grid: Grid,
        blocks: np.ndarray,
        old: torch.Tensor | None,
    ) -> None:
        self._grid, self._x, self._mix = grid, x[:, columns].T.contiguous(), mix[columns, columns]
        self._metric = metric[columns.start // grid.vector :]
        self._old = None if old is None else old[:, columns].T.contiguous()
        scale, offset = _scales(grid, blocks, x.device)
        self._scale, self._offset = scale.T.contiguous(), None if offset is None else offset.T.contiguous()
        self._inverse = (1.0 / self._scale).nan_to_num_(0.0, 0.0, 0.0)  # of no scale, none
        self.codes = torch.from_numpy(grid.unpack(blocks).astype(np.int64)).to(x.device).T.contiguous()
        self.change = torch.empty_like(self._x)

    def run(self, first: int, last: int) -> None:
        """Round columns first to last, by halves, so that most of the feedback is matrix products."""
        if last - first <= LEAF:
            for here in range(first, last, self._grid.vector):
                self._round(slice(here, here + self._grid.vector), last)
            return
        middle = first + (last - first) // 2 // LEAF * LEAF
        self.run(first, middle)
        self._x[middle:last].addmm_(self._mix[first:middle, middle:last].T, self.change[first:middle])
        self.run(middle, last)

    def _round(self, here: slice, last: int) -> None:
        want, vector, group = self._x[here], self._grid.vector, here.start // self._grid.group
        x = want if self._offset is None else want - self._offset[group]
        corner = self._metric[here.start // vector]
        code, point = self._grid.nearest(
            (x * self._inverse[group]).T, corner.diagonal() if vector > 1 else None
        )
        new = point.T * self._scale[group]
        if self._offset is not None:
            new += self._offset[group]
        was = want if self._old is None else self._old[here]
        if was is not want and vector > 1:
            better = _cost(new - want, corner) < _cost(was - want, corner)
            code = torch.where(better, code, self.codes[here.start // vector])
            new = torch.where(better, new, was)
        self.codes[here.start // vector] = code
        self.change[here] = was - new
        self._x[here.stop : last].addmm_(self._mix[here, here.stop : last].T, self.change[here])


def _scales(grid: Grid, blocks: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    scale, offset = grid.scales(blocks)
    return torch.from_numpy(scale).to(device), None if offset is None else torch.from_numpy(offset).to(device)


def _cost(error: torch.Tensor, corner: torch.Tensor) -> torch.Tensor:
    """[n] of errors [vector, n]."""
    return ((corner @ error) * error).sum(0)


def _corners(matrix: torch.Tensor, side: int) -> torch.Tensor:
    """The diagonal's blocks, [in / side, side, side]."""
    count = len(matrix) // side
    return matrix.reshape(count, side, count, side).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


def _blockwise(x: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """x [n, in] times a block-diagonal matrix."""
    parts = x.reshape(len(x), len(corners), -1)
    return torch.einsum("nbi,bij->nbj", parts, corners).flatten(1)
