"""An Android phone over adb, with the system's own client: what adb's shell user may do, without root."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from tenth.core import children
from tenth.core.errors import DeviceError, InputError
from tenth.remote._base import Transport

_SERIAL = re.compile(r"[A-Za-z0-9][\w.:\[\]-]{0,127}")
_TIMEOUT = 60  # seconds for the client's own questions
BASE = "/data/local/tmp"  # where adb's shell user may write and execute

_TROUBLES = {
    "unauthorized": "{name} has not allowed this computer yet; unlock it and accept the question it shows",
    "no permissions": "this user may not open {name} over USB; install android-sdk-platform-tools-common",
    "not found": "adb sees no phone {serial!r}; see: adb devices",
    "offline": "{name} is offline; connect it again",
    "No space left": "{name} has no space left in " + BASE + "; free some",
    "closed|Connection reset": "the connection to {name} broke off",
}


@contextlib.contextmanager
def connect(address: str, port: int | None) -> Iterator[Adb]:
    """A way to the phone of that serial number; DeviceError where adb does not see it or may not use it."""
    if port is not None:
        raise InputError("--port is for ssh; a phone over Wi-Fi is adb:ADDRESS:PORT")
    if not _SERIAL.fullmatch(address):
        raise InputError(f"{address!r} is no serial number; see: adb devices")
    if children.program("adb") is None:
        raise InputError("adb is not installed here (Debian: apt-get install adb)")
    phone = Adb(address)
    phone.check()
    yield phone


class Adb(Transport):
    """One phone, reached through adb."""

    folders = BASE

    def __init__(self, serial: str) -> None:
        self.name = f"adb:{serial}"
        self.serial = serial

    def check(self) -> None:
        """DeviceError where the phone is absent, has not allowed this computer, or is too old."""
        features = self._adb("features")
        if "shell_v2" not in features.split():
            raise DeviceError(
                f"{self.name} has an adb that hides how commands end; Android 7 or newer is needed"
            )

    def command(self, script: str) -> list[str]:
        """Without a terminal: bytes pass unchanged, and the status comes back."""
        return ["adb", "-s", self.serial, "shell", "-T", script]

    def put(self, files: Mapping[str, Path], folder: str, advance: Callable[[float], None]) -> None:
        """File by file, with adb push, which makes the folders."""
        done = 0
        for name, path in files.items():
            self._adb("push", str(path.resolve()), str(PurePosixPath(folder) / name), limit=None)
            done += path.stat().st_size
            advance(done)
        runnable = [shlex.quote(name) for name, path in files.items() if path.stat().st_mode & 0o100]
        if runnable:
            self.run(f"cd {shlex.quote(folder)} && chmod 755 {' '.join(runnable)}", _TIMEOUT)

    def shell(self, command: str) -> str:
        """Run a command in the phone's shell."""
        return shlex.join(["adb", "-s", self.serial, "shell", command])

    def reason(self, status: int, stderr: str) -> str:  # noqa: ARG002
        """By the words of the client, whose status does not tell it from what it ran."""
        for words, line in _TROUBLES.items():
            if re.search(rf"^(?:error|adb)\b[^\n]*(?:{words})", stderr, re.M):
                return line.format(name=self.name, serial=self.serial)
        return ""

    def _adb(self, *words: str, limit: float | None = _TIMEOUT) -> str:
        """What the client says; DeviceError where it fails."""
        try:
            done = subprocess.run(
                ["adb", "-s", self.serial, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit,
                check=False,
                env=children.environment(),
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise DeviceError(f"{self.name} does not answer within {_TIMEOUT} s; connect it again") from None
        if done.returncode == 0:
            return done.stdout
        said = done.stderr + done.stdout
        last = (said.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise DeviceError(
            self.reason(done.returncode, said) or f"adb {words[0]} failed on {self.name}: {last}"
        )
