"""index.html: who leads, the pictures, every attempt in one table, and the rules.

templates/index.html says what stands where; this file prepares what it shows. The table is there without a
script; board.js adds sorting and filters to what is already on the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from markupsafe import Markup

from tenth.core.format import number, written
from tenth.core.metrics import METRICS, Metric
from tenth.core.records import Reading
from tenth.leaderboard.ranking import Row, Setting
from tenth.leaderboard.records import DIVISIONS, QUALITY, Division
from tenth.leaderboard.site import chart
from tenth.leaderboard.site.pages import FOLDER, templates
from tenth.report.html import clean
from tenth.report.tables import Cell

SIZES = ((1080, 420), (350, 340))  # of a picture, on a wide page and a narrow one
STATES = {
    "ranked": "ranked",
    "earlier": "earlier attempt",
    "again": "to be judged again",
    "disqualified": "disqualified",
}
# A column shows the first of its readings that the table has.
FIGURES = ((QUALITY,), ("kl",), ("peak",), ("size",), ("device_decode", "decode"), ("device_joules",))


@dataclass(frozen=True)
class Column:
    """One of `FIGURES` as this table has it."""

    metric: Metric
    unit: str  # and how all are known, where that is not by measurement
    same: bool  # all are known in the same way

    @property
    def label(self) -> str:
        """The column's heading with its unit."""
        return ", ".join(filter(None, (self.metric.heading, self.unit)))


class Leader(NamedTuple):
    """The first of a division and a setting."""

    row: Row
    where: str
    than: str  # how far it is ahead


class Panel(NamedTuple):
    """One picture of a setting, and the submissions that it has no place for."""

    name: str
    drawings: list[Markup]  # for a wide page and a narrow one
    absent: list[Row]  # that it has no place for


class Pictures(NamedTuple):
    """The pictures of a setting, one shown at a time."""

    number: int
    label: str
    panels: list[Panel]
    divisions: list[Division]


class Group(NamedTuple):
    """Rows of the table with a heading."""

    division: Division | None
    label: str
    setting: int
    rows: list[Row]


class Filter(NamedTuple):
    """A box of choices above the table."""

    key: str
    word: str
    options: list[tuple[str, str]]  # value, text


def render(rows: Sequence[Row], waiting: Sequence[str], rules: int, tenth: str) -> str:
    """The page; waiting: names of submissions without a verdict."""
    labels = _labels(list(dict.fromkeys(row.setting for row in rows)))
    return templates().render(
        "index.html",
        script=True,
        tenth=tenth,
        rules=rules,
        headline=_headline(rows, list(labels)),
        others=_others(rows),
        leaders=_leaders(rows, labels),
        pictures=_pictures(rows, labels),
        columns=[_column(rows, names) for names in FIGURES],
        groups=_groups(rows, labels),
        filters=_filters(rows, labels),
        waiting=waiting,
        divisions=DIVISIONS,
        states=STATES,
        folder=FOLDER,
        figure_of=figure_of,
        words_of=_words,
    )


def figure_of(reading: Reading | None, *, kind: bool = True) -> Cell:
    """A reading in a cell: value and spread; what is no measurement has two figures, and is marked so."""
    if reading is None:
        return Cell()
    if reading.kind != "measured":
        return Cell(number(reading.value), "", reading.kind if kind else None)
    text = written(reading)
    return Cell(text.value, text.spread)


def _labels(settings: Sequence[Setting]) -> dict[Setting, str]:
    """A label for each; the text's hash only where it tells two apart."""
    found = {}
    for setting in settings:
        twin = any(s.label == setting.label and s != setting for s in settings)
        text = f", text {clean(setting.text, 80)[:8]} of {setting.text_bytes:,} bytes" if twin else ""
        found[setting] = clean(setting.label) + text
    return found


