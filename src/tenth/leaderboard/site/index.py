"""index.html: who leads, the pictures, every attempt in one table, and the rules.

The table is there without a script; board.js adds sorting and filters to what is already on the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tenth.core.format import written
from tenth.core.metrics import METRICS, Metric
from tenth.leaderboard.ranking import Row, Setting
from tenth.leaderboard.records import DIVISIONS, QUALITY, Division
from tenth.leaderboard.site import pareto
from tenth.leaderboard.site.frame import clean, figured, frame, said, span, tile

WIDE, NARROW = 1080, 350
PAGES = "s/"  # folder of the submissions' pages
STATES = {
    "ranked": "ranked",
    "earlier": "earlier attempt",
    "again": "to be judged again",
    "disqualified": "disqualified",
}
REASON = 220  # most letters of a reason in the table
# A column shows the first of its readings that the table has.
FIGURES = ((QUALITY,), ("kl",), ("peak",), ("size",), ("device_decode", "decode"), ("device_joules",))


@dataclass(frozen=True)
class Column:
    """One of `FIGURES` as this table has it."""

    metric: Metric
    unit: str  # and how all are known, where that is not by measurement
    same: bool  # all are known in the same way


def render(rows: Sequence[Row], waiting: Sequence[str], rules: int, tenth: str) -> str:
    """The page; waiting: names of submissions without a verdict."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    labels = _labels(settings)
    body = [
        f'<header><p class="eyebrow">tenth leaderboard · rules {rules}</p>'
        f"<h1>{escape(_headline(rows, settings))}</h1>{_others(rows)}</header>",
        _leaders(rows, labels),
        *_pictures(rows, labels),
        _table(rows, settings, labels),
        _waiting(waiting),
        _rules(rules),
        f"<footer>Made by tenth {escape(tenth)}. MB are decimal: one is a million bytes.</footer>",
    ]
    main = "\n".join(part for part in body if part)
    return frame("tenth leaderboard", f'<main class="board">\n{main}\n</main>', script=True)


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
    return f'<p class="why">Without a place: {", ".join(parts)}.</p>' if parts else ""


def _leaders(rows: Sequence[Row], labels: dict[Setting, str]) -> str:
    """A tile for each division and setting: who is first, and with whom."""
    tiles = []
    devices = [setting.device for setting in labels]
    seen: set[tuple[Setting, Division]] = set()
    for row in rows:  # the first of a group comes first
        if row.place is None or row.division is None or (row.setting, row.division) in seen:
            continue
        seen.add((row.setting, row.division))
        quality = row.reading(QUALITY)
        assert quality is not None
        others = len(row.ties)
        tie = f"tied with {others} other{'s' * (others > 1)}" if others else ""
        tie = tie or ("the only one" if row.among == 1 else f"first of {row.among}")
        name = f'<a href="{_page(row)}">{said(row.name, 60)}</a>'
        alone = devices.count(row.setting.device) == 1
        where = clean(row.setting.device, 60) if alone else labels[row.setting]
        what = f"{_dot(row.division)}<b>{row.division}</b> · {escape(where)}"
        than = f"{written(quality).with_spread} bits per byte; {tie}"
        tiles.append(tile(what, name, "", than))
    return f'<ul class="tiles leaders">{"".join(tiles)}</ul>' if tiles else ""


def _pictures(rows: Sequence[Row], labels: dict[Setting, str]) -> list[str]:
    """A section for each setting that has something to show; the first one says how to read them."""
    sections: list[str] = []
    for i, (setting, label) in enumerate(labels.items()):
        sections += _picture(rows, setting, i, label, explained=bool(sections))
    return sections


def _picture(rows: Sequence[Row], setting: Setting, number: int, label: str, *, explained: bool) -> list[str]:
    """The pictures of a setting, one shown at a time; radio buttons and the style sheet choose."""
    ranked = [row for row in rows if row.setting == setting and row.state == "ranked"]
    drawn = []
    for against in pareto.AGAINST:
        wide = pareto.picture(ranked, against, setting.budget, WIDE, 420, PAGES)
        if wide:
            narrow = pareto.picture(ranked, against, setting.budget, NARROW, 340, PAGES)
            without = ", ".join(said(row.name, 40) for row in pareto.absent(ranked, against))
            note = f'<p class="why">Not drawn, without such a figure: {without}.</p>' if without else ""
            drawn.append((against.name, wide, narrow, note))
    if not drawn:
        return []
    tabs = "".join(
        f'<input type="radio" name="against-{number}" id="against-{number}-{i}"{" checked" * (not i)}>'
        f'<label for="against-{number}-{i}">{name}</label>'
        for i, (name, *_) in enumerate(drawn)
    )
    panels = "".join(
        f'<div class="panel"><div class="wide">{wide}</div><div class="narrow">{narrow}</div>{note}</div>'
        for _, wide, narrow, note in drawn
    )
    present = dict.fromkeys(row.division for row in ranked if row.division)
    legend = "".join(
        f'<li data-division="{division}">{_dot(division)}<b>{division}</b> <span>{DIVISIONS[division]}</span>'
        "</li>"
        for division in present
    )
    why = (
        ""
        if explained
        else (
            '<p class="why">Each mark is a submission and leads to its page. A line is the best that a '
            "has: nothing of it is better in both. Whiskers are 95 % intervals, without what a passage "
            "of the text does to all alike.</p>"
        )
    )
    return [
        f'<section class="pictures" data-setting="{number}"><h2>Quality on {escape(label)}</h2>{why}'
        f'<div class="tabs" role="group" aria-label="Quality against">{tabs}{panels}</div>'
        f'<ul class="legend">{legend}</ul></section>'
    ]


