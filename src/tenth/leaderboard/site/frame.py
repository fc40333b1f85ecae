"""What the pages of a leaderboard share: the frame that forbids itself everything, words made harmless.

A page needs no other file for its looks and its script, so that it works from file://. Its policy allows the
one style and the one script that were written into it, by their hashes, and no address at all.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from functools import cache
from html import escape
from importlib import resources

from tenth.core.format import number, written
from tenth.core.records import Reading

GENERATOR = "tenth leaderboard"
_FORMATS = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # control, direction, surrogate, private, line separators
_JOINERS = "\u200c\u200d"  # that some scripts need
_MARKS = 4  # most combining marks in a row


def clean(text: str, most: int = 400) -> str:
    """Text from outside on one line: no control or direction characters, no towers of accents, not longer."""
    kept: list[str] = []
    marks = 0
    for c in text[: 4 * most]:
        kind = unicodedata.category(c)
        marks = marks + 1 if kind.startswith("M") else 0
        if marks <= _MARKS:
            kept.append(" " if kind in _FORMATS and c not in _JOINERS else c)
    line = " ".join("".join(kept).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def said(text: str, most: int = 400) -> str:
    """Text from outside as HTML, apart from the direction of what is around it."""
    line = escape(clean(text, most))
    return f"<bdi>{line}</bdi>" if line else ""


def span(place: tuple[int, int]) -> str:
    """ "2", or "2–4" for a tie."""
    return f"{place[0]}" if place[0] == place[1] else f"{place[0]}–{place[1]}"


def figured(reading: Reading | None, *, mark: bool = True) -> str:
    """A reading in a cell: value and spread; what is no measurement has two figures, and is marked so."""
    if reading is None:
        return ""
    if reading.kind != "measured":
        kind = f' <span class="kind">{escape(reading.kind)}</span>' if mark else ""
        return f"{number(reading.value)}{kind}"
    value, _, spread = written(reading)
    error = f' <span class="spread">{spread}</span>' if spread else ""
    return f"{value}{error}"


def tile(what: str, value: str, unit: str, than: str) -> str:
    """One tile of a list of class "tiles"; all are HTML."""
    small = f" <small>{unit}</small>" if unit else ""
    return (
        f'<li><span class="what">{what}</span><span class="value">{value}{small}</span>'
        f'<span class="than">{than}</span></li>'
    )


def frame(title: str, body: str, *, script: bool) -> str:
    """A whole page around a body; script: whether it gets board.js."""
    style, code = _file("tenth.report", "report.css") + _file("tenth.leaderboard.site", "board.css"), ""
    policy = f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src '{_hash(style)}'"
    if script:
        code = _file("tenth.leaderboard.site", "board.js")
        policy += f"; script-src '{_hash(code)}'"
    end = f"<script>{code}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="referrer" content="no-referrer">'
        f'<meta name="generator" content="{GENERATOR}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(clean(title))}</title>\n<style>{style}</style></head>\n"
        f"<body>\n{body}\n{end}</body></html>\n"
    )


@cache
def _file(package: str, name: str) -> str:
    return (resources.files(package) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
