"""The tables of a report as plain data: readings side by side, and each with all that travels with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tenth.core.format import megabytes, written
from tenth.core.metrics import MEMORY, metric
from tenth.core.records import Kind, Reading, Scorecard, reading_of

# Readings that do not compare with the original where tokens were removed.
OF_FEWER_TOKENS = ("kl", "kl_median", "kl_p99", "top1", "perplexity")


class Cell(NamedTuple):
    """One figure of one file, as text."""

    value: str = ""
    spread: str = ""
    kind: Kind | None = None  # how it is known; None where there is nothing to say
    best: bool = False  # of all that were made


class Line(NamedTuple):
    """One row: the original's cell, then a cell for each candidate."""

    title: str
    unit: str
    cells: Sequence[Cell]
    part: bool = False  # of the row above


class SideBySide(NamedTuple):
    """The table "Side by side"."""

    columns: list[str]
    rows: list[Line]


def comparison(card: Scorecard) -> SideBySide:
    """One row a reading, one column for the original and each candidate; the best candidate is marked."""
    made = card.candidates
    columns = [card.original, *(candidate.readings for candidate in made)]
    names = dict.fromkeys(reading.name for readings in columns for reading in readings)
    if card.vocabulary:  # those are told to be to another model, further below
        names = {name: None for name in names if name not in OF_FEWER_TOKENS}
    parts = [candidate.memory.model_dump() for candidate in made]
    rows = [
        _fixed("fits the budget", "", ["yes" if candidate.fits else "no" for candidate in made]),
        _fixed("file", "MB", [megabytes(candidate.file_bytes) for candidate in made]),
        *(_measured(name, [reading_of(readings, name) for readings in columns]) for name in names),
        _fixed("memory, predicted", "MB", [megabytes(candidate.memory.total) for candidate in made]),
    ]
    for name, title in MEMORY.items():
        if any(sizes[name] for sizes in parts):
            rows.append(_fixed(title, "", [megabytes(sizes[name]) for sizes in parts], part=True))
    return SideBySide(["original", *(candidate.name for candidate in made)], rows)


def reading_groups(card: Scorecard) -> list[tuple[str, list[tuple[str, Reading]]]]:
    """(whose they are, [(no name but the metric's own, reading)]) of every reading of the card."""
    groups = [("the original", card.original), *((c.name, c.readings) for c in card.candidates)]
    return [(name, [("", reading) for reading in readings]) for name, readings in groups if readings]


def _fixed(title: str, unit: str, values: Sequence[str], *, part: bool = False) -> Line:
    """A row that the original has nothing in."""
    return Line(title, unit, [Cell(), *(Cell(value) for value in values)], part)


def _measured(name: str, readings: Sequence[Reading | None]) -> Line:
    """A row of readings of one name."""
    about = metric(name)
    best = _best(about.better, [reading.value for reading in readings[1:] if reading])
    cells, unit = [], ""
    for place, reading in enumerate(readings):
        if reading is None:
            cells.append(Cell())
            continue
        text = written(reading)
        unit = unit or text.unit
        cells.append(Cell(text.value, text.spread, reading.kind, best=place > 0 and reading.value == best))
    return Line(about.title, "" if about.in_title else unit, cells)


def _best(better: int, values: Sequence[float]) -> float | None:
    """The value to print bold: the best of at least two different ones."""
    if not better or len(set(values)) < 2:
        return None
    return max(values) if better > 0 else min(values)
