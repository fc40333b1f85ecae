"""report.html: one self-contained page that says what was made, whether it fits, and how that is known.

Every number on the page comes from the plan or the scorecard. The page needs no script, font or address of
its own and forbids itself all of them; names from outside (models, notes, conditions) are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

from tenth.core import metrics
from tenth.core.errors import OutputError
from tenth.core.format import bits_text, figure, megabytes, written, written_estimate
from tenth.core.records import Candidate, Plan, Scorecard
from tenth.quantization.recipes import BASES
from tenth.report import ondevice, pareto, pictures, removed, scatter, tables
from tenth.report.pictures import Point
from tenth.report.scatter import drawable
from tenth.runtime.bundle import Measured, read_bundle, read_measurements

WIDE, NARROW = 880, 350


@dataclass(frozen=True)
class QualityVerdict:
    """The quality sentence and its tone: "good", "even" or "bad"."""

    text: str
    tone: str


def verdict(plan: Plan, card: Scorecard) -> str:
    """The whole verdict in plain text: whether it fits, and how it stands against the stock recipes."""
    return f"{fit_sentence(plan, card)} {quality_verdict(card).text}"


def fit_sentence(plan: Plan, card: Scorecard) -> str:
    """Whether the artifact was seen to stay within the budget."""
    proof = card.proof
    peak, budget = f"{megabytes(proof.peak)} MB", f"{megabytes(proof.budget)} MB"
    context = f"{plan.runtime.n_ctx:,} tokens of context"
    if proof.fits:
        return f"tenth fits {card.model} into {budget}: it was seen to peak at {peak} with {context}."
    return f"{card.model} does NOT fit into {budget}: it was seen to peak at {peak} with {context}."


def best_rival(card: Scorecard) -> Candidate | None:
    """The stock recipe that fits and has the lowest KL, or None."""
    rivals = [c for c in _beside(card, stock=True) if c.fits and c.value("kl") is not None]
    return min(rivals, key=lambda c: c.value("kl") or 0.0, default=None)


def _beside(card: Scorecard, stock: bool) -> list[Candidate]:
    """The stock recipes that were measured, or what else tenth made and did not keep."""
    return [c for c in card.candidates[1:] if (c.name in BASES) == stock]


def quality_verdict(card: Scorecard) -> QualityVerdict:
    """How far ours is from the original, against the best stock recipe that fits and tenth's other files."""
    found = _against_stock(card)
    return QualityVerdict(found.text + _kept(card), found.tone)


def _kept(card: Scorecard) -> str:
    """A sentence on why it is this one of tenth's own files; empty where it is the only one."""
    others = {c.name: c.value("bits_per_byte") for c in _beside(card, stock=False)}
    said = " and ".join(f"{figure(value)} of {name}" for name, value in others.items() if value is not None)
    ours = card.candidates[0].value("bits_per_byte") if said else None
    if ours is None:
        return ""
    return f" It was kept for its {figure(ours)} bits per byte of held-out text, against {said}."


def _against_stock(card: Scorecard) -> QualityVerdict:
    """Worse is called worse.

    Two KL values are called equal when they differ by less than twice the root of their summed squared
    standard errors; both come from the same text, so that this errs towards "no clear difference".
    """
    ours = card.candidates[0].reading("kl") if card.candidates else None
    if ours is None:
        return QualityVerdict("Its distance to the original was not measured.", "even")
    start = f"Its KL divergence from the original is {figure(ours.value)} nats per token"
    rival = best_rival(card)
    theirs = rival.reading("kl") if rival else None
    if rival is None or theirs is None:
        tried = ", ".join(c.name for c in _beside(card, stock=True) if not c.fits)
        if tried:
            return QualityVerdict(
                f"{start}; none of the stock recipes tried fits this budget ({tried}).", "good"
            )
        return QualityVerdict(
            f"{start}; no stock recipe was measured beside it, so nothing is compared with one.", "even"
        )
    against = f"{start}, against {figure(theirs.value)} for {rival.name}, the best stock recipe that fits"
    noise = 2 * ((ours.spread or 0.0) ** 2 + (theirs.spread or 0.0) ** 2) ** 0.5
    if abs(ours.value - theirs.value) <= noise or theirs.value == ours.value:
        return QualityVerdict(
            f"{against}: no clear difference, it is within the error of the measurement.", "even"
        )
    change = abs(ours.value / theirs.value - 1) if theirs.value > 0 else float("inf")
    if ours.value < theirs.value:
        return QualityVerdict(f"{against}: {change:.0%} less.", "good")
    return QualityVerdict(f"{against}: {change:.0%} MORE, so {rival.name} is the better choice here.", "bad")


