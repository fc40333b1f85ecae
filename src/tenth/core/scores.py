"""Scores as records: a share with its interval, and a model beside its original. core/statistics.py computes
them; who only reads them loads no scipy.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenth.core.records import Record

Z = 1.959963984540054  # of 95 %: half an interval in standard deviations of a normal distribution


class ScoreInterval(Record):
    """A figure and its interval of 95 %."""

    value: float
    low: float
    high: float
    count: int = Field(ge=1)  # items


class Comparison(Record):
    """A model with its original on one task; shares, ours minus the original's."""

    task: str
    ours: ScoreInterval
    original: ScoreInterval
    difference: ScoreInterval
    lost: int  # items that only the original gets right; of other shares: where ours is lower by SAME
    won: int
    p: float | None  # of flips as uneven as these where both are equally good; None for other shares
    chance: float
    original_by_chance: float  # p, one-sided
    kept: float | None  # of what the original has above chance; None where that is nothing certain
    verdict: Literal["better", "worse", "tie", "not informative"]
