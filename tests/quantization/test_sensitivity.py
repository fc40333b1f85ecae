"""Prices: the double loop's, fair on samples, the same file however often it was killed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_model

from tenth.calibration import stats
from tenth.calibration.fisher import calibrate
from tenth.calibration.stats import SiteStats, Stats
from tenth.core.ggml import WEIGHT_TYPES, storage_type
from tenth.core.jobs import Compute
from tenth.models.checkpoint import open_checkpoint
from tenth.quantization import sensitivity
from tenth.quantization.encode import quantise
from tenth.runtime.llama import dequantize


def stats_of(rows: int, columns: int, seed: int = 0, spread: float = 1.0) -> SiteStats:
    rng = np.random.default_rng(seed)

    def heavy(n: int) -> np.ndarray:
        return np.exp(spread * rng.standard_normal(n)).astype(np.float32)

    noise = {n: 1e-4 * heavy(columns) for n in stats.ACTIVATION_BLOCKS}
    return SiteStats(heavy(rows), heavy(columns), heavy(rows), heavy(columns), noise)


def naive(weight: np.ndarray, stats: SiteStats, kind: str) -> float:
    """The predicted KL of a whole tensor, element by element."""
    decoded = dequantize(quantise(weight, kind, stats.cols), kind, weight.shape[1])
    total, block = sum(float(r) for r in stats.rows), storage_type(kind).activation_block
    predicted_kl = 0.0
    for i, row in enumerate(weight):
        for j, value in enumerate(row):
            error = float(decoded[i, j]) - float(value)
            predicted_kl += 0.5 * float(stats.rows[i]) * float(stats.cols[j]) / total * error**2
            if block:
                predicted_kl += 0.5 * float(stats.grad2[i]) * float(value) ** 2 * float(stats.noise[block][j])
            else:
                noise = sensitivity.PLAIN_NOISE[kind] * float(stats.square[j])
                predicted_kl += 0.5 * float(stats.grad2[i]) * float(value) ** 2 * noise
    return predicted_kl


def test_whole_tensor_is_the_double_loop() -> None:
    weight = np.random.default_rng(1).standard_normal((6, 256)).astype(np.float32)
    stats = stats_of(6, 256)
    found = sensitivity.sensitivity(weight, np.arange(6), np.ones(6), stats, WEIGHT_TYPES)
    assert set(found) == set(WEIGHT_TYPES)
    for kind in ("IQ1_S", "IQ2_XXS", "IQ3_S", "Q4_0", "Q4_K", "IQ4_NL", "Q8_0", "F16", "BF16"):
        assert found[kind] == pytest.approx(naive(weight, stats, kind), rel=1e-4)


def test_types_that_do_not_hold_the_rows_are_left_out() -> None:
    weight = np.random.default_rng(1).standard_normal((6, 96)).astype(np.float32)
    found = sensitivity.sensitivity(weight, np.arange(6), np.ones(6), stats_of(6, 96), WEIGHT_TYPES)
    assert set(found) == {kind for kind in WEIGHT_TYPES if storage_type(kind).holds(96)}


def test_what_has_no_gradient_costs_nothing() -> None:
    zero = np.zeros(256, np.float32)
    stats = SiteStats(zero[:6], zero, zero[:6], zero, {256: zero, 32: zero})
    weight = np.ones((6, 256), np.float32)
    assert set(
        sensitivity.sensitivity(weight, np.arange(6), np.ones(6), stats, ("IQ1_S", "Q4_K", "F16")).values()
    ) == {0.0}


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 900), columns=st.sampled_from([32, 256, 4096]), weights=st.integers(1, 1 << 17))
def test_sampled_rows_are_distinct_ascending_and_enough(rows: int, columns: int, weights: int) -> None:
    found, stands = sensitivity.sampled_rows(stats_of(rows, columns, seed=rows), columns, weights)
    assert (np.diff(found) > 0).all()
    assert found.min() >= 0
    assert found.max() < rows
    assert stands.shape == found.shape
    if rows <= max(64, weights // columns):
        np.testing.assert_array_equal(found, np.arange(rows))
        assert (stands == 1).all()
    else:
        assert len(found) <= max(64, weights // columns)


def test_sample_stands_for_the_whole_and_has_what_matters() -> None:
    stats = stats_of(1000, 32, spread=2.0)
    found, stands = sensitivity.sampled_rows(stats, 32, 100 * 32)
    for part in (stats.rows, stats.grad2):
        assert float(part[found] @ stands) == pytest.approx(float(part.sum()), rel=0.1)
        assert int(part.argmax()) in found


def test_untied_embeddings_have_no_output_gradient() -> None:
    stats = stats_of(1000, 32, spread=2.0)
    found, stands = sensitivity.sampled_rows(replace(stats, grad2=0 * stats.grad2), 32, 100 * 32)
    assert float(stats.rows[found] @ stands) == pytest.approx(float(stats.rows.sum()), rel=1e-3)
    zero = replace(stats, rows=0 * stats.rows, grad2=0 * stats.grad2)
    assert len(sensitivity.sampled_rows(zero, 32, 100 * 32)[0]) == 100


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_load_rows_is_indexing(data: st.DataObject, checkpoint: Any) -> None:
    tensor = checkpoint.tensors["model.layers.0.mlp.gate_proj.weight"]
    whole = tensor.load()
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(whole) - 1), min_size=1))))
    found = sensitivity.load_rows(tensor, rows)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, whole[rows])


@pytest.mark.parametrize("kind", ["IQ2_XXS", "Q4_K", "Q8_0"])
def test_sampling_is_fair_where_sensitivities_are_heavy_tailed(kind: str) -> None:
    """Rows whose size grows with their sensitivity, over four decades."""
    ratios = []
    for seed in range(6):
        stats = stats_of(1024, 256, seed, spread=1.5)
        size = (stats.rows / stats.rows.mean()) ** 0.25
        weight = np.random.default_rng(seed).standard_normal((1024, 256)).astype(np.float32) * size[:, None]
        rows, stands = sensitivity.sampled_rows(stats, 256, 128 * 256)
        sampled = sensitivity.sensitivity(weight[rows], rows, stands, stats, (kind,))[kind]
        ratios.append(
            sampled / sensitivity.sensitivity(weight, np.arange(1024), np.ones(1024), stats, (kind,))[kind]
        )
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.03)
    assert 0.85 < min(ratios) <= max(ratios) < 1.15


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    make_model(
        folder, "llama", "tied", hidden_size=256, intermediate_size=256, num_hidden_layers=1, vocab_size=64
    )
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 64, (2, 12)).astype(np.int32))
    (folder / "stats").mkdir()
    calibrate(folder, folder / "tokens.npy", 0, folder / "stats", Compute(threads=1), lambda event: None)
    return open_checkpoint(folder)


def run(checkpoint: Any, destination: Path, emit: Any = lambda event: None, threads: int = 2) -> bytes:
    sensitivity.measure_sensitivities(
        checkpoint.path, checkpoint.path / "stats", destination, WEIGHT_TYPES, threads, emit
    )
    return destination.read_bytes()


@pytest.fixture(scope="module")
def priced(checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The checkpoint, the file of prices, and what was said meanwhile."""
    events: list[dict[str, Any]] = []
    path = tmp_path_factory.mktemp("sensitivities") / "sensitivities.jsonl"
    return checkpoint, run(checkpoint, path, events.append), events


