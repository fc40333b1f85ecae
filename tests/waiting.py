"""Waiting for what must come, instead of for a time."""

from __future__ import annotations

import time
from collections.abc import Callable


def soon(true: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Return as soon as the condition holds; AssertionError with `what` where it does not in that time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)
