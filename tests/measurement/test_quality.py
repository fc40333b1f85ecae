from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_gguf
from reference import naive_quality

from tenth.calibration.reference import run_original
from tenth.core import divergence
from tenth.core.errors import InputError, NativeError
from tenth.core.jobs import Compute
from tenth.core.records import Runtime
from tenth.measurement import quality
from tenth.measurement.speed import speed
from tenth.models.checkpoint import open_checkpoint
from tenth.quantization.kv import measure_kv
from tenth.quantization.write import write_model
from tenth.runtime import llama

EXACT = Runtime(n_ctx=64, n_ubatch=16, type_k="f32", type_v="f32", flash_attention=False, threads=1)
WINDOWS, LENGTH, VOCAB = 3, 21, 300


def _logits(path: Path, tokens: np.ndarray) -> np.ndarray:
    """[windows, T - 1, vocabulary]."""
    with llama.Session.open(path, EXACT.model_copy(update={"n_ctx": LENGTH})) as session:
        rows = []
        for window in tokens:
            session.clear()
            rows.append(session.decode(window)[:-1])
    return np.array(rows)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(the original's file, a coarser one, the original's reference)."""
    folder = tmp_path_factory.mktemp("quality")
    original = tiny_gguf.write(folder / "original.gguf")
    coarse = tiny_gguf.write(folder / "coarse.gguf", kind="Q4_0")
    reference = folder / "reference"
    reference.mkdir()
    tokens = np.random.default_rng(3).integers(0, VOCAB, (WINDOWS, LENGTH)).astype(np.int32)
    logits = _logits(original, tokens).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    np.save(reference / "tokens.npy", tokens)
    np.save(reference / "logprobs.npy", logprobs.astype(np.float16))
    (reference / "reference.json").write_text(
        json.dumps({"bytes": 100, "windows": WINDOWS, "context": LENGTH})
    )
    return original, coarse, reference


def _by_name(readings: list[quality.Reading]) -> dict[str, quality.Reading]:
    return {reading.name: reading for reading in readings}


def test_figures_are_those_of_a_naive_loop(files: tuple[Path, Path, Path]) -> None:
    _, coarse, reference = files
    steps: list[float] = []
    found = _by_name(quality.quality(coarse, reference, EXACT, on_progress=steps.append))
    tokens, logprobs = np.load(reference / "tokens.npy"), np.load(reference / "logprobs.npy")
    divergences, agreeing, nats = naive_quality.figures(_logits(coarse, tokens), logprobs, tokens)
    assert steps == [1, 2, 3]
    assert found["kl"].value == pytest.approx(np.mean(divergences), rel=1e-3)
    assert found["kl"].value > 1e-4
    assert found["kl_median"].value == pytest.approx(np.median(divergences), rel=1e-3)
    assert found["kl_p99"].value == pytest.approx(np.percentile(divergences, 99), rel=1e-3)
    assert found["top1"].value == pytest.approx(agreeing)
    assert found["perplexity"].value == pytest.approx(math.exp(nats), rel=1e-5)
    assert found["bits_per_byte"].value == pytest.approx(
        nats * WINDOWS * (LENGTH - 1) / 100 / math.log(2), rel=1e-5
    )
    windows = np.reshape(divergences, (WINDOWS, -1)).mean(axis=1)
    assert found["kl"].spread == pytest.approx(windows.std(ddof=1) / math.sqrt(WINDOWS), rel=1e-2)
    assert all(reading.count == WINDOWS for reading in found.values())


def test_the_original_is_close_to_itself(files: tuple[Path, Path, Path]) -> None:
    original, _, reference = files
    found = _by_name(quality.quality(original, reference, EXACT))
    stored = _by_name(quality.original(reference))
    assert abs(found["kl"].value) < 1e-5  # float16 of the stored log-probabilities
    assert found["top1"].value > 0.95
    assert found["perplexity"].value == pytest.approx(stored["perplexity"].value, rel=1e-3)
    assert found["bits_per_byte"].value == pytest.approx(stored["bits_per_byte"].value, rel=1e-3)


def test_fewer_windows_and_other_caches(files: tuple[Path, Path, Path]) -> None:
    original, _, reference = files
    shipped = Runtime(n_ctx=64, n_ubatch=16, type_k="q4_0", type_v="q4_0", threads=1)
    found = _by_name(quality.quality(original, reference, shipped, windows=1))
    assert found["kl"].count == 1
    assert found["kl"].spread is None
    assert found["kl"].value > 1e-6
    assert "KV q4_0/q4_0, flash attention on" in found["kl"].conditions


def test_nan_is_an_error(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    spoiled = tiny_gguf.write(tmp_path / "nan.gguf", spoil="blk.0.attn_norm.weight")
    with pytest.raises(NativeError, match="NaN or infinite logits"):
        quality.quality(spoiled, files[2], EXACT)


def test_unusable_references(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    original, _, reference = files
    with pytest.raises(InputError, match="cannot be read"):
        quality.quality(original, tmp_path, EXACT)
    other = tiny_gguf.write(tmp_path / "other.gguf", vocab=310)
    with pytest.raises(InputError, match=r"has 310 tokens, the reference .* 300"):
        quality.quality(other, reference, EXACT)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "reference.json").write_text('{"bytes": 10}')
    np.save(copy / "tokens.npy", np.zeros((2, 4), np.int64))
    np.save(copy / "logprobs.npy", np.zeros((2, 3, VOCAB), np.float16))
    with pytest.raises(InputError, match="int64"):
        quality.original(copy)
    np.save(copy / "tokens.npy", np.full((2, 4), VOCAB, np.int32))
    with pytest.raises(InputError, match="outside its own vocabulary"):
        quality.quality(original, copy, EXACT)
    (copy / "tokens.npy").write_bytes((copy / "tokens.npy").read_bytes()[:90])
    with pytest.raises(InputError, match="cannot be read"):
        quality.original(copy)


def test_log_softmax_of_large_logits() -> None:
    rows = divergence.log_softmax(np.array([[1e4, 1e4 - 1, -1e4]], np.float32))
    assert np.isfinite(rows).all()
    assert np.exp(rows).sum() == pytest.approx(1)


def test_speed(files: tuple[Path, Path, Path]) -> None:
    found = _by_name(speed(files[0], EXACT, repeats=2))
    assert set(found) == {"load", "prefill", "decode"}
    for reading in found.values():
        assert reading.value > 0
        assert reading.count == 2
        assert reading.spread is not None
    assert found["decode"].unit == "tokens/s"
    assert "32 tokens" in found["decode"].conditions


# ---- LongRoPE: llama.cpp chooses the factors by the context's length


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(a Phi-3 that was stretched from 256 tokens, its file in float32, transformers' answers)."""
    folder = tmp_path_factory.mktemp("longrope")
    model, gguf = folder / "model", folder / "model.gguf"
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    tiny.make_model(model, "phi3", "plain", **heads, **tiny.longrope(16, original=256))
    tokens = np.random.default_rng(1).integers(3, 330, (3, 96)).astype(np.int32)
    np.save(folder / "tokens.npy", tokens)
    run_original(model, folder / "tokens.npy", 300, 3, folder, Compute(threads=1), lambda event: None)
    specs = open_checkpoint(model).specs()
    write_model(model, {spec.name: "F32" for spec in specs if spec.linear}, gguf, threads=1)
    return model, gguf, folder


