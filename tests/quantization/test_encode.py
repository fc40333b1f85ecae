"""ggml's encoders: never an abort, decoded alike by gguf-py, the same bytes however the rows are cut."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.core.errors import InputError
from tenth.core.ggml import WEIGHT_TYPES, storage_type
from tenth.core.records import TensorSpec
from tenth.quantization.encode import LARGEST, Rounding, largest, quantise
from tenth.runtime.llama import dequantize

COLUMNS = 512
OUTLIER = np.float32(LARGEST)
BASE = np.random.default_rng(0).standard_normal((2, COLUMNS)).astype(np.float32)
EVEN = np.arange(COLUMNS) % 2 == 0
ROWS = {
    "random": BASE,
    "zero": BASE * 0,
    "negative zero": BASE * np.float32(-0.0),
    "constant": np.full_like(BASE, 0.3),
    "negative constant": np.full_like(BASE, -2.0),
    "outliers": np.where(np.arange(COLUMNS) % 300 == 7, OUTLIER * np.sign(BASE), BASE),
    "all huge": np.clip(BASE * 1e6, -OUTLIER, OUTLIER),
    "one huge": np.eye(2, COLUMNS, dtype=np.float32) * OUTLIER,
    "denormal": BASE * np.float32(1e-40),
    "smallest": np.full_like(BASE, 1e-45),
    "half denormal": np.where(EVEN, BASE, BASE * np.float32(1e-40)),
    "one denormal": np.eye(2, COLUMNS, dtype=np.float32) * np.float32(1e-40),
    "denormal outlier": np.where(np.arange(COLUMNS) == 9, OUTLIER, BASE * np.float32(1e-40)),
    "vanishing squares": BASE * np.float32(1e-22),
    "below half precision": BASE * np.float32(1e-9),
    "every magnitude": BASE * (10.0 ** np.linspace(-30, 4, COLUMNS)).astype(np.float32),
}
IMPORTANCE = {
    "none": None,
    "ones": np.ones(COLUMNS),
    "zeros": np.zeros(COLUMNS),
    "mostly zeros": (np.arange(COLUMNS) == 300) * 1.0,
    "NaN": np.where(EVEN, np.nan, 1.0),
    "infinite": np.where(EVEN, np.inf, 1.0),
    "negative": np.where(EVEN, -1.0, 1.0),
    "uneven": np.where(np.arange(COLUMNS) == 3, 1e30, 1e-30),
    "huge": np.full(COLUMNS, 3e38, np.float32),
    "random": np.random.default_rng(1).random(COLUMNS) ** 8,
}


def decodes_alike(blocks: np.ndarray, kind: str, columns: int) -> np.ndarray:
    ours = dequantize(blocks, kind, columns)
    reference = gguf.quants.dequantize(blocks, GGMLQuantizationType[kind]).astype(np.float32)
    np.testing.assert_array_equal(ours.view(np.uint32), reference.view(np.uint32))
    assert np.isfinite(ours).all()
    return ours


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
def test_every_type_takes_every_row(kind: str) -> None:
    for rows in ROWS.values():
        for importance in IMPORTANCE.values():
            blocks = quantise(rows, kind, importance)
            assert blocks.dtype == np.uint8
            assert blocks.shape == (2, COLUMNS * storage_type(kind).bits_per_weight / 8)
            decodes_alike(blocks, kind, COLUMNS)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(WEIGHT_TYPES),
    seed=st.integers(0, 1 << 32),
    exponents=st.tuples(st.integers(-44, 4), st.integers(-44, 4)),
    share=st.floats(0, 1),
    weighted=st.booleans(),
)
def test_random_magnitudes(
    kind: str, seed: int, exponents: tuple[int, int], share: float, weighted: bool
) -> None:
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(min(exponents), max(exponents), COLUMNS) * (rng.random(COLUMNS) < share)
    rows = np.clip(rng.standard_normal((2, COLUMNS)) * scale, -OUTLIER, OUTLIER).astype(np.float32)
    importance = 10.0 ** rng.uniform(-37, 37, COLUMNS) * (rng.random(COLUMNS) < share) if weighted else None
    decodes_alike(quantise(rows, kind, importance), kind, COLUMNS)


def test_more_bits_err_less() -> None:
    errors = [
        float(np.square(decodes_alike(quantise(BASE, k), k, COLUMNS) - BASE).mean())
        for k in ("IQ1_S", "IQ2_XXS", "IQ2_S", "IQ3_XXS", "IQ3_S", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16")
    ]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == len(errors)
    assert errors[-2] < 1e-4 < errors[0] < 1


def test_importance_moves_the_error_to_what_does_not_matter() -> None:
    importance = np.where(EVEN, 100.0, 1.0)
    for kind in ("IQ2_XS", "Q2_K", "IQ3_S", "Q4_0", "Q4_K", "Q6_K"):
        plain, weighted = (
            np.square(dequantize(quantise(BASE, kind, w), kind, COLUMNS) - BASE)
            for w in (np.ones(COLUMNS), importance)
        )
        assert weighted[:, EVEN].mean() < plain[:, EVEN].mean()


def test_scale_of_importance_does_not_count() -> None:
    importance = IMPORTANCE["random"]
    assert importance is not None
    for kind in ("IQ1_S", "IQ2_XXS", "Q4_K"):
        np.testing.assert_array_equal(
            quantise(BASE, kind, importance), quantise(BASE, kind, importance * 4096.0)
        )


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
def test_refuses_what_ggml_would_abort_on(kind: str) -> None:
    bad_values = [np.nan, np.inf, -np.inf]
    if kind != "BF16":
        bad_values += [1e7, -3e38]
    for bad in bad_values:
        rows = BASE.copy()
        rows[1, 17] = bad
        with pytest.raises(InputError, match=kind):
            quantise(rows, kind)
    if storage_type(kind).weights > 1:
        with pytest.raises(InputError, match="blocks"):
            quantise(BASE[:, : storage_type(kind).weights + 16], kind)
    with pytest.raises(InputError, match="importance"):
        quantise(BASE, kind, np.ones(COLUMNS - 1))


def test_bf16_holds_what_float32_holds() -> None:
    rows = BASE * np.float32(1e30)
    np.testing.assert_allclose(decodes_alike(quantise(rows, "BF16"), "BF16", COLUMNS), rows, rtol=2**-8)


def test_unknown_type() -> None:
    with pytest.raises(InputError, match="Q9_9"):
        quantise(BASE, "Q9_9")


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(WEIGHT_TYPES),
    rows=st.integers(1, 9),
    threads=st.integers(1, 12),
    weighted=st.booleans(),
    seed=st.integers(0, 1 << 16),
)
def test_rounding_is_quantise_for_any_number_of_threads(
    kind: str, rows: int, threads: int, weighted: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, COLUMNS)).astype(np.float32)
    importance = {"a.weight": rng.random(COLUMNS) if weighted else None}
    spec = TensorSpec("blk.0.a.weight", "a.weight", (rows, COLUMNS), "a", 0, linear=True)
    found = Rounding(importance.__getitem__, threads)(spec, kind, weight, 0)
    np.testing.assert_array_equal(found, quantise(weight, kind, importance["a.weight"]))
    other = rng.random(COLUMNS)
    found = Rounding(importance.__getitem__, threads).weighted(weight, kind, other)
    np.testing.assert_array_equal(found, quantise(weight, kind, other))


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_types_that_hold_more_than_others(kind: str) -> None:
    most = largest(kind)
    assert most > LARGEST
    for sign in (1, -1):
        rows = np.where(np.arange(COLUMNS) == 77, np.float32(sign * most), BASE).astype(np.float32)
        found = dequantize(quantise(rows, kind), kind, COLUMNS)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[:, 77], rows[:, 77], rtol=0.15)
        with pytest.raises(InputError, match="choose another type"):
            quantise(2 * rows, kind)
