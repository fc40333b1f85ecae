"""What a counter is, and the thread that adds up what it says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tenth.core.errors import InputError
from tenth.devices import foreign

_NO_WRAP = 1.0  # seconds between looks at a source that counts by itself


class Unavailable(Exception):  # noqa: N818 - a state of the machine, not a mistake
    """Why a counter cannot be used here, in one line."""


@dataclass(frozen=True)
class Source:
    """A counter that can be read.

    read: joules since any moment, never falling (`counts`), or watts now. It raises Unavailable where that
    stops being possible.
    """

    name: str
    scope: str  # what is counted: "CPU packages 0 and 1", "the whole device, at its battery"
    period: float  # seconds between two values of the hardware
    read: Callable[[], float]
    counts: bool
    whole: bool  # sees the device and not only its processor
    automatic: bool = True


class Meter:
    """Joules since the start of a `with` block.

    A thread reads power once a period and integrates it by the trapezoid rule, or a count often enough that
    it cannot wrap unseen. clock: seconds from any moment on.
    """

    def __init__(self, source: Source, clock: Callable[[], float] = time.monotonic) -> None:
        self.source, self._clock = source, clock
        self.readings = 0
        self._joules = self._last = self._then = 0.0
        self._trouble: Unavailable | None = None
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Meter:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def joules(self) -> float:
        """So far, this moment included. InputError where the counter has stopped to mean anything."""
        self._look()
        if self._trouble:
            raise InputError(f"the energy counter {self.source.name} failed: {self._trouble}")
        return self._joules

    def _look(self) -> None:
        with self._lock:
            if self._trouble:
                return
            try:
                value, now = self.source.read(), self._clock()
            except Unavailable as trouble:
                self._trouble = trouble
                return
            if self.readings:
                step = value - self._last
                if not self.source.counts:
                    step = (value + self._last) / 2 * (now - self._then)
                self._joules += step
            self._last, self._then = value, now
            self.readings += 1

    def _run(self) -> None:
        while not self._done.wait(_NO_WRAP if self.source.counts else self.source.period):
            self._look()


def read_text(path: Path) -> str:
    """A small file of the system, stripped; Unavailable with the reason where it cannot be read."""
    try:
        return foreign.shown(foreign.read(path)).strip()
    except PermissionError:
        raise Unavailable(
            f"only root may read {path}; run as root, or allow it: sudo chmod a+r {path}"
        ) from None
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror or error}") from None


def read_number(path: Path) -> int:
    """A whole number out of a file of the system; Unavailable where it holds none."""
    text = read_text(path)
    found = foreign.whole(text)
    if found is None:
        raise Unavailable(f"{path} holds {text[:40]!r}, not a number")
    return found