@pytest.mark.parametrize(
    ("n_ctx", "long"), [(96, False), (256, False), (257, True), (600, True), (2048, True)]
)
def test_a_file_is_judged_in_the_plans_context(
    longrope: tuple[Path, Path, Path], n_ctx: int, long: bool
) -> None:
    _, gguf, reference = longrope
    runtime = EXACT.model_copy(update={"n_ctx": n_ctx})
    found = _by_name(quality.quality(gguf, reference, runtime))["kl"]
    tokens = np.load(reference / "tokens.npy")
    p = np.exp(np.load(reference / "logprobs.npy").astype(np.float64))
    with llama.Session.open(gguf, runtime, n_batch=96) as session:
        rows = []
        for window in tokens:
            session.clear()
            rows.append(session.decode(window)[:-1].astype(np.float64))
    logits = np.array(rows)
    q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    assert found.value == pytest.approx((p * (np.log(p) - q)).sum(-1).mean(), abs=1e-5)
    assert (found.value > 1e-3) == long
    assert f"context {n_ctx}" in found.conditions


def test_cache_types_are_measured_with_the_factors_of_the_plan(
    longrope: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, _, reference = longrope
    given = reference / "tokens.npy", 2, 32
    found = []
    for context in (96, 256, 257, 1024):
        folder = tmp_path / str(context)
        folder.mkdir()
        found.append(measure_kv(model, *given, context, folder, 1, lambda event: None))
    assert len(found[0]) > 4
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert found[0] != found[2]
