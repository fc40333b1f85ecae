from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import naive_statistics

from tenth.core import statistics

counts = st.integers(0, 40)


def outcomes(both: int, won: int, lost: int, neither: int) -> tuple[list[float], list[float]]:
    """(ours, the original's)."""
    cells = ((both, (1.0, 1.0)), (won, (1.0, 0.0)), (lost, (0.0, 1.0)), (neither, (0.0, 0.0)))
    pairs = [pair for count, pair in cells for _ in range(count)]
    return [a for a, _ in pairs], [b for _, b in pairs]


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),  # Newcombe, Statistics in Medicine 17 (1998) 857, table I
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(successes: int, count: int, low: float, high: float) -> None:
    assert statistics.wilson(successes, count) == pytest.approx((low, high), abs=5e-5)


@given(count=st.integers(1, 300), share=st.floats(0, 1))
def test_wilson_is_what_its_definition_says(count: int, share: float) -> None:
    successes = round(share * count)
    expected = naive_statistics.wilson(successes, count)
    assert statistics.wilson(successes, count) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("table", "low", "high"),  # the second: Fagerland et al., Statistical Analysis of Contingency Tables
    [((36, 12, 2, 0), 0.0569, 0.3404), ((1, 1, 7, 12), -0.507, -0.026)],
)
def test_paired_differences_as_published(table: tuple[int, ...], low: float, high: float) -> None:
    found = statistics.paired(*outcomes(*table))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)


@given(both=counts, won=counts, lost=counts, neither=counts)
def test_paired_differences_are_newcombes(both: int, won: int, lost: int, neither: int) -> None:
    assume(both + won + lost + neither)
    ours, original = outcomes(both, won, lost, neither)
    found = statistics.paired(ours, original)
    low, high = naive_statistics.newcombe(both, won, lost, neither)
    assert found.value == pytest.approx((won - lost) / found.count)
    assert found.low == pytest.approx(max(low, -1), abs=1e-7)
    assert found.high == pytest.approx(min(high, 1), abs=1e-7)
    swapped = statistics.paired(original, ours)
    assert (-swapped.high, -swapped.low) == pytest.approx((found.low, found.high), abs=1e-9)


def test_unpaired_differences_as_published() -> None:  # Newcombe, ibid. 873, table II
    for one, other, low, high in (((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090)):
        ours, theirs = ([1.0] * k + [0.0] * (n - k) for k, n in (one, other))
        found = statistics.unpaired(ours, theirs)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)
@given(won=st.integers(0, 30), lost=st.integers(0, 30))
def test_mcnemar_by_enumeration(won: int, lost: int) -> None:
    assert statistics.mcnemar(won, lost) == pytest.approx(naive_statistics.mcnemar(won, lost), rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(chances=st.lists(st.floats(0.05, 0.6), min_size=1, max_size=30), share=st.floats(0, 1))
def test_chance_by_enumeration(chances: list[float], share: float) -> None:
    right = round(share * len(chances))
    values = [1.0] * right + [0.0] * (len(chances) - right)
    mean = [math.fsum(chances) / len(chances)] * len(chances)
    assert statistics.by_chance(values, chances) == pytest.approx(
        naive_statistics.at_least(right, mean), rel=1e-6
    )
    # Items of unequal chance: never called above chance where they are not.
    if right > sum(chances) + 1:
        exact = naive_statistics.at_least(right, chances)
        assert statistics.by_chance(values, chances) >= exact - 1e-12


def test_shares_between_0_and_1_by_bootstrap() -> None:
    rng = np.random.default_rng(3)
    original = rng.beta(2, 3, 400)
    ours = np.clip(original - 0.05 + 0.02 * rng.standard_normal(400), 0, 1)
    found = statistics.paired(list(ours), list(original))
    error = (ours - original).std(ddof=1) / 20
    assert found.value == pytest.approx((ours - original).mean())
    assert (found.low, found.high) == pytest.approx(
        (found.value - 1.96 * error, found.value + 1.96 * error), abs=error / 5
    )
    assert statistics.paired(list(ours), list(original)) == found
    verdict = statistics.compare("t", list(ours), list(original), [0.2] * 400)
    assert (verdict.verdict, verdict.p) == ("worse", None)
    assert verdict.lost == (original - ours > 0.001).sum()
    hair = statistics.compare("t", list(original - 1e-5), list(original), [0.2] * 400)
    assert (hair.verdict, hair.lost, hair.won) == ("tie", 0, 0)


def test_verdicts() -> None:
    chances = [0.25] * 200
    ours, original = outcomes(80, 6, 8, 106)
    tie = statistics.compare("t", ours, original, chances)
    assert (tie.verdict, tie.lost, tie.won) == ("tie", 8, 6)
    assert tie.kept == pytest.approx((0.43 - 0.25) / (0.44 - 0.25))
    worse = statistics.compare("t", *outcomes(70, 4, 30, 96), chances)
    assert worse.verdict == "worse"
    assert worse.difference.high < 0
    assert statistics.compare("t", *outcomes(70, 30, 4, 96), chances).verdict == "better"
    same = statistics.compare("t", *outcomes(100, 0, 0, 100), chances)
    assert (same.verdict, same.p, same.difference.value) == ("tie", 1.0, 0.0)
    assert same.difference.low < 0 < same.difference.high


def test_a_task_at_chance_says_nothing() -> None:
    chances = [0.25] * 200
    for table in ((50, 0, 0, 150), (0, 0, 55, 145), (10, 60, 45, 85)):
        found = statistics.compare("t", *outcomes(*table), chances)
        assert (found.verdict, found.kept) == ("not informative", None)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_intervals_cover(seed: int) -> None:
    rng, inside = np.random.default_rng(seed), 0
    for _ in range(200):
        original = rng.random(120) < 0.6
        ours = np.where(rng.random(120) < 0.2, rng.random(120) < 0.4, original)  # expected -0.04
        found = statistics.paired(ours.astype(float).tolist(), original.astype(float).tolist())
        inside += found.low <= -0.04 <= found.high
    assert inside >= 175  # 190 expected


def test_one_share_alone_is_its_own_interval() -> None:
    found = statistics.mean([0.37])
    assert (found.value, found.low, found.high, found.count) == (0.37, 0.37, 0.37, 1)
    same = statistics.mean([0.37] * 5)
    assert (same.low, same.high) == pytest.approx((0.37, 0.37))
