"""A thread that watches what the process holds, and ends it where that is more than it may."""

from __future__ import annotations

import os
import signal
import threading
import time

from tenth.core import jobs
from tenth.runtime import limits

_PERIOD = 0.005  # seconds between looks at the resident size


class Watch(threading.Thread):
    """Records the largest resident size above a start; ends the process where it exceeds a ceiling."""

    def __init__(self, start: limits.Resident, ceiling: int | None, emit: jobs.Emit) -> None:
        super().__init__(daemon=True)
        self.start_size, self.ceiling, self.emit = start, ceiling, emit
        self.peak = self.peak_file = self.peak_anonymous = 0
        self._done = threading.Event()

    def look(self, exact: bool = False) -> None:
        """Take note of what is held now."""
        now = limits.resident(exact)
        self.peak = max(self.peak, now.total - self.start_size.total)
        self.peak_file = max(self.peak_file, now.file_backed - self.start_size.file_backed)
        self.peak_anonymous = max(self.peak_anonymous, now.anonymous - self.start_size.anonymous)

    def report(self) -> dict[str, int]:
        """The peaks so far, as fields of a Proof."""
        return {"peak": self.peak, "peak_file_backed": self.peak_file, "peak_anonymous": self.peak_anonymous}

    def run(self) -> None:
        """Look again and again until `finish` is called."""
        reported = 0.0
        while not self._done.wait(_PERIOD):
            self.look()
            if self.ceiling is not None and self.peak > self.ceiling:
                self.emit(self.report())
                os.kill(os.getpid(), signal.SIGKILL)
            if (
                time.monotonic() - reported > 0.1
            ):  # so that the parent knows something when the kernel ends us
                reported = time.monotonic()
                self.emit(self.report())

    def finish(self) -> None:
        """Stop the thread."""
        self._done.set()
        self.join()
