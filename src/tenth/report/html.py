"""Pages out of templates: Jinja2 escapes all that a template writes, and each page forbids itself everything.

A page is one file, so that it works from file:// and as an attachment. Its policy allows the one style and
the one script that were written into it, by their hashes, and no address at all.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tenth.core.format import bits_text, figure, megabytes, written, written_estimate
from tenth.core.metrics import metric

HERE = Path(__file__).parent
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


def apart(text: str, most: int = 400) -> Markup:
    """Text from outside, apart from the direction of what is around it."""
    line = clean(text, most)
    return Markup("<bdi>{}</bdi>").format(line) if line else Markup("")


def integer(count: int) -> str:
    """Write a whole number with commas: "46,292,480"."""
    return f"{count:,}"


def on_off(flag: bool) -> str:
    """Write a setting as "on" or "off"."""
    return "on" if flag else "off"


FILTERS = (apart, bits_text, clean, figure, integer, megabytes, metric, on_off, written, written_estimate)


class Templates:
    """Folders of templates, each with the style sheets and scripts that its pages need.

    The frame and the macros of this room, and report.css, are there for all.
    """

    def __init__(self, *folders: Path, **known: object) -> None:
        """known: names that all templates know, `generator` among them."""
        folders = (HERE, *folders)
        self._templates = Environment(
            loader=FileSystemLoader([folder / "templates" for folder in folders]),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {function.__name__: function for function in FILTERS}
        self._templates.globals |= known
        self._style, self._script = (_texts(folders, f"*.{end}") for end in ("css", "js"))

    def render(self, template: str, *, script: bool = False, **data: object) -> str:
        """A whole page from a template of that name and its data."""
        code = self._script if script else ""
        policy = f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src '{_hash(self._style)}'"
        policy += f"; script-src '{_hash(code)}'" if code else ""
        trusted = {"style": Markup(self._style), "script": Markup(code)}
        return self._templates.get_template(template).render(policy=policy, **trusted, **data)


def _texts(folders: Sequence[Path], pattern: str) -> str:
    files = (file for folder in folders for file in sorted(folder.glob(pattern)))
    return "".join(file.read_text(encoding="utf-8") for file in files)


def _hash(text: str) -> str:
    """For a policy, in the alphabet that has no slash."""
    return "sha256-" + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