def render(
    plan: Plan, card: Scorecard, extra: Sequence[Point] = (), measured: Mapping[str, Measured] | None = None
) -> str:
    """The page as one string of HTML.

    extra: small points in the picture of quality against size. measured: device -> how the bundle ran there.
    """
    style = (resources.files("tenth.report") / "report.css").read_text(encoding="utf-8")
    quality = quality_verdict(card)
    tone = quality.tone if card.proof.fits else "bad"
    body = [
        f'<header><p class="eyebrow">tenth {escape(card.tenth)} · {escape(card.model)} · '
        f"{plan.parameters:,} parameters{_device(plan)}</p>"
        f"<h1>{_unbroken(escape(fit_sentence(plan, card)))}</h1>"
        f'<p class="lead {tone}">{escape(quality.text)}</p></header>',
        _tiles(plan, card),
        _memory_section(plan, card),
        removed.section(plan, WIDE, NARROW),
        _bits_section(plan),
        *(ondevice.section(device, found, plan) for device, found in (measured or {}).items()),
        _quality_section(card, extra),
        _device_section(plan),
        tables.comparison(card),
        tables.all_readings(card),
        _method(plan, card),
        _notes(card),
        f"<footer>Made by tenth {escape(card.tenth)}. MB are decimal: one is a million bytes.</footer>",
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>tenth: {escape(card.model)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def write(folder: Path, extra: Sequence[Point] = ()) -> Path:
    """Draw folder/report.html from its plan, scorecard and measurements. InputError, OutputError."""
    page = folder / "report.html"
    plan, card = read_bundle(folder)
    drawn = render(plan, card, extra, read_measurements(folder, card))
    partial = page.with_suffix(".partial")
    try:
        partial.write_text(drawn, encoding="utf-8")
        partial.replace(page)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write {page}: {error.strerror or error}") from error
    return page


def _unbroken(text: str) -> str:
    return text.replace(" MB", "&nbsp;MB")


def _device(plan: Plan) -> str:
    if plan.budget.device is None:
        return ""
    share = "" if plan.budget.share is None else f"{100 * plan.budget.share:.4g} % of "
    return f" · {share}{escape(plan.budget.device)}"


def _tiles(plan: Plan, card: Scorecard) -> str:
    proof = card.proof
    tiles = [
        ("peak memory, measured", megabytes(proof.peak), "MB", f"of {megabytes(proof.budget)} MB allowed")
    ]
    ours = card.candidates[0] if card.candidates else None
    kl = ours.reading("kl") if ours else None
    if kl is not None:
        value, unit, spread = written(kl)
        than = f"{spread} over {kl.count:,} windows of text" if kl.count > 1 else spread
        tiles.append((metrics.metric("kl").title, value, unit, than))
    size = ours.file_bytes if ours else plan.file_bytes
    tiles.append(("file", megabytes(size), "MB", f"{plan.bits_per_weight:.2f} bits per weight"))
    decode = ours.reading("decode") if ours else None
    if decode is not None:
        value, unit, spread = written(decode)
        tiles.append((metrics.metric("decode").title, value, unit, f"{spread} on the measuring machine"))
    cells = "".join(
        f'<li><span class="what">{escape(what)}</span>'
        f'<span class="value">{value} <small>{escape(unit)}</small></span>'
        f'<span class="than">{escape(than.strip())}</span></li>'
        for what, value, unit, than in tiles
    )
    return f'<ul class="tiles">{cells}</ul>'


def _both(wide: str, narrow: str) -> str:
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'


def _memory_section(plan: Plan, card: Scorecard) -> str:
    proof = card.proof
    keys = [
        (f"--{name}", word, getattr(plan.memory, name))
        for name, word in metrics.MEMORY.items()
        if getattr(plan.memory, name)
    ]
    keys.append(("--anonymous", "anonymous, measured", proof.peak_anonymous))
    keys.append(("--weights", "file-backed, measured", proof.peak_file_backed))
    legend = "".join(
        f'<li><i style="background:var({colour})"></i>{word} <b>{megabytes(size)}</b> <span>MB</span></li>'
        for colour, word, size in keys
    )
    return (
        '<section><h2>Where the memory goes</h2><p class="why">What a llama.cpp process holds with the full '
        "context. The weights are pages of the file, which a system may drop and read again; all else is "
        "anonymous memory, which it cannot drop.</p>"
        + _both(pictures.memory(plan, card, WIDE), pictures.memory(plan, card, NARROW))
        + f'<ul class="legend">{legend}</ul></section>'
    )


def _bits_section(plan: Plan) -> str:
    if not plan.types:
        return ""
    counts: dict[str, int] = {}
    for kind in plan.types.values():
        counts[kind] = counts.get(kind, 0) + 1
    ranked = sorted(counts, key=lambda kind: pictures.bits_of(kind) or 0.0)
    legend = "".join(
        f'<li><i style="background:{pictures.cell_colour(pictures.bits_of(kind))[0]}"></i>{escape(kind)} '
        f"<b>{bits_text(pictures.bits_of(kind))}</b> "
        f"<span>bits, {_matrices(counts[kind])}</span></li>"
        for kind in ranked
    )
    return (
        '<section><h2>Bits by layer</h2><p class="why">The storage type that the planner chose for every '
        "matrix: the more damage its rounding would do to the output, the more bits it got.</p>"
        + _both(
            pictures.bits(plan.types, WIDE, layers_down=False),
            pictures.bits(plan.types, NARROW, layers_down=True),
        )
        + f'<ul class="legend">{legend}</ul></section>'
    )


def _matrices(count: int) -> str:
    return f"{count} matrix" if count == 1 else f"{count} matrices"


def _quality_section(card: Scorecard, extra: Sequence[Point]) -> str:
    named = {candidate.name for candidate in card.candidates}
    points = [point for point in extra if point.name not in named]
    exact = []
    for place, candidate in enumerate(card.candidates):
        kl = candidate.reading("kl")
        if kl is None:
            continue
        if not drawable(kl.value):
            exact.append(candidate.name)
        kind = "rival" if place else "ours"
        points.append(Point(candidate.name, candidate.file_bytes, kl.value, kl.spread, kind, candidate.fits))
    if not any(drawable(point.kl) for point in points):
        return ""
    remarks = [
        f"{name} is not in the picture: its KL is not a number above zero, which a logarithmic axis needs."
        for name in exact
    ]
    if any(not point.fits for point in points):
        remarks.append("A hollow mark does not fit the budget.")
    remarks += [f"{c.name} has no measured KL." for c in card.candidates if c.reading("kl") is None]
    note = f'<p class="why" style="margin:12px 0 0">{escape(" ".join(remarks))}</p>' if remarks else ""
    return (
        '<section><h2>Quality against size</h2><p class="why">Each mark is a file as llama.cpp runs it. KL '
        "says how far its predictions are from the original's; the scale is logarithmic. "
        "Whiskers are standard errors.</p>"
        + _both(scatter.quality(points, WIDE, 380), scatter.quality(points, NARROW, 330))
        + f"{note}</section>"
    )


def _device_section(plan: Plan) -> str:
    """What the plan is expected to do on its device, and what else could be had there."""
    found = plan.forecast
    if found is None:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(metrics.metric(each.name).title)}</th>'
        f'<td class="n">{text.value} <span class="unit">{escape(text.unit)}</span></td>'
        f'<td class="n spread">{text.range}</td>'
        f'<td class="conditions">{each.kind}: {escape(each.conditions)}</td></tr>'
        for each, text in ((each, written_estimate(each)) for each in found.estimates)
    )
    binds = " and ".join(found.binding)
    felt = f"What binds: {binds}." if binds else "Nothing binds: more would not make it better."
    drawn = pareto.picture(plan, WIDE, 380)
    curves = ""
    if drawn:
        curves = (
            '<h3>What else could be had there</h3><p class="why">Every curve is a memory budget: from its '
            "least predicted KL on the left to its greatest speed. Both axes are logarithmic; the points are "
            "of the planner's relaxed program.</p>"
            + _both(drawn, pareto.picture(plan, NARROW, 330))
            + pareto.legend(found)
        )
    return (
        f'<section><h2>On {escape(found.device)}</h2><p class="why">Not measured there: from what devices '
        f"like it were measured to do, with the range that each figure should be found in. "
        f"{escape(found.platform)}. {felt}</p>"
        '<div class="scroll"><table><thead><tr><th></th><th class="n">value</th>'
        f'<th class="n">range</th><th>how known</th></tr></thead><tbody>{rows}</tbody></table></div>'
        f"{curves}</section>"
    )


