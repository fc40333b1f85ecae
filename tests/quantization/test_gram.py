"""Gram matrices against plain sums over the whole model's own hooks; their scaling against the definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import naive_gram as naive
from tiny import make_model

from tenth.calibration.layerwise import LayerwiseModel
from tenth.models.checkpoint import open_checkpoint
from tenth.quantization import gram
from tenth.quantization.gptq import DAMP

WINDOWS, LENGTH = 3, 12


def collected(
    folder: Path, tokens: np.ndarray, energies: dict[str, np.ndarray], fisher: dict[str, np.ndarray]
) -> dict[str, torch.Tensor]:
    """H of every linear site, by the walk: block after block, the head last."""
    layerwise = LayerwiseModel(open_checkpoint(folder), 1)
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        with layerwise.embed() as embed:
            hidden = [embed(window) for window in tokens]
        for index in range(len(layerwise.blocks)):
            names = layerwise.linears(index)
            with (
                layerwise.block(index),  # filled first: the sums are where the weights are
                gram.Grams({module: energies[name] for module, name in names.items()}) as grams,
            ):
                hidden = [layerwise.run(index, state) for state in hidden]
            found |= {name: grams.take(module, fisher[name]) for module, name in names.items()}
        with layerwise.head() as head, gram.Grams({head: energies[layerwise.source_of(head)]}) as grams:
            for state in hidden:
                layerwise.logits(state)
        found[layerwise.source_of(head)] = grams.take(head, fisher[layerwise.source_of(head)])
    return found


@pytest.mark.parametrize(
    ("family", "variant"),
    [("llama", "tied"), ("llama", "head_dim"), ("phi3", "plain"), ("gemma2", "softcaps")],
)
def test_equals_the_sum_over_hooks(family: str, variant: str, tmp_path: Path) -> None:
    model = make_model(tmp_path, family, variant)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 200, (WINDOWS, LENGTH)).astype(np.int32)
    sites = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    energies = {name: rng.gamma(0.5, 1.0, (WINDOWS, LENGTH)).astype(np.float32) for name in sites}
    energies[next(iter(sites))][1] = 0.0  # a window that does not matter
    fisher = {name: rng.gamma(0.5, 1.0, site.in_features).astype(np.float32) for name, site in sites.items()}
    found, sums = collected(tmp_path, tokens, energies, fisher), naive.weighted(model, tokens, energies)
    assert set(found) == set(sums) == set(sites)
    for name, plain in sums.items():
        wanted = naive.with_diagonal(plain, fisher[name])
        assert found[name].dtype == torch.float32
        np.testing.assert_allclose(found[name], wanted, rtol=2e-3, atol=2e-5 * wanted.max(), err_msg=name)


def seen_by_a_layer(x: torch.Tensor, energy: np.ndarray) -> tuple[gram.Grams, Any]:
    """Grams of one linear layer that has seen the windows x [windows, T, in]."""
    module = torch.nn.Linear(x.shape[2], 3, bias=False).requires_grad_(False)
    with gram.Grams({module: energy}) as grams:
        for window in x:
            module(window[None])
    return grams, module


def test_taken_once_with_its_diagonal_and_no_longer_listening() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 4, generator=generator)
    x[..., 2] = 0.0  # never any input there
    energy = np.arange(10, dtype=np.float32).reshape(2, 5)
    fisher = np.array([1.0, 2.0, 3.0, 0.0], np.float32)
    grams, module = seen_by_a_layer(x, energy)
    module(torch.full((1, 5, 4), 100.0))
    flat = x.reshape(10, 4).double().numpy()
    plain = sum(e * np.outer(row, row) for e, row in zip(energy.reshape(-1), flat, strict=True))
    found = grams.take(module, fisher)
    np.testing.assert_allclose(found, naive.with_diagonal(plain, fisher), rtol=1e-4, atol=1e-5)
    assert np.array_equal(found.diagonal(), fisher)
    assert not found[2, [0, 1, 3]].any(), "a column without input has nothing in common with others"
    assert not found[3].any(), "a column that does not matter neither"
    with pytest.raises(KeyError):
        grams.take(module, fisher)


def test_shift_is_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 20, 6, generator=generator)
    y = x + 0.3 * torch.randn(x.shape, generator=generator) + 0.2 * x.roll(1, -1)
    energy = np.random.default_rng(0).gamma(0.5, 1.0, (3, 20)).astype(np.float32)
    module = torch.nn.Linear(6, 4, bias=False).requires_grad_(False)
    with gram.Pairs({module: energy}) as pairs:
        for original, own in zip(x, y, strict=True):
            module(original[None])
            module(own[None])
    weight, flat = module.weight.double().numpy(), [part.reshape(60, 6).double().numpy() for part in (x, y)]
    plain = (flat[1] * energy.reshape(-1)[:, None]).T @ flat[1]
    pull = DAMP * plain.diagonal().mean()
    wanted = naive.nearest_weight(weight, *flat, energy.reshape(-1), pull)
    found = weight + weight @ pairs.shift(module).double().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(found - weight).max() > 0.01
    fisher = np.arange(1, 7, dtype=np.float32)
    wanted = naive.with_diagonal(plain, fisher)
    np.testing.assert_allclose(pairs.take(module, fisher), wanted, rtol=1e-4, atol=1e-5)


def test_shift_is_nothing_where_nothing_was_lost_or_nothing_arrives() -> None:
    module = torch.nn.Linear(5, 2, bias=False).requires_grad_(False)
    for x in (torch.randn(1, 7, 5), torch.zeros(1, 7, 5)):
        with gram.Pairs({module: np.ones((1, 7), np.float32)}) as pairs:
            module(x)
            module(x)
        assert not pairs.shift(module).any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    columns=st.integers(1, 12),
    samples=st.integers(0, 24),
    exponents=st.tuples(st.integers(-9, 0), st.integers(-12, 0)),
    share=st.floats(0, 1),
)
def test_scaled_has_that_diagonal_and_stays_a_gram_matrix(
    seed: int, columns: int, samples: int, exponents: tuple[int, int], share: float
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, columns)) * (rng.random(columns) < share)
    x *= 10.0 ** rng.uniform(exponents[0] / 2, 0, columns)
    fisher = (10.0 ** rng.uniform(exponents[1], 0, columns) * (rng.random(columns) < 0.9)).astype(np.float32)
    plain = (x.T @ x).astype(np.float32)
    found = gram.scaled(torch.from_numpy(plain.copy()), fisher)
    assert found.dtype == torch.float32
    assert np.array_equal(found.diagonal(), fisher)
    wanted = naive.with_diagonal(plain.astype(np.float64), fisher)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6 * float(fisher.max()))
    np.testing.assert_allclose(found, found.T, rtol=1e-5, atol=0)
    assert np.linalg.eigvalsh(found.double().numpy()).min() >= -1e-5 * fisher.sum()


def test_scaled_works_in_place() -> None:
    matrix = torch.eye(64) + 0.5
    assert gram.scaled(matrix, np.full(64, 2, np.float32)).data_ptr() == matrix.data_ptr()
    assert matrix.diagonal().eq(2).all()
