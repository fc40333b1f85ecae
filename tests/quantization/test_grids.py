"""Grids: the decoder's weights from scale, code and offset; bytes back as they were; the nearest code."""

from __future__ import annotations

from functools import cache

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.core.errors import InputError
from tenth.core.ggml import WEIGHT_TYPES, storage_type
from tenth.quantization.encode import quantise
from tenth.quantization.grids import GRIDS, Grid
from tenth.runtime.llama import dequantize

COLUMNS = 512
RNG = np.random.default_rng(0)
BASE = RNG.standard_normal((6, COLUMNS)).astype(np.float32)
ROWS = np.vstack(
    [
        BASE,
        BASE[:1] * 0,
        BASE[:1] * 0 + np.float32(0.3),
        np.where(np.arange(COLUMNS) == 300, np.float32(3e4), BASE[:1]),
        np.where(np.arange(COLUMNS) == 9, np.float32(-3e4), BASE[:1] * 0),
        BASE[:1] * np.float32(1e-30),
        np.where(np.arange(COLUMNS) % 2, np.float32(1), np.float32(-1))[None],
    ]
)
IMPORTANCE = RNG.random(COLUMNS) ** 2
PARITY = ("IQ2_XXS", "IQ2_XS", "IQ3_XXS")

every = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


@cache
def encoded(name: str) -> np.ndarray:
    """By ggml; once a process, for the IQ types take seconds to build their search tables."""
    blocks = quantise(ROWS, name, IMPORTANCE)
    blocks.setflags(write=False)
    return blocks


def legal(grid: Grid) -> int:
    return 3 if grid.name == "TQ1_0" else 1 << grid.codes.shape[1]


def some_codes(grid: Grid, most: int) -> torch.Tensor:
    count = legal(grid)
    return torch.arange(count) if count <= most else torch.from_numpy(RNG.integers(0, count, most))


