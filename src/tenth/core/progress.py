"""Where messages and progress go: what the pipeline needs of whoever runs it."""

from __future__ import annotations

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
