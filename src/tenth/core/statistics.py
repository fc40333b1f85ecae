"""Scores with intervals, and two models on the same items: differences, flips, ties, and what is chance.

Every interval is of 95 %. Of shares of yes and no:
    one share           Wilson, JASA 22 (1927)
    paired difference   square-and-add of two Wilson intervals with the items' correlation: method 10 of
                        Newcombe, Statistics in Medicine 17 (1998) 2635; p: McNemar's test, exact (binomial)
    unpaired            the same without correlation: method 10 of Newcombe, ibid. 873
Of other shares (0.37 of the probability): bootstrap over items, percentiles of 10,000 samples.
A model is above chance where chance alone is unlikely (p < 0.05, one-sided) to score as well: binomial, with
the mean chance of the items; with unequal chances that errs towards "not above" (Hoeffding, 1956).
A task on which the original is not above chance says nothing about what was kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats

from tenth.core.scores import Comparison, ScoreInterval

LEVEL = 0.05
SAME = 1e-3  # shares less apart are the same: two routes of the same weights differ by some 1e-5
_SAMPLES = 10_000
_AT_ONCE = 1 << 22  # items drawn at a time


def binary(values: Sequence[float]) -> bool:
    """Whether all are 0 or 1."""
    return all(value in (0.0, 1.0) for value in values)


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Wilson's score interval of a share (1927), by scipy."""
    low, high = stats.binomtest(successes, count).proportion_ci(method="wilson")
    return float(low), float(high)


def mean(values: Sequence[float]) -> ScoreInterval:
    """The mean of outcomes, with an interval by resampling them."""
    count = len(values)
    if binary(values):
        low, high = wilson(round(sum(values)), count)
    else:
        low, high = _bootstrap(np.asarray(values, np.float64))
    return ScoreInterval(value=math.fsum(values) / count, low=low, high=high, count=count)


def paired(ours: Sequence[float], original: Sequence[float]) -> ScoreInterval:
    """Mean of ours minus the original's, item by item."""
    a, b = np.asarray(ours, np.float64), np.asarray(original, np.float64)
    if not (binary(ours) and binary(original)):
        low, high = _bootstrap(a - b)
        return ScoreInterval(value=float((a - b).mean()), low=low, high=high, count=len(a))
    both, neither = int((a * b).sum()), int(((1 - a) * (1 - b)).sum())
    won, lost = int((a * (1 - b)).sum()), int((b * (1 - a)).sum())
    n = len(a)
    product = (both + won) * (lost + neither) * (both + lost) * (won + neither)
    excess = float(both * neither - won * lost)
    excess = max(excess - n / 2, 0.0) if excess > 0 else excess
    phi = excess / math.sqrt(product) if product else 0.0
    return _square_and_add(both + won, n, both + lost, n, phi)


def unpaired(one: Sequence[float], other: Sequence[float]) -> ScoreInterval:
    """Share of one minus share of the other, of different items; outcomes are 0 or 1."""
    return _square_and_add(round(sum(one)), len(one), round(sum(other)), len(other), 0.0)


def mcnemar(won: int, lost: int) -> float:
    """Two-sided exact p of flips as uneven as these or more, were both directions equally likely."""
    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def by_chance(values: Sequence[float], chances: Sequence[float]) -> float:
    """One-sided p of a score as high as this or higher by chance alone."""
    if binary(values):
        chance = min(1.0, math.fsum(chances) / len(chances))
        return float(stats.binomtest(round(sum(values)), len(values), chance, "greater").pvalue)
    excess = np.asarray(values, np.float64) - np.asarray(chances)
    if len(excess) < 2 or not excess.std():
        return 1.0
    return float(stats.ttest_1samp(excess, 0.0, alternative="greater").pvalue)


def compare(
    task: str, ours: Sequence[float], original: Sequence[float], chances: Sequence[float]
) -> Comparison:
    """All of the above, and the verdict; the three have one entry per item, in the same order."""
    a, b = np.asarray(ours, np.float64), np.asarray(original, np.float64)
    won, lost = int((a - b > SAME).sum()), int((b - a > SAME).sum())
    difference, chance = paired(ours, original), math.fsum(chances) / len(chances)
    p = mcnemar(won, lost) if binary(ours) and binary(original) else None
    luck = by_chance(original, chances)
    verdict: Literal["better", "worse", "tie", "not informative"] = "tie"
    kept = None
    if luck >= LEVEL:
        verdict = "not informative"
    else:
        kept = float((a.mean() - chance) / (b.mean() - chance))
        apart = abs(difference.value) > SAME and not difference.low <= 0 <= difference.high
        if apart and (p is None or p < LEVEL):
            verdict = "better" if difference.value > 0 else "worse"
    return Comparison(
        task=task,
        ours=mean(ours),
        original=mean(original),
        difference=difference,
        lost=lost,
        won=won,
        p=p,
        chance=chance,
        original_by_chance=luck,
        kept=kept,
        verdict=verdict,
    )


def _square_and_add(one: int, n1: int, other: int, n2: int, phi: float) -> ScoreInterval:
    """Two shares with their Wilson intervals, correlated by phi."""
    p1, p2 = one / n1, other / n2
    (low1, high1), (low2, high2) = wilson(one, n1), wilson(other, n2)

    def length(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    difference = p1 - p2
    return ScoreInterval(
        value=difference,
        low=max(-1.0, difference - length(p1 - low1, high2 - p2)),
        high=min(1.0, difference + length(high1 - p1, p2 - low2)),
        count=min(n1, n2),
    )


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    """Percentiles of the mean over items drawn with replacement; the same draws for the same count."""
    if len(values) == 1:
        return float(values[0]), float(values[0])
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=_SAMPLES,
        batch=max(1, _AT_ONCE // len(values)),
        confidence_level=1 - LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