def test_run_prices_every_matrix_and_reports_weights(priced: Any, tmp_path: Path) -> None:
    checkpoint, whole, events = priced
    (tmp_path / "sensitivities.jsonl").write_bytes(whole)
    found, stats = sensitivity.load(tmp_path / "sensitivities.jsonl"), Stats(checkpoint.path / "stats")
    linear = [spec for spec in checkpoint.specs() if spec.linear]
    assert list(found) == [spec.name for spec in linear]
    for spec in linear:
        weight = checkpoint.tensors[spec.source].load()
        assert found[spec.name] == sensitivity.sensitivity(
            weight, np.arange(len(weight)), np.ones(len(weight), np.float32), stats[spec.source], WEIGHT_TYPES
        )
        assert found[spec.name]["IQ1_S"] > found[spec.name]["Q4_K"] > found[spec.name]["F16"] >= 0
    assert [event["done"] for event in events] == list(np.cumsum([spec.count for spec in linear]))
    assert events[-1]["done"] == events[-1]["total"]


@pytest.mark.parametrize("kept", [0.4, 0.99, 1.0])
def test_cut_short_and_resumed_is_the_same_file(kept: float, priced: Any, tmp_path: Path) -> None:
    checkpoint, whole, _ = priced
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(whole[: int(kept * len(whole))])
    events: list[dict[str, Any]] = []
    assert run(checkpoint, broken, events.append, threads=1) == whole
    assert len(events) == whole.count(b"\n") - whole[: int(kept * len(whole))].count(b"\n")
    assert all(json.loads(line)["sensitivities"] for line in whole.splitlines())
