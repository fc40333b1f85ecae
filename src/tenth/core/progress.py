"""Where messages and progress go: what the pipeline needs of whoever runs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Reporter(Protocol):
    """Where messages and progress go."""

    def say(self, message: str) -> None:
        """One line for the person."""

    def step(
        self, name: str, total: float, unit: str = ""
    ) -> AbstractContextManager[Callable[[float], None]]:
        """A step with a progress bar; yields a function that sets how much is done."""