def _table(rows: Sequence[Row], settings: Sequence[Setting], labels: dict[Setting, str]) -> str:
    if not rows:
        return ""
    columns = [_column(rows, names) for names in FIGURES]
    heads: list[tuple[str, str, int, str]] = [("place", "", -1, "n"), ("submission", "", -1, "")]
    heads += [(c.metric.heading, c.unit, c.metric.better, "n") for c in columns]
    heads += [("tasks kept", "", 1, "n"), ("judged", "", 1, "n")]
    head = "".join(
        f'<th scope="col" role="columnheader" class="{css}" '
        f'data-first="{"descending" if better > 0 else "ascending"}"><span>{word}</span>'
        f"{f' <small>{unit}</small>' if unit else ''}</th>"
        for word, unit, better, css in heads
    )
    groups: dict[tuple[Setting, Division | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.setting, row.division), []).append(row)
    body = ""
    for (setting, division), members in groups.items():
        what = f"{_dot(division)}<b>{division}</b>" if division else "<b>no readable manifest</b>"
        meant = f" · {DIVISIONS[division]}" if division else ""
        body += (
            f'<tbody role="rowgroup"><tr role="row" class="group"><th role="rowheader" scope="rowgroup" '
            f'colspan="{len(heads)}">{what} <span>{escape(labels[setting])}{meant}</span></th></tr>'
            + "".join(_row(row, settings.index(row.setting), columns) for row in members)
            + "</tbody>"
        )
    return (
        '<section class="long"><h2>Every attempt</h2><p class="why">Ranked by bits per byte, within a '
        "division and a setting. Places such as 1–3 are ties: the text does not tell them apart.</p>"
        + _filters(rows, settings, labels)
        + '<div class="scroll"><table role="table" class="attempts"><thead role="rowgroup"><tr role="row">'
        f"{head}</tr></thead>{body}</table></div></section>"
    )


def _column(rows: Sequence[Row], names: Sequence[str]) -> Column:
    name = next((n for n in names if any(row.reading(n) for row in rows)), names[0])
    kinds = {reading.kind for row in rows if (reading := row.reading(name))}
    known = next(iter(kinds)) if len(kinds) == 1 else "measured"
    metric = METRICS[name]
    how = "" if known == "measured" else known
    return Column(metric, ", ".join(filter(None, (metric.shown_unit, how))), len(kinds) < 2)


def _filters(rows: Sequence[Row], settings: Sequence[Setting], labels: dict[Setting, str]) -> str:
    """Hidden until the script that works them is there."""
    divisions = [d for d in DIVISIONS if any(row.division == d for row in rows)]
    states = [s for s in STATES if any(row.state == s for row in rows)]
    choices: list[tuple[str, str, list[tuple[str, str]]]] = [
        ("division", "Division", [(d, d) for d in divisions]),
        ("setting", "Device", [(str(i), labels[s]) for i, s in enumerate(settings)]),
        ("state", "Status", [(s, STATES[s]) for s in states]),
    ]
    fields = "".join(
        f'<label>{word}<select data-filter="{key}"><option value="">all</option>'
        + "".join(f'<option value="{value}">{escape(text)}</option>' for value, text in options)
        + "</select></label>"
        for key, word, options in choices
    )
    return (
        f'<div class="filters" role="search" aria-label="Filter the attempts" hidden>{fields}'
        '<label>Sort by<select data-sort><option value="">place</option></select></label>'
        '<label class="text">Text<input type="search" data-filter="text" autocomplete="off" '
        'placeholder="name, model, method …"></label>'
        '<p class="count" role="status"></p></div>'
    )


