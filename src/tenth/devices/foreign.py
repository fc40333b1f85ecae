"""What a device, another program or a file of the system says: bounded in size, and only plain numbers.

Python's own readers take more than they should from a stranger: "²".isdigit() is true, int() raises for more
than 4,300 digits and takes "1_0", float() gives inf and nan, json takes NaN and raises RecursionError, and an
expression searched in a long line can take quadratic time. Here such a thing is None, or a ValueError.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from tenth.core import children

LETTERS = 1000  # of a line; what is longer is no line of a kind that is known here
LINES = 20_000  # the last ones of a text
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(?:\.[0-9]{0,18})?(?:[eE][+-]?[0-9]{1,2})?", re.ASCII)
_KIND = 4096  # bytes of a file of the system, unless said otherwise


def whole(text: str) -> int | None:
    """A whole number of at most 18 ASCII digits, perhaps with a sign and spaces around; else None."""
    text = text.strip()
    return int(text) if _WHOLE.fullmatch(text) else None


def number(text: str) -> float | None:
    """A finite decimal number of plain ASCII digits, spaces around it allowed; else None."""
    text = text.strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def lines(text: str) -> list[str]:
    """The last `LINES` lines of at most `LETTERS` letters each: expressions searched in them end soon."""
    return [line for line in text.splitlines()[-LINES:] if len(line) <= LETTERS]


def shown(text: str) -> str:
    """What of it a terminal can show as it is: no escape sequences, no control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def parsed(text: str | bytes) -> JsonValue:
    """JSON whose numbers are finite. ValueError for anything else, however deep or long its numbers are."""
    try:
        value: JsonValue = json.loads(text, parse_constant=_refused, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return value


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def read(path: Path, most: int = _KIND) -> str:
    """The beginning of a text file of the system, at most so many bytes. Raises OSError."""
    with path.open("rb") as file:
        return file.read(most).decode("utf-8", "replace")


def output(command: Sequence[str], seconds: float, most: int = 1 << 20) -> str:
    """What a program writes on stdout. OSError where it cannot be started, takes longer, or writes more."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=children.environment(),
    )
    alarm = threading.Timer(seconds, process.kill)
    alarm.daemon = True
    alarm.start()
    with process:
        assert process.stdout
        raw = process.stdout.read(most + 1)
        late = not alarm.is_alive()
        process.kill()
    alarm.cancel()
    if late:
        raise OSError(f"{command[0]} does not answer within {seconds:g} s")
    if len(raw) > most:
        raise OSError(f"{command[0]} says more than {most} bytes")
    return raw.decode("utf-8", "replace")
