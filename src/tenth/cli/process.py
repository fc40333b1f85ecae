"""What a command shares with its terminal: streams that nothing can steer it through, and how it is stopped.

Whatever writes to stdout or stderr while a command runs (our lines, a library's warning, a traceback) passes
through `Plain`. rich alone gets at the streams themselves, for its bars and colours; what it is given is
cleaned before (console.py).
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import TextIO

from tenth.core.progress import visible

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_PATIENCE = 2.0  # seconds in which a second Ctrl-C is taken for the first one, while things are put away


class Plain:
    """A stream of text on which control characters are written out, but for line breaks and tabs."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream  # by this name rich finds the stream itself

    def write(self, text: str) -> int:
        """Write the text so that it can be read, and does nothing else; a bar may begin its line anew."""
        start = "\r" if text.startswith("\r") else ""
        self.rich_proxied_file.write(start + visible(text[len(start) :], "\n\t"))
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self.rich_proxied_file, name)


@contextlib.contextmanager
def plain_streams() -> Iterator[None]:
    """For the time of a command: stdout and stderr as `Plain`."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a model's name must not break a narrow terminal
    sys.stdout, sys.stderr = (Plain(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def forget_stdout() -> None:
    """Let go what stdout did not take, so that Python does not try again when it ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Interrupts:
    """Ctrl-C, an end that is asked for, and a terminal that closes: each becomes KeyboardInterrupt, once."""

    def __init__(self) -> None:
        self.signal = 0  # that came first
        self._last = -_PATIENCE

    @property
    def status(self) -> int:
        """The exit status of a command that was stopped, as shells have it: 130 for Ctrl-C."""
        return 128 + (self.signal or signal.SIGINT)

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """For the time of a command. A signal that is ignored, as in the background, stays ignored."""
        before = {}
        hook = sys.unraisablehook
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            with contextlib.suppress(ValueError):  # not in the main thread
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, self._hear)

        def unraisable(unraised: sys.UnraisableHookArgs) -> None:
            if isinstance(unraised.exc_value, KeyboardInterrupt):  # it came where nothing can be raised
                self._last = -_PATIENCE
                _thread.interrupt_main()
            else:
                hook(unraised)

        sys.unraisablehook = unraisable
        try:
            yield
        finally:
            sys.unraisablehook = hook
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number
        now = time.monotonic()
        if now - self._last >= _PATIENCE:
            self._last = now
            raise KeyboardInterrupt
