"""report.html: one self-contained page that says what was made, whether it fits, and how that is known.

Every number on the page comes from the plan, the scorecard or a measurement. templates/report.html says what
stands where; this file prepares what it shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from tenth.core.errors import OutputError
from tenth.core.format import megabytes, written
from tenth.core.metrics import MEMORY, METRICS
from tenth.core.records import Forecast, Plan, Reading, Scorecard, reading_of
from tenth.core.store import write_text
from tenth.report import charts, svg
from tenth.report.charts import FilePoint
from tenth.report.html import Templates
from tenth.report.ondevice import DeviceRun
from tenth.report.tables import comparison, reading_groups
from tenth.report.verdict import fit_sentence, measure, quality_verdict
from tenth.runtime.bundle import Measured, read_bundle, read_measurements

WIDE, NARROW = 880, 350  # widths of the drawings


class Tile(NamedTuple):
    """One of the large figures at the page's top, and what it is held against."""

    what: str
    value: str
    unit: str
    than: str  # what it is to be held against


class StoredType(NamedTuple):
    """A storage type in the legend of the bits."""

    name: str
    bits: float | None
    matrices: int
    swatch: Markup


@cache
def _templates() -> Templates:
    return Templates(generator="tenth report")


def render(
    plan: Plan,
    card: Scorecard,
    extra: Sequence[FilePoint] = (),
    measured: Mapping[str, Measured] | None = None,
) -> str:
    """The page as one string of HTML.

    extra: small points in the picture of quality against size. measured: device -> how the bundle ran there.
    """
    quality, forecast = quality_verdict(card), plan.forecast
    points, remarks = _files(card, extra)
    return _templates().render(
        "report.html",
        plan=plan,
        card=card,
        tenth=card.tenth,
        sentence=fit_sentence(plan, card).replace(" MB", "\N{NO-BREAK SPACE}MB"),
        quality=quality.text,
        tone=quality.tone if card.proof.fits else "bad",
        tiles=_tiles(plan, card),
        memory=[charts.memory(plan, card, width) for width in (WIDE, NARROW)],
        memory_parts=_memory_parts(plan, card),
        blocks=[charts.removed(plan.structure, width) for width in (WIDE, NARROW) if plan.structure],
        types=_types(plan),
        bits=[
            charts.bits(plan.types, WIDE, layers_down=False),
            charts.bits(plan.types, NARROW, layers_down=True),
        ],
        runs=[DeviceRun.of(device, one, plan) for device, one in (measured or {}).items()],
        files=[
            charts.quality(points, WIDE, 380, measure(card)),
            charts.quality(points, NARROW, 330, measure(card)),
        ],
        remarks=remarks,
        tradeoff=[charts.tradeoff(plan, WIDE, 380), charts.tradeoff(plan, NARROW, 330)],
        curves=_curves(forecast) if forecast else [],
        comparison=comparison(card),
        readings=reading_groups(card),
        kl=_ours(card, "kl"),
        removed=card.vocabulary,
    )


def write(folder: Path, extra: Sequence[FilePoint] = ()) -> Path:
    """Draw folder/report.html from its plan, scorecard and measurements. InputError, OutputError."""
    page = folder / "report.html"
    plan, card = read_bundle(folder)
    drawn = render(plan, card, extra, read_measurements(folder, card))
    try:
        write_text(page, drawn)
    except OSError as error:
        raise OutputError(f"cannot write {page}: {error.strerror or error}") from error
    return page


def _ours(card: Scorecard, name: str) -> Reading | None:
    """A reading of what was made."""
    return card.candidates[0].reading(name) if card.candidates else None


def _tiles(plan: Plan, card: Scorecard) -> list[Tile]:
    proof, decode = card.proof, _ours(card, "decode")
    quality, original = _ours(card, measure(card)), reading_of(card.original, measure(card))
    allowed = f"of {megabytes(proof.budget)} MB allowed"
    tiles = [Tile(f"{METRICS['peak'].title}, measured", megabytes(proof.peak), "MB", allowed)]
    if quality:
        text = written(quality)
        than = f"{text.spread} over {quality.count:,} windows of text" if quality.count > 1 else text.spread
        if original:
            than = f"the original's: {written(original).value}"
        tiles.append(Tile(METRICS[quality.name].title, text.value, text.unit, than.strip()))
    size = card.candidates[0].file_bytes if card.candidates else plan.file_bytes
    tiles.append(Tile("file", megabytes(size), "MB", f"{plan.bits_per_weight:.2f} bits per weight"))
    if decode:
        text = written(decode)
        than = f"{text.spread} on the measuring machine".strip()
        tiles.append(Tile(METRICS["decode"].title, text.value, text.unit, than))
    return tiles


def _memory_parts(plan: Plan, card: Scorecard) -> list[tuple[str, str, int]]:
    """(colour, name, bytes) of the legend."""
    predicted = plan.memory.model_dump()
    return [
        *((name, title, predicted[name]) for name, title in MEMORY.items() if predicted[name]),
        ("anonymous", "anonymous, measured", card.proof.peak_anonymous),
        ("weights", "file-backed, measured", card.proof.peak_file_backed),
    ]


def _types(plan: Plan) -> list[StoredType]:
    """Every storage type of the plan, few bits first."""
    found = [(charts.bits_of(name), name, count) for name, count in Counter(plan.types.values()).items()]
    return [
        StoredType(name, bits, count, svg.swatch(charts.cell_colour(bits)[0]))
        for bits, name, count in sorted(found, key=lambda each: each[0] or 0.0)
    ]


def _files(card: Scorecard, extra: Sequence[FilePoint]) -> tuple[list[FilePoint], list[str]]:
    """The points of quality against size, and what there is to say of them."""
    name = measure(card)
    # Points from elsewhere have a KL, which says nothing beside files of other tokens.
    given = () if card.vocabulary else extra
    points = [point for point in given if point.name not in {c.name for c in card.candidates}]
    remarks = []
    for candidate in card.candidates:
        found = candidate.reading(name)
        if found is None:
            continue
        point = FilePoint(
            candidate.name, candidate.file_bytes, found.value, found.spread, "rival", candidate.fits
        )
        points.append(point if candidate is not card.candidates[0] else replace(point, kind="ours"))
        if not point.drawable:
            remarks.append(
                f"{point.name} is not in the picture: its {METRICS[name].title} is not a number above zero,"
                " which a logarithmic axis needs."
            )
    if not all(point.fits for point in points):
        remarks.append("A hollow mark does not fit the budget.")
    title = METRICS[name].title
    remarks += [f"{c.name} has no measured {title}." for c in card.candidates if c.reading(name) is None]
    return points, remarks


def _curves(forecast: Forecast) -> list[tuple[Markup, int]]:
    """(its line, its memory) of each curve."""
    return [
        (
            svg.key(
                svg.element("path", class_=charts.stroke(i), d="M0 5H30"), css="long", width=30, height=10
            ),
            max(point.memory for point in curve),
        )
        for i, curve in enumerate(forecast.curves)
    ]