def _method(plan: Plan, card: Scorecard) -> str:
    proof, runtime = card.proof, plan.runtime
    kl = card.candidates[0].reading("kl") if card.candidates else None
    attempts = (
        "the first plan was seen to fit"
        if proof.attempts == 1
        else f"plan number {proof.attempts} was shipped"
    )
    if not proof.fits:
        attempts = f"{proof.attempts} tried, none was seen to fit"
    asked = f": {kl.conditions}" if kl and kl.conditions else ""
    rows = [
        (
            "The limit",
            f"The finished file was loaded and run to its full context in a child process under a "
            f"limit: {proof.limit}. Its budget was {megabytes(proof.budget)} MB.",
        ),
        (
            "Not counted",
            f"The Python interpreter of that child held {megabytes(proof.interpreter)} MB just "
            "before loading. That is not the model's; it was measured apart and added to "
            "the limit.",
        ),
        (
            "Prediction",
            f"{megabytes(proof.predicted)} MB predicted, {megabytes(proof.peak)} MB measured: "
            f"{proof.error:+.2%}; {attempts}.",
        ),
        ("Network", f"{proof.network}."),
        (
            "Quality",
            "Measured from the shipped file as llama.cpp runs it, not from a simulation, against the "
            f"stored predictions of the original{asked}.",
        ),
        (
            "Predicted KL",
            f"The planner expected a KL of {figure(plan.predicted_kl)} nats per token"
            f" ({plan.sensitivity_source}).",
        ),
        (
            "Settings",
            f"context {runtime.n_ctx:,}, physical batch {runtime.n_ubatch}, KV cache "
            f"{runtime.type_k} and {runtime.type_v}, flash attention "
            f"{_on(runtime.flash_attention)}, repacking {_on(runtime.repack)}",
        ),
        ("Machine", f"{card.machine}; {card.runtime}"),
    ]
    items = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in rows if text)
    return (
        f'<section><h2>How it was measured</h2><dl style="margin-top:10px">{items}'
        f"<dt>File</dt><dd>SHA-256 <code>{escape(card.sha256)}</code></dd></dl></section>"
    )


def _on(flag: bool) -> str:
    return "on" if flag else "off"


def _notes(card: Scorecard) -> str:
    if not card.notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in card.notes)
    return f'<section><h2>Notes</h2><ul class="notes" style="margin-top:10px">{items}</ul></section>'
