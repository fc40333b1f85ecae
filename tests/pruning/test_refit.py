"""Closed forms of removing columns, against least squares and brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from tenth.pruning import refit

OUT, IN, TOKENS = 5, 12, 400


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(W, z, targets, F): inputs correlate, targets are not what W gives, F is no multiple of one."""
    random = np.random.default_rng(3)
    mixing = random.normal(size=(IN, IN))
    z = random.normal(size=(TOKENS, IN)) @ mixing
    weight = random.normal(size=(OUT, IN))
    target = z @ (weight + 0.3 * random.normal(size=weight.shape)).T + random.normal(size=(TOKENS, OUT))
    g = random.normal(size=(TOKENS, OUT)) * random.uniform(0.1, 3, OUT)
    return weight, z, target, g.T @ g / TOKENS


def of(weight: np.ndarray, z: np.ndarray, target: np.ndarray) -> refit.LeastSquares:
    gram, cross = z.T @ z / len(z), (target - z @ weight.T).T @ z / len(z)
    return refit.least_squares(
        torch.from_numpy(weight), torch.from_numpy(gram), len(z), torch.from_numpy(cross)
    )


def damping(z: np.ndarray) -> float:
    share = max(refit.DAMPING, refit.FEW * z.shape[1] / len(z))
    return float(share * np.trace(z.T @ z) / len(z) / z.shape[1])


def objective(values: np.ndarray, weight: np.ndarray, z: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[OUT, OUT]: mean of e e^T of the errors, and the pull towards W; values are whole, removed ones 0."""
    error = z @ values.T - target
    away = values - weight
    return np.asarray(error.T @ error / len(z) + damping(z) * away @ away.T)


def test_the_best_matrix_is_that_of_ridge_regression(drawn: tuple[np.ndarray, ...]) -> None:
    weight, z, target, _ = drawn
    rows = np.vstack([z / np.sqrt(len(z)), np.sqrt(damping(z)) * np.eye(IN)])
    wanted = np.vstack([target / np.sqrt(len(z)), np.sqrt(damping(z)) * weight.T])
    expected = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    assert np.allclose(of(weight, z, target).best, expected, atol=1e-9)


def test_refit_is_the_least_squares_of_what_stays(drawn: tuple[np.ndarray, ...]) -> None:
    weight, z, target, _ = drawn
    here = of(weight, z, target)
    columns = np.array([0, 3, 4, 9, 11])
    form = here.form.numpy()
    half = np.linalg.cholesky(form).T
    expected = np.linalg.lstsq(half[:, columns], half @ here.best.numpy().T, rcond=None)[0].T
    assert np.allclose(refit.refitted(here, torch.from_numpy(columns)), expected, atol=1e-5)
    assert refit.refitted(here, torch.empty(0, dtype=torch.long)).shape == (OUT, 0)


@pytest.mark.parametrize("unit", [1, 3])
def test_the_predicted_cost_is_the_measured_one(drawn: tuple[np.ndarray, ...], unit: int) -> None:
    weight, z, target, fisher = drawn
    here = of(weight, z, target)
    removed = refit.cheapest_first(here, torch.from_numpy(fisher), unit, rounds=IN)
    least = np.trace(fisher @ objective(here.best.numpy(), weight, z, target))
    assert len(removed.order) == IN // unit
    assert len(removed.cost) == IN // unit + 1
    for count in range(IN // unit + 1):
        gone = {unit * number + i for number in removed.order[:count] for i in range(unit)}
        columns = np.array([c for c in range(IN) if c not in gone], np.int64)
        whole = np.zeros_like(weight)
        whole[:, columns] = refit.refitted(here, torch.from_numpy(columns)).numpy()
        # The form pulls what is removed towards W as well, which is part of its cost.
        found = np.trace(fisher @ objective(whole, weight, z, target)) - least
        assert found == pytest.approx(removed.cost[count], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("unit", [1, 3])
def test_one_at_a_time_the_cheapest_of_all_goes(drawn: tuple[np.ndarray, ...], unit: int) -> None:
    weight, z, target, fisher = drawn
    here = of(weight, z, target)
    removed = refit.cheapest_first(here, torch.from_numpy(fisher), unit, rounds=IN // unit)
    form, best = here.form.numpy(), here.best.numpy()
    alive = list(range(IN // unit))
    for step, chosen in enumerate(removed.order):
        costs = {}
        for candidate in alive:
            gone = [*removed.order[:step], candidate]
            columns = [c for c in range(IN) if c // unit not in gone]
            values = np.zeros_like(best)
            if columns:
                values[:, columns] = refit.refitted(here, torch.tensor(columns)).numpy()
            away = values - best
            costs[candidate] = np.trace(fisher @ away @ form @ away.T)
        assert costs[chosen] == pytest.approx(min(costs.values()), rel=1e-4, abs=1e-6)
        alive.remove(chosen)


def test_what_is_dead_goes_first_and_costs_nothing(drawn: tuple[np.ndarray, ...]) -> None:
    weight, z, _, fisher = drawn
    dead, silent = 2, 7  # a column of zeros in W; an input that is always zero
    weight[:, dead], z[:, silent] = 0, 0
    here = of(weight, z, z @ weight.T)
    removed = refit.cheapest_first(here, torch.from_numpy(fisher), 1, rounds=IN, keep=IN - 2)
    assert set(removed.order) == {dead, silent}
    columns = torch.tensor([c for c in range(IN) if c not in (dead, silent)])
    assert np.allclose(z[:, columns] @ refit.refitted(here, columns).numpy().T, z @ weight.T, atol=1e-3)


def test_several_a_round_cost_no_less_than_the_best_set(drawn: tuple[np.ndarray, ...]) -> None:
    weight, z, target, fisher = drawn
    here, away = of(weight, z, target), 3
    inverse, best = np.linalg.inv(here.form.numpy()), here.best.numpy()

    def cost(gone: tuple[int, ...]) -> float:
        removed = best[:, gone]
        return float(np.trace(fisher @ removed @ np.linalg.inv(inverse[np.ix_(gone, gone)]) @ removed.T))

    least = min(cost(gone) for gone in combinations(range(IN), away))
    for rounds in (1, 2, away):
        removed = refit.cheapest_first(here, torch.from_numpy(fisher), 1, rounds, keep=IN - away)
        assert removed.cost[-1] == pytest.approx(cost(tuple(removed.order)), rel=1e-6)
        assert least * (1 - 1e-9) <= removed.cost[-1] < 2 * least
