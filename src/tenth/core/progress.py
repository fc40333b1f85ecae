"""Where messages and progress go: what the pipeline needs of whoever runs it; how a text is made fit to be
shown that came from outside.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Reporter(Protocol):
    """What long work tells about itself: messages, and steps with progress."""

    def say(self, message: str) -> None:
        """Show the person one line."""

    def step(
        self, name: str, total: float, unit: str = ""
    ) -> AbstractContextManager[Callable[[float], None]]:
        """A step with a progress bar; yields a function that sets how much is done."""


# Joiners shape letters of Persian, Hindi and emoji; nothing else of their kind is harmless on a terminal.
_JOINERS = "\u200c\u200d"
_UNSEEN = {
    "Cc",
    "Cf",
    "Cs",
    "Zl",
    "Zp",
}  # Unicode's controls, formats (right-to-left marks), surrogates, breaks


def visible(text: str, kept: str = "") -> str:
    r"""Text from outside as it may reach a terminal: what steers one is written out, as \x1b or \u202e.

    kept: characters that stay, such as a newline. A byte of a path that is no UTF-8 is shown as \xe9.
    """
    return "".join(c if c in kept or not steers(c) else _written_out(c) for c in text)


def one_line(text: str) -> str:
    """As `visible`, with line breaks and tabs as spaces."""
    return visible(" ".join(text.splitlines()).replace("\t", " "))


def steers(c: str) -> bool:
    """Whether a character is none to see, and may steer a terminal."""
    if c.isascii():
        return not c.isprintable()
    return unicodedata.category(c) in _UNSEEN and c not in _JOINERS


def _written_out(c: str) -> str:
    if "\udc80" <= c <= "\udcff":  # how Python carries a byte that is no UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape").decode("ascii")
