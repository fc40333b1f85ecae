"""A device that lies: what it says, and this machine's own shell as the way to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tenth.remote import _base


class Here(_base.Transport):
    """This machine's own shell."""

    name, folders = "here", "/tmp"

    def command(self, script: str) -> list[str]:
        return ["sh", "-c", script]

    def put(self, files: Mapping[str, Path], folder: str, advance: Callable[[float], None]) -> None:
        for name, path in files.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, Path(folder) / name)

    def reason(self, status: int, stderr: str) -> str:
        return ""

    def shell(self, command: str) -> str:
        return command


ENDLESS = {
    "lines": "yes",
    "lines on stderr": "yes >&2",
    "one line": "tr '\\0' 9 < /dev/zero",
    "one line on stderr": "tr '\\0' 9 < /dev/zero >&2",
    "zeros": "cat /dev/zero",
}


DIGITS = "9" * 5000
FACTS = {
    "superscript": ("sed", "echo '²'"),
    "digits": ("sed", f"echo {DIGITS}"),
    "many digits": ("df", "tr '\\0' 9 < /dev/zero | head -c 8000000"),
    "digits of space": ("df", f"echo / {DIGITS} 9% /"),
    "other digits": ("df", "echo / ٣٣٣ ٣% /"),
    "many lines": ("uname", "yes | head -n 2000000"),
    "escapes": ("uname", "printf '\\033[2J\\033]0;x\\007'"),
    "negative": ("sed", "echo -5"),
    "pythons": ("python3", f"echo CPython {DIGITS} 11 64 glibc2.36"),
}


TEST = {"n_prompt": 0, "n_gen": 32, "n_depth": 0, "samples_ts": [1.0]}
BENCHES = {
    "deep": "tr '\\0' '[' < /dev/zero | head -c 1000000",
    "endless": "tr '\\0' '[' < /dev/zero | head -c 5000000",
    "digits": f"echo '[{{\"samples_ts\": [{DIGITS}]}}]'",
    "infinite": f"echo '{json.dumps([TEST]).replace('1.0', '1e999')}'",
    "no number": f"echo '{json.dumps([TEST]).replace('1.0', 'NaN')}'",
    "negative": f"echo '{json.dumps([TEST]).replace('1.0', '-1')}'",
    "an object": f"echo '{json.dumps(TEST)}'",
    "null": "echo null",
}
LONG = "awk 'BEGIN { for (i = 0; i < 300000; i++) printf \"eval time = 9\" }'"
TIMINGS = {
    "nothing": "true",
    "one long line": LONG,
    "long digits": "tr '\\0' 9 < /dev/zero | head -c 3000000",
    "dots": "echo '[ Prompt: 1.2.3 t/s | Generation: ... t/s ]'",
    "digits": f"echo '[ Prompt: {DIGITS} t/s | Generation: 1 t/s ]'",
    "zero": "echo '[ Prompt: 0 t/s | Generation: 0 t/s ]'",
    "escapes": "tr '\\0' '\\033' < /dev/zero | head -c 3000000",
}

PYTHONS = [
    "CPython ² 11 64 glibc2.36",
    f"CPython {DIGITS} 11 64 glibc2.36",
    f"CPython 3 11 64 glibc2.{DIGITS}",
    f"CPython 3 {DIGITS} 64 glibc2.36",
    "CPython 3 11 ² glibc2.36",
    "CPython -3 11 64 glibc2.36",
    "a b c",
]
ANSWERS = [
    "yes '['",
    "tr '\\0' '[' < /dev/zero | head -c 1000000",
    "echo NaN",
    "echo '{\"a\": 1e999}'",
    f"echo {DIGITS}",
]
