"""Who stands where: verdicts that may be compared, the last attempt of each, and places with their ties.

Places are given within a division and a setting (device, budget, context, text). A tie is a difference that
the text does not settle: within 95 % of the paired error where both verdicts have their passages, overlapping
intervals of 95 % where not. Place "2-4" reads: one is surely better, and so are all but three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tenth.core.format import megabytes
from tenth.core.records import Reading
from tenth.core.scores import Z
from tenth.leaderboard.records import DIVISIONS, QUALITY, Division, Verdict

State = Literal["ranked", "earlier", "disqualified", "again"]


@dataclass(frozen=True, order=True)
class Setting:
    """Verdicts of the same setting may be compared."""

    device: str
    budget: int  # bytes
    context: int  # tokens
    text: str
    text_bytes: int

    @property
    def label(self) -> str:
        """The setting as a person reads it."""
        return f"{self.device}, {megabytes(self.budget)} MB, {self.context:,} tokens"


@dataclass(frozen=True)
class Row:
    """A verdict and where it stands."""

    verdict: Verdict
    setting: Setting
    state: State
    attempt: int  # of this submission in this setting, from 1
    attempts: int
    place: tuple[int, int] | None = None  # best and worst that it can have
    among: int = 0  # submissions with a place
    ties: tuple[str, ...] = ()  # ids of those that it ties with

    @property
    def division(self) -> Division | None:
        """None where the manifest cannot be read."""
        return self.verdict.manifest.division if self.verdict.manifest else None

    @property
    def name(self) -> str:
        """What its maker calls it, else its folder."""
        return self.verdict.manifest.name if self.verdict.manifest else self.verdict.submission

    @property
    def reason(self) -> str:
        """Why it has no place, or nothing."""
        if self.state == "ranked":
            return ""
        if self.state == "again":
            return f"judged by rules {self.verdict.rules}; to be judged again"
        if self.state == "earlier":
            return "an earlier attempt; the last one counts"
        return self.verdict.reason or "its verdict has no bits per byte"

    @property
    def span(self) -> str:
        """The place as people read it: "2", "2–4" for a tie, nothing without one."""
        if self.place is None:
            return ""
        best, worst = self.place
        return f"{best}" if best == worst else f"{best}–{worst}"

    @property
    def tasks_kept(self) -> tuple[int, int]:
        """(tasks that are no worse than the original's, tasks that say something about it)."""
        verdicts = [task.against.verdict for task in self.verdict.tasks if task.against]
        telling = [verdict for verdict in verdicts if verdict != "not informative"]
        return sum(verdict != "worse" for verdict in telling), len(telling)

    @property
    def suspect(self) -> list[str]:
        """Tasks whose public items it does better than hidden ones of their kind: it may have seen them."""
        return [t.title or t.task for t in self.verdict.tasks if t.gap is not None and t.gap.low > 0]

    def reading(self, name: str) -> Reading | None:
        """A reading with a number in it, or None."""
        reading = self.verdict.reading(name)
        return reading if reading is not None and math.isfinite(reading.value) else None


def setting(verdict: Verdict) -> Setting:
    """The setting that a verdict belongs to."""
    c = verdict.conditions
    return Setting(c.device, c.budget, c.context, c.text, c.text_bytes)


def standings(verdicts: Sequence[Verdict], rules: int) -> list[Row]:
    """Every verdict as a row; by setting, division, place."""
    lines: dict[tuple[str, Setting], list[Verdict]] = {}
    for verdict in sorted(verdicts, key=lambda v: (v.date, v.id)):
        lines.setdefault((verdict.submission, setting(verdict)), []).append(verdict)
    rows = [
        Row(verdict, where, _state(verdict, rules, last=i == len(line)), i, len(line))
        for (_, where), line in lines.items()
        for i, verdict in enumerate(line, 1)
    ]
    groups: dict[tuple[Setting, Division | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.setting, row.division), []).append(row)
    return sorted((row for group in groups.values() for row in _placed(group)), key=_order)


def tied(a: Verdict, b: Verdict) -> bool:
    """Whether the text leaves open which of two of the same setting is better."""
    one, other = a.reading(QUALITY), b.reading(QUALITY)
    assert one is not None
    assert other is not None
    apart = abs(one.value - other.value)
    n = len(a.text_chunks)
    if n > 1 and n == len(b.text_chunks):
        differences = [x - y for x, y in zip(a.text_chunks, b.text_chunks, strict=True)]
        mean = sum(differences) / n
        variance = sum((d - mean) * (d - mean) for d in differences) / (n - 1)
        return apart <= Z * math.sqrt(variance / n)
    return apart <= Z * ((one.spread or 0.0) + (other.spread or 0.0))


def whiskers(rows: Sequence[Row]) -> dict[str, float]:
    """id -> half of the interval of 95 % of each row of a setting.

    What a passage does to all of them alike is taken out (Cousineau 2005, with Morey's correction of 2008):
    it is most of the spread, and says nothing about their order. Without passages: of the reading's spread.
    """
    length = {len(row.verdict.text_chunks) for row in rows}
    count, n = len(rows), max(length, default=0)
    if len(length) != 1 or n < 2 or count < 2:
        readings = ((row.verdict.id, row.reading(QUALITY)) for row in rows)
        return {name: Z * (reading.spread or 0.0) for name, reading in readings if reading}
    values = np.array([row.verdict.text_chunks for row in rows])
    apart = values - values.mean(axis=0)
    errors = apart.std(axis=1, ddof=1) * math.sqrt(count / (count - 1) / n)
    return {row.verdict.id: Z * float(error) for row, error in zip(rows, errors, strict=True)}


def _state(verdict: Verdict, rules: int, *, last: bool) -> State:
    if verdict.rules != rules:
        return "again"
    quality = verdict.reading(QUALITY)
    if verdict.status != "ranked" or quality is None or not math.isfinite(quality.value):
        return "disqualified"
    return "ranked" if last else "earlier"


def _placed(group: Sequence[Row]) -> list[Row]:
    """The rows of a division and a setting, with their places."""
    ranked = sorted((row for row in group if row.state == "ranked"), key=_value)
    placed = [row for row in group if row.state != "ranked"]
    for i, row in enumerate(ranked):
        ties = [j for j, other in enumerate(ranked) if j != i and tied(row.verdict, other.verdict)]
        best = 1 + sum(j not in ties and _value(o) < _value(row) for j, o in enumerate(ranked))
        ids = tuple(ranked[j].verdict.id for j in ties)
        placed.append(replace(row, place=(best, best + len(ties)), among=len(ranked), ties=ids))
    return placed


def _value(row: Row) -> float:
    quality = row.reading(QUALITY)
    return quality.value if quality else math.inf


def _order(row: Row) -> tuple[object, ...]:
    states = ("ranked", "earlier", "again", "disqualified")
    division = list(DIVISIONS).index(row.division) if row.division else len(DIVISIONS)
    place = row.place or (math.inf, math.inf)
    return (row.setting, division, states.index(row.state), place, _value(row), row.verdict.id)
