"""s/<id>.html: all that is known of one submission, how it is known, and the command that shows it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from tenth.core.format import figure, megabytes, number, written
from tenth.core.metrics import metric
from tenth.core.scores import ScoreInterval
from tenth.leaderboard.ranking import Row
from tenth.leaderboard.records import DIVISIONS, QUALITY, Probe, TaskScore, Verdict
from tenth.leaderboard.site.frame import clean, figured, frame, said, span, tile
from tenth.leaderboard.site.index import STATES
from tenth.report.tables import reading_row, reading_table

WIDE, NARROW = 880, 350
LABELS = 250.0  # pixels of a task's name, where it stands beside
VERDICTS = {"better": "good", "worse": "bad", "tie": "even", "not informative": "none"}  # -> tone


def render(row: Row, rows: Mapping[str, Row], files: Sequence[tuple[str, str]], tenth: str) -> str:
    """The page; rows: all by id. files: (what it is, address) of what can be downloaded."""
    verdict, manifest = row.verdict, row.verdict.manifest
    name = clean(row.name, 80)
    eyebrow = [f"rules {verdict.rules}", escape(clean(row.setting.label))]
    eyebrow[:0] = [manifest.division] if manifest else []
    eyebrow += [f"attempt {row.attempt} of {row.attempts}"] if row.attempts > 1 else []
    body = [
        '<nav><a href="../index.html">← leaderboard</a></nav>',
        f'<header><p class="eyebrow">{" · ".join(eyebrow)}</p><h1>{said(row.name, 80)}</h1>{_lead(row, rows)}'
        "</header>",
        _tiles(row),
        _tasks(verdict.tasks),
        _probes(verdict.probes),
        _readings(verdict),
        _made(verdict),
        _judged(verdict),
        _again(verdict, files),
        _attempts(row, rows),
        f"<footer>Made by tenth {escape(tenth)}. MB are decimal: one is a million bytes.</footer>",
    ]
    main = "\n".join(part for part in body if part)
    return frame(f"{name}: tenth leaderboard", f"<main>\n{main}\n</main>", script=False)


def _lead(row: Row, rows: Mapping[str, Row]) -> str:
    """One sentence: its place, or why it has none, with the line of the log."""
    if row.place is None:
        line = said(row.verdict.log_line, 1000) if row.state == "disqualified" else ""
        log = f'<br><code class="line">{line}</code>' if line else ""
        tone = "bad" if row.state == "disqualified" else "even"
        words = f"{STATES[row.state].capitalize()}: {said(row.reason, 2000)}"
        return f'<p class="lead {tone}">{words}{log}</p>'
    ties = ", ".join(f'<a href="{escape(i)}.html">{said(rows[i].name, 80)}</a>' for i in row.ties)
    words = f"Place {span(row.place)} of {row.among} in {row.division} on {escape(clean(row.setting.label))}"
    tie = f"; the text does not tell it apart from {ties}" if ties else ""
    return f'<p class="lead {"good" if row.place[0] == 1 else "even"}">{words}{tie}.</p>'


def _tiles(row: Row) -> str:
    """The four figures of the table, with what they are to be held against."""
    tiles = []
    quality, original = row.reading(QUALITY), row.reading(QUALITY + "_original")
    if quality:
        value, _, spread = written(quality)
        than = spread + (f", the original {figure(original.value)}" if original else "")
        tiles.append(tile(metric(QUALITY).title, value, "", than.strip(", ")))
    peak = row.reading("peak")
    if peak:
        than = f"of {megabytes(row.setting.budget)} MB allowed"
        tiles.append(tile(metric("peak").title, megabytes(peak.value), "MB", than))
    speed = row.reading("device_decode") or row.reading("decode")
    if speed:
        value, title = figured(speed, mark=False), metric(speed.name).title
        tiles.append(tile(title, value, escape(clean(speed.unit, 20)), speed.kind))
    energy = row.reading("device_joules")
    if energy:
        title = metric(energy.name).title
        tiles.append(tile(title, number(energy.value), escape(clean(energy.unit, 20)), energy.kind))
    return f'<ul class="tiles">{"".join(tiles)}</ul>' if tiles else ""


def _tasks(tasks: Sequence[TaskScore]) -> str:
    if not tasks:
        return ""
    drawn = (
        f'<div class="wide">{_scores(tasks, WIDE)}</div><div class="narrow">{_scores(tasks, NARROW)}</div>'
    )
    secret = any(task.hidden or task.gap for task in tasks)
    body = "".join(_task_row(task, secret=secret) for task in tasks)
    heads = ["score", "original", "difference", "lost, won", ""]
    heads += ["hidden items", "public − hidden"] if secret else []
    head = "".join(f'<th scope="col" class="n">{word}</th>' for word in heads)
    return (
        '<section class="long"><h2>Tasks</h2><p class="why">The filled mark is the model, the ring its '
        "original on the same items, the tick what guessing gets. Lines are 95 % intervals. Where the "
        "original is not above chance, the task says nothing about what was kept.</p>"
        f'{drawn}<div class="scroll below"><table class="tasks"><thead><tr><th scope="col">task</th>{head}'
        f"</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _scores(tasks: Sequence[TaskScore], width: int) -> str:
    """Score and original with their intervals, and chance, on one scale of 0 to 100 %."""
    beside = width == WIDE
    left, right, pitch = (LABELS, 20.0, 34.0) if beside else (4.0, 12.0, 52.0)
    height = pitch * len(tasks) + 26

    def x_of(share: float) -> float:
        return left + min(max(share, 0.0), 1.0) * (width - left - right)

    out = []
    for per_cent in range(0, 101, 25):
        x = x_of(per_cent / 100)
        out.append(
            f'<path class="grid" d="M{x:.1f} 0V{height - 22:.0f}"/>'
            f'<text class="soft tick" x="{x:.1f}" y="{height - 6:.0f}" font-size="11" '
            f'text-anchor="middle">{per_cent}{" %" if per_cent == 100 else ""}</text>'
        )
    for i, task in enumerate(tasks):
        y = pitch * i + (pitch / 2 if beside else 36)
        label = clean(task.title or task.task, 34)
        at = f'x="{left - 14}" y="{y + 4:.1f}" text-anchor="end"' if beside else f'x="0" y="{y - 17:.1f}"'
        out.append(f'<text {at} font-size="13">{escape(label)}</text>')
        x = x_of(task.chance)
        out.append(f'<path class="chance" d="M{x:.1f} {y - 9:.1f}v18"/>')
        if task.against:
            o = task.against.original
            out.append(_whisker(o, y + 6, x_of, "original"))
            out.append(f'<circle class="ring" cx="{x_of(o.value):.1f}" cy="{y + 6:.1f}" r="4.5"/>')
        shift = -6 if task.against else 0
        out.append(_whisker(task.score, y + shift, x_of, "ours"))
        out.append(f'<circle class="ours" cx="{x_of(task.score.value):.1f}" cy="{y + shift:.1f}" r="5.5"/>')
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="Scores; the table below has them">'
        f"{''.join(out)}</svg>"
    )


def _whisker(found: ScoreInterval, y: float, x_of: Callable[[float], float], css: str) -> str:
    return f'<path class="whisker {css}" d="M{x_of(found.low):.1f} {y:.1f}H{x_of(found.high):.1f}"/>'


def _task_row(task: TaskScore, *, secret: bool) -> str:
    """secret: whether there are columns of hidden items."""
    against = task.against
    if against:
        verdict = _badge(against.verdict, VERDICTS[against.verdict])
        compared = [
            _interval(against.original),
            _interval(against.difference, signed=True),
            f"{against.lost}, {against.won}",
            verdict,
        ]
    else:
        compared = [
            "",
            "",
            "",
            "" if task.informative else '<span class="badge none">not above chance</span>',
        ]
    gap = _interval(task.gap, signed=True)
    if task.gap is not None and task.gap.low > 0:
        gap += _badge("seen before?", "bad")
    cells = [_interval(task.score), *compared, *((_interval(task.hidden), gap) if secret else ())]
    title = said(task.title or task.task, 80)
    under = f"{said(task.metric, 40)}, {task.score.count:,} items, chance {100 * task.chance:.1f} %"
    return (
        f'<tr><th scope="row">{title}<small>{under}</small></th>'
        + "".join(f'<td class="n">{cell}</td>' for cell in cells)
        + "</tr>"
    )


def _badge(word: str, tone: str) -> str:
    return f'<span class="badge {tone}">{word}</span>'


def _interval(found: ScoreInterval | None, *, signed: bool = False) -> str:
    """Per cent with the interval under it."""
    if found is None:
        return ""
    sign = "+" if signed else ""
    value, low, high = (
        f"{100 * v:{sign}.1f}".replace("-", "−") for v in (found.value, found.low, found.high)
    )
    return f'{value} <span class="unit">%</span><span class="spread">{low} to {high}</span>'


def _probes(probes: Sequence[Probe]) -> str:
    if not probes:
        return ""
    body = ""
    for probe in probes:
        badge = (
            '<span class="badge good">passed</span>'
            if probe.passed
            else '<span class="badge bad">failed</span>'
        )
        numbers = "".join(
            f'<td class="n">{"" if value is None else figure(value)}</td>'
            for value in (probe.value, probe.allowed)
        )
        body += (
            f'<tr><th scope="row">{said(probe.name.replace("_", " "), 60)}</th><td>{badge}</td>{numbers}'
            f'<td class="conditions">{said(probe.detail, 600)}</td></tr>'
        )
    return (
        '<section class="long"><h2>Probes</h2><p class="why">Whether the figures of this artifact mean '
        'anything; one failed probe and it is out.</p><div class="scroll"><table><thead><tr>'
        '<th scope="col">probe</th><th scope="col"></th><th scope="col" class="n">seen</th>'
        '<th scope="col" class="n">bound</th><th scope="col">what was done</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _readings(verdict: Verdict) -> str:
    if not verdict.readings:
        return ""
    safe = [
        r.model_copy(
            update={
                "name": clean(r.name, 80),
                "unit": clean(r.unit, 30),
                "conditions": clean(r.conditions, 1000),
            }
        )
        for r in verdict.readings
    ]
    body = "".join(reading_row(reading) for reading in safe)
    return f'<section class="long"><h2>All readings</h2>{reading_table(body)}</section>'


def _made(verdict: Verdict) -> str:
    """What its maker says of it. The address is not a link: the site leads nowhere else."""
    manifest = verdict.manifest
    if manifest is None:
        return ""
    runtime = manifest.runtime
    pairs = [
        ("base", said(manifest.base, 200)),
        ("method", said(manifest.method, 4000)),
        ("data", said(manifest.data, 4000)),
        ("licence", said(manifest.licence, 100)),
        ("address", said(manifest.url, 300)),
        ("division", f"{manifest.division}: {DIVISIONS[manifest.division]}"),
        (
            "runtime",
            f"KV cache {runtime.type_k} and {runtime.type_v}, batches of {runtime.n_ubatch}, "
            f"flash attention {_on(runtime.flash_attention)}, repacking {_on(runtime.repack)}",
        ),
        ("hash of the base", f"<code>{manifest.base_hash}</code>" if manifest.base_hash else ""),
    ]
    return f"<section><h2>How it was made, as its maker says</h2>{_list(pairs)}</section>"


def _judged(verdict: Verdict) -> str:
    c = verdict.conditions
    tasks = ", ".join(said(task, 60) for task in c.tasks)
    limit = f", {c.limit:,} items each" if c.limit is not None else ""
    pairs = [
        ("device", f"{said(c.device, 80)}, budget {megabytes(c.budget)} MB, {c.context:,} tokens of context"),
        ("original", said(c.original, 200)),
        ("hash of the original", _code(c.original_hash)),
        ("text", f"{c.text_bytes:,} bytes of {_code(c.text)}"),
        ("tasks", tasks + limit if tasks else ""),
        ("hash of the seed", _code(c.seed_hash)),
        ("shut in by", "<br>".join(said(line, 300) for line in verdict.isolation)),
        ("artifact", _code(verdict.artifact)),
        ("manifest", _code(verdict.manifest_hash)),
        ("by", f"tenth {said(verdict.tenth, 40)}, {said(verdict.runtime, 100)}"),
        ("machine", said(verdict.machine, 300)),
        ("when", f"{said(verdict.date, 40)}, in {figure(verdict.seconds)} s"),
    ]
    return f"<section><h2>How it was judged</h2>{_list(pairs)}</section>"


def _again(verdict: Verdict, files: Sequence[tuple[str, str]]) -> str:
    links = "".join(f'<li><a href="{escape(address)}" download>{what}</a></li>' for what, address in files)
    return (
        '<section class="again"><h2>See for yourself</h2><p class="why">This command judges it again where '
        "no verdict is kept yet; the log has all that the judge saw.</p>"
        f"<pre><code>{escape(clean(verdict.command, 2000))}</code></pre>"
        f'<ul class="files">{links}</ul></section>'
    )


def _attempts(row: Row, rows: Mapping[str, Row]) -> str:
    if row.attempts < 2:
        return ""
    line = [
        r for r in rows.values() if (r.verdict.submission, r.setting) == (row.verdict.submission, row.setting)
    ]
    items = "".join(
        f"<li>{_attempt(r, here=r.verdict.id == row.verdict.id)}</li>"
        for r in sorted(line, key=lambda r: r.attempt)
    )
    return f'<section><h2>All attempts</h2><ol class="notes">{items}</ol></section>'


def _attempt(row: Row, *, here: bool) -> str:
    words = f"{escape(clean(row.verdict.date[:10]))}: {STATES[row.state]}"
    name = said(row.name, 80)
    who = f"<b>{name}</b>" if here else f'<a href="{escape(row.verdict.id)}.html">{name}</a>'
    return f"{who}, {words}"


def _list(pairs: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{what}</dt><dd>{text}</dd>" for what, text in pairs if text) + "</dl>"


def _on(is_on: bool) -> str:
    return "on" if is_on else "off"


def _code(text: str) -> str:
    return f"<code>{escape(clean(text, 100))}</code>" if text else ""