def _row(row: Row, setting: int, columns: Sequence[Column]) -> str:
    verdict, manifest = row.verdict, row.verdict.manifest
    base = said(manifest.base, 60) if manifest else ""
    attempt = f"attempt {row.attempt} of {row.attempts}" if row.attempts > 1 else ""
    under = " · ".join(part for part in (base, attempt) if part)
    tone = "bad" if row.state == "disqualified" else "even"
    why = f'<span class="reason {tone}">{said(row.reason, REASON)}</span>' if row.reason else ""
    if row.suspect:
        tasks = said(", ".join(row.suspect))
        why += f'<span class="reason even">better on public items than on hidden: {tasks}</span>'
    words = [
        row.name,
        verdict.submission,
        row.reason,
        manifest.base if manifest else "",
        manifest.method if manifest else "",
        row.division or "",
        STATES[row.state],
    ]
    cells = [
        _cell("place", row.place[0] if row.place else None, span(row.place) if row.place else "", "n place"),
        f'<th role="rowheader" scope="row" class="name" data-value="{escape(clean(row.name).lower())}">'
        f'<a href="{_page(row)}">{said(row.name, 80)}</a>'
        f"{f'<small>{under}</small>' if under else ''}{why}</th>",
    ]
    for column in columns:
        reading = row.reading(column.metric.name)
        label = ", ".join(filter(None, (column.metric.heading, column.unit)))
        shown = figured(reading, mark=not column.same)
        cells.append(_cell(label, reading.value if reading else None, shown, "n"))
    kept, of = tasks_kept(row)
    cells.append(_cell("tasks kept", kept / of if of else None, f"{kept} of {of}" if of else "", "n"))
    date = clean(verdict.date[:10])
    cells.append(_cell("judged", None, escape(date), "n date", text=clean(verdict.date, 40)))
    return (
        f'<tr role="row" class="{row.state}" data-id="{escape(verdict.id)}" data-setting="{setting}" '
        f'data-division="{row.division or ""}" data-state="{row.state}" '
        f'data-text="{escape(clean(" ".join(words), 6000).lower())}">{"".join(cells)}</tr>'
    )


def tasks_kept(row: Row) -> tuple[int, int]:
    """(tasks that are no worse than the original's, tasks that say something about it)."""
    told = [
        t.against.verdict for t in row.verdict.tasks if t.against and t.against.verdict != "not informative"
    ]
    return sum(verdict != "worse" for verdict in told), len(told)


def _cell(label: str, value: float | None, shown: str, css: str, text: str = "") -> str:
    sort = f"{value!r}" if value is not None else escape(text)
    kind = css if shown else f"{css} empty"
    return f'<td role="cell" class="{kind}" data-label="{label}" data-value="{sort}">{shown}</td>'


def _dot(division: Division | None) -> str:
    if division is None:
        return ""
    mark = pareto.shape(division, 7, 7, 5)
    return f'<svg class="key {division}" viewBox="0 0 14 14" aria-hidden="true">{mark}</svg>'


def _page(row: Row) -> str:
    return escape(f"{PAGES}{row.verdict.id}.html")


def _waiting(waiting: Sequence[str]) -> str:
    if not waiting:
        return ""
    names = "".join(f"<li>{said(name, 80)}</li>" for name in waiting)
    return f'<section class="waiting"><h2>Not judged yet</h2><ul class="notes">{names}</ul></section>'


def _rules(rules: int) -> str:
    divisions = "".join(f"<dt>{_dot(d)}{d}</dt><dd>{text}</dd>" for d, text in DIVISIONS.items())
    return (
        f'<section class="rules" id="rules"><h2>Rules, version {rules}</h2><ul class="notes">'
        "<li>A submission reports no number. The judge measured or estimated every figure here itself, in "
        "closed processes; each page says what shut them in.</li>"
        "<li>Out is what needs more memory than the budget, breaks its division's rule, or fails a probe: "
        "probabilities that sum to one, no look into the future, twice the same answer, and others.</li>"
        "<li>Places go by bits per byte of held-out text, by which every tokenizer can be compared. Two that "
        "the text does not tell apart (95 %, paired where both were read in the same passages) share their "
        "places.</li>"
        "<li>The last attempt of a submission counts, not its best one, and none is taken away.</li>"
        "<li>Hidden items are drawn from a seed whose hash is published first. A model that does public "
        "items better than hidden ones (95 %) is marked: it may have seen them.</li>"
        "<li>A task is kept where the model is not worse than its original on the same items (95 %); a task "
        "that the original itself does by chance does not count.</li>"
        "<li>When a figure's definition changes, so does the version of the rules, and what was judged by "
        f"another has no place until it is judged again.</li></ul><h3>Divisions</h3><dl>{divisions}</dl>"
        "</section>"
    )
