"""Intervals and tests from their definitions: by search, by enumeration."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959963984540054


def wilson(successes: int, count: int) -> tuple[float, float]:
    """All shares p with |observed - p| <= z * sqrt(p (1 - p) / n), by bisection."""
    observed = successes / count

    def inside(p: float) -> bool:
        return (observed - p) ** 2 <= Z * Z * p * (1 - p) / count + 1e-18

    def edge(good: float, bad: float) -> float:
        for _ in range(200):
            middle = (good + bad) / 2
            good, bad = (middle, bad) if inside(middle) else (good, middle)
        return good

    return edge(observed, 0.0), edge(observed, 1.0)


def newcombe(both: int, won: int, lost: int, neither: int) -> tuple[float, float]:
    """Method 10 for paired shares, step by step as the paper has it."""
    n = both + won + lost + neither
    p1, p2 = (both + won) / n, (both + lost) / n
    l1, u1 = wilson(both + won, n)
    l2, u2 = wilson(both + lost, n)
    a = (both + won) * (lost + neither) * (both + lost) * (won + neither)
    b = both * neither - won * lost
    if b > n / 2:
        c = b - n / 2
    elif b >= 0:
        c = 0.0
    else:
        c = float(b)
    phi = c / math.sqrt(a) if a else 0.0
    down = math.sqrt(max(0, (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2))
    up = math.sqrt(max(0, (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2))
    return p1 - p2 - down, p1 - p2 + up


def mcnemar(won: int, lost: int) -> float:
    """Probability of all splits of the flips that are no likelier than this one, at even odds."""
    n = won + lost
    ways = [math.comb(n, k) for k in range(n + 1)]
    return sum(w for w in ways if w <= ways[won]) / 2**n


def at_least(successes: int, chances: Sequence[float]) -> float:
    """Probability of that many successes or more, each item with its own chance."""
    distribution = [1.0]
    for chance in chances:
        longer = [0.0] * (len(distribution) + 1)
        for k, p in enumerate(distribution):
            longer[k] += p * (1 - chance)
            longer[k + 1] += p * chance
        distribution = longer
    return math.fsum(distribution[successes:])