def decodes_to_points(grid: Grid, blocks: np.ndarray) -> None:
    scale, offset = grid.scales(blocks)
    assert scale.dtype == np.float32
    assert scale.shape == (len(blocks), COLUMNS // grid.group)
    points = grid.points(torch.from_numpy(grid.unpack(blocks).astype(np.int64))).numpy()
    assert points.dtype == np.float32
    assert points.shape == (len(blocks), COLUMNS // grid.vector, grid.vector)
    product = np.repeat(scale, grid.group, axis=1) * points.reshape(len(blocks), COLUMNS)
    shift = np.zeros_like(product) if offset is None else np.repeat(offset, grid.group, axis=1)
    for decoded in (
        gguf.quants.dequantize(blocks, GGMLQuantizationType[grid.name]),
        dequantize(blocks, grid.name, COLUMNS),
    ):
        assert (np.abs(product + shift - decoded) <= 2.4e-7 * (np.abs(product) + np.abs(shift))).all()


def distance(x: torch.Tensor, points: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return ((x.double() - points.double()).square() * weight.double()).sum(-1)


def test_every_block_type_has_a_grid() -> None:
    assert set(GRIDS) == set(WEIGHT_TYPES) - {"F16", "BF16"}


@every
def test_tables_cover_the_block_once(grid: Grid) -> None:
    if grid.name == "TQ1_0":  # digits, no bits
        assert np.array_equal(np.unique(grid.codes), np.delete(np.arange(260), np.arange(244, 260, 5)))
        return
    tables = [np.unique(table) for table in (grid.codes, grid.supers, grid.subs, grid.lows)]
    assert tables[0].size == grid.codes.size
    assert np.array_equal(np.sort(np.concatenate(tables)), np.arange(8 * storage_type(grid.name).bytes))


@every
def test_scale_point_and_offset_are_the_decoders(grid: Grid) -> None:
    decodes_to_points(grid, encoded(grid.name))


@every
def test_pack_undoes_unpack(grid: Grid) -> None:
    blocks = encoded(grid.name)
    codes = grid.unpack(blocks)
    assert codes.shape == (len(blocks), COLUMNS // grid.vector)
    assert int(codes.max()) < legal(grid)
    assert np.array_equal(grid.pack(blocks, codes), blocks)
    assert np.array_equal(grid.pack(blocks, codes.astype(np.int64)), blocks)
    assert grid.unpack(blocks[:0]).shape == (0, COLUMNS // grid.vector)


@every
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_unpack_undoes_pack(grid: Grid, seed: int) -> None:
    blocks = encoded(grid.name)
    codes = np.random.default_rng(seed).integers(0, legal(grid), (len(blocks), COLUMNS // grid.vector))
    packed = grid.pack(blocks, codes)
    assert np.array_equal(grid.unpack(packed), codes)
    for before, after in zip(grid.scales(blocks), grid.scales(packed), strict=True):
        assert np.array_equal(before, after)
    decodes_to_points(grid, packed)


@every
def test_points_are_their_own_nearest(grid: Grid) -> None:
    codes = some_codes(grid, 4096)
    points = grid.points(codes)
    for weight in (None, torch.rand(grid.vector) + 0.1):
        found, nearest = grid.nearest(points, weight)
        assert torch.equal(nearest, points)
        assert torch.equal(grid.points(found), points)
        if grid.name != "MXFP4":  # has two zeros
            assert torch.equal(found, codes)


@pytest.mark.parametrize("name", [name for name in GRIDS if name not in PARITY])
def test_nearest_is_exact(name: str) -> None:
    grid = GRIDS[name]
    all_points = grid.points(torch.arange(legal(grid)))
    generator = torch.Generator().manual_seed(1)
    count = 500 if grid.vector == 1 else 24
    weight = torch.rand(grid.vector, generator=generator) + 0.05
    x = torch.randn(count, grid.vector, generator=generator) * all_points.std() * 1.3
    codes, points = grid.nearest(x, weight)
    assert torch.equal(points, grid.points(codes))
    least = torch.stack([distance(row, all_points, weight).min() for row in x])
    torch.testing.assert_close(distance(x, points, weight), least, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PARITY)
def test_nearest_with_bound_signs_is_nearly_so(name: str) -> None:
    quant = getattr(gguf.quants, name)
    quant.init_grid()
    magnitudes = torch.tensor(quant.grid[0, 0])
    patterns = np.unpackbits(
        np.frombuffer(gguf.quants.IQ2_XXS.ksigns, np.uint8)[:, None], 1, bitorder="little"
    )
    generator = torch.Generator().manual_seed(2)
    weight = torch.rand(8, generator=generator) + 0.5
    x = torch.randn(60, 8, generator=generator) * magnitudes.square().mean().sqrt()
    least = torch.full((60,), torch.inf, dtype=torch.float64)
    for sign in 1 - 2.0 * torch.from_numpy(patterns):
        parts = zip((sign * x).split(magnitudes.shape[1], 1), weight.split(magnitudes.shape[1]), strict=True)
        total = sum(distance(part[:, None], magnitudes, share).min(1).values for part, share in parts)
        least = torch.minimum(least, total)
    codes, points = GRIDS[name].nearest(x, weight)
    assert torch.equal(points, GRIDS[name].points(codes))
    assert ((points < 0).sum(1) % 2 == 0).all()
    ours = distance(x, points, weight)
    assert (ours >= least * (1 - 1e-5)).all()
    assert ours.mean() <= 1.04 * least.mean()  # one flip is tried


@every
def test_nearest_takes_any_size(grid: Grid) -> None:
    x = torch.tensor([0.0, -0.0, 1e30, -1e30, torch.inf, -torch.inf, 1e-40])[:, None].repeat(1, grid.vector)
    x = torch.cat([x, x * (torch.arange(grid.vector) % 3 == 0)]).nan_to_num(0.0, 1e38, -1e38)
    for weight in (None, torch.linspace(0, 1e6, grid.vector)):
        codes, points = grid.nearest(x, weight)
        assert ((codes >= 0) & (codes < legal(grid))).all()
        assert torch.equal(points, grid.points(codes))
    assert grid.nearest(torch.empty(0, grid.vector))[1].shape == (0, grid.vector)


@every
def test_rounding_stays_on_its_device(grid: Grid) -> None:
    x = torch.empty(5, grid.vector, device="meta")
    for weight in (None, x[0]):
        codes, points = grid.nearest(x, weight)
        assert (codes.shape, codes.dtype, codes.device) == ((5,), torch.int64, x.device)
        assert (points.shape, points.dtype, points.device) == (x.shape, torch.float32, x.device)
    assert grid.points(codes).device == x.device


@every
def test_super_scales(grid: Grid) -> None:
    blocks = encoded(grid.name)
    values = grid.super_scales(blocks)
    assert values.dtype == np.float32
    assert values.shape[:2] == (len(blocks), COLUMNS // storage_type(grid.name).weights)
    assert np.array_equal(grid.with_super_scales(blocks, values), blocks)
    twice = grid.with_super_scales(blocks, 2 * values)
    assert np.array_equal(grid.unpack(twice), grid.unpack(blocks))
    if grid.name == "MXFP4":
        assert values.shape[2] == 0
        return
    decoded = dequantize(twice, grid.name, COLUMNS)
    assert np.array_equal(decoded, 2 * dequantize(blocks, grid.name, COLUMNS))
    for wrong in (np.nan, 7e4):
        with pytest.raises(InputError, match="half precision"):
            grid.with_super_scales(blocks, np.full_like(values, wrong))