def _headline(rows: Sequence[Row], settings: Sequence[Setting]) -> str:
    if not rows:
        return "Nothing has been judged yet"
    devices = list(dict.fromkeys(clean(s.device, 40) for s in settings))
    where = devices[0] if len(devices) == 1 else f"{len(devices)} devices"
    ranked = sum(row.state == "ranked" for row in rows)
    return f"{ranked} {'submission' if ranked == 1 else 'submissions'} ranked for {where}"


def _others(rows: Sequence[Row]) -> str:
    """How many attempts have no place, and why."""
    counts = {state: sum(row.state == state for row in rows) for state in STATES if state != "ranked"}
    plural = {"earlier": "earlier attempts"}
    parts = [f"{n} {STATES[s] if n == 1 else plural.get(s, STATES[s])}" for s, n in counts.items() if n]
    return ", ".join(parts)


def _leaders(rows: Sequence[Row], labels: Mapping[Setting, str]) -> list[Leader]:
    """Who is first in each division and setting, and with whom."""
    firsts: dict[tuple[Setting, Division | None], Row] = {}
    for row in rows:  # the first of a group comes first
        if row.place is not None:
            firsts.setdefault((row.setting, row.division), row)
    devices = [setting.device for setting in labels]
    leaders = []
    for row in firsts.values():
        quality = row.reading(QUALITY)
        assert quality is not None
        others = len(row.ties)
        tie = f"tied with {others} other{'s' * (others > 1)}" if others else ""
        tie = tie or ("the only one" if row.among == 1 else f"first of {row.among}")
        alone = devices.count(row.setting.device) == 1
        where = clean(row.setting.device, 60) if alone else labels[row.setting]
        title = METRICS[QUALITY].title
        leaders.append(Leader(row, where, f"{written(quality).with_spread} {title}; {tie}"))
    return leaders


def _pictures(rows: Sequence[Row], labels: Mapping[Setting, str]) -> list[Pictures]:
    """Those of each setting that has something to show."""
    sections = []
    for i, (setting, label) in enumerate(labels.items()):
        ranked = [row for row in rows if row.setting == setting and row.state == "ranked"]
        panels = []
        for against in chart.AGAINST:
            drawings = [chart.picture(ranked, against, size, FOLDER) for size in SIZES]
            if drawings[0]:
                panels.append(Panel(against.name, drawings, chart.absent(ranked, against)))
        if panels:
            divisions = list(dict.fromkeys(row.division for row in ranked if row.division))
            sections.append(Pictures(i, label, panels, divisions))
    return sections


def _column(rows: Sequence[Row], names: Sequence[str]) -> Column:
    name = next((n for n in names if any(row.reading(n) for row in rows)), names[0])
    kinds = {reading.kind for row in rows if (reading := row.reading(name))}
    known = next(iter(kinds)) if len(kinds) == 1 else "measured"
    how = "" if known == "measured" else known
    return Column(METRICS[name], ", ".join(filter(None, (METRICS[name].shown_unit, how))), len(kinds) < 2)


def _groups(rows: Sequence[Row], labels: Mapping[Setting, str]) -> list[Group]:
    """By setting and division, in the rows' own order."""
    places = list(labels)
    return [
        Group(division, labels[setting], places.index(setting), list(members))
        for (setting, division), members in groupby(rows, lambda row: (row.setting, row.division))
    ]


def _filters(rows: Sequence[Row], labels: Mapping[Setting, str]) -> list[Filter]:
    divisions = [d for d in DIVISIONS if any(row.division == d for row in rows)]
    states = [s for s in STATES if any(row.state == s for row in rows)]
    return [
        Filter("division", "Division", [(d, d) for d in divisions]),
        Filter("setting", "Device", [(str(i), label) for i, label in enumerate(labels.values())]),
        Filter("state", "Status", [(s, STATES[s]) for s in states]),
    ]


def _words(row: Row) -> str:
    """What the text filter searches."""
    manifest = row.verdict.manifest
    about = [manifest.base, manifest.method] if manifest else []
    words = [row.name, row.verdict.submission, row.reason, *about, row.division or "", STATES[row.state]]
    return clean(" ".join(words), 6000).lower()
