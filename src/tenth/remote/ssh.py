"""Another machine over ssh: a Pi, a Jetson, a car's computer, a phone with Termux.

The system's own ssh does it, with the person's configuration, keys and agent. There is one connection: the
session that holds the folder is its master, all others are multiplexed over it (ControlMaster). BatchMode:
nothing is ever asked, so nothing can hang on a question.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from tenth.core import children
from tenth.core.errors import DeviceError, InputError
from tenth.core.store import temporary_folder
from tenth.remote._base import Transport

_HOST = re.compile(r"(?:[^@:/\s-][^@:/\s]*@)?(?:\[[0-9A-Fa-f:.%\w]+\]|[^@:/\s\[\]-][^@:/\s\[\]]*)")
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
    "ForwardX11": "no",
    "ForwardAgent": "no",
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "LogLevel": "INFO",
    "ControlPersist": "no",
}

_FAILED = 255
_TROUBLES = {
    "IDENTIFICATION HAS CHANGED": (
        "the host key of {name} is not the one that this machine knows: it was set up anew (then remove the"
        " old key with ssh-keygen -R, and connect once with: {ssh}), or another machine answers in its place"
    ),
    "Host key verification failed": (
        "this machine does not know the host key of {name} yet; connect once and accept it: {ssh}"
    ),
    "Could not resolve hostname": "no host is known by the name of {name}; check spelling and the network",
    "Permission denied (": (
        "{name} accepts none of your keys (no password is asked for); send it one: ssh-copy-id {port}{name}"
    ),
    "Too many authentication failures": "{name} was offered too many keys; name one in ~/.ssh/config",
    "Connection refused": "{name} refuses the connection: no ssh server listens on that port (-p PORT)",
    "No route to host": "there is no way to {name}; is it switched on, and in this network?",
    "Network is unreachable": "there is no way to {name}; is this machine in a network?",
    "timed out": "{name} does not answer; is it switched on, and in this network?",
}


@contextlib.contextmanager
def connect(address: str, port: int | None) -> Iterator[Ssh]:
    """A way to [user@]host. InputError for no such name or no ssh here; the host is not asked yet."""
    if not _HOST.fullmatch(address):
        raise InputError(f"{address!r} is no device; give user@host, user@host:folder or adb:SERIAL")
    for program in ("ssh", "tar"):
        if children.program(program) is None:
            raise InputError(f"{program} is not installed here (Debian: apt-get install openssh-client tar)")
    with temporary_folder() as folder:
        yield Ssh(address, port, folder / "c")


class Ssh(Transport):
    """One host, reached over ssh."""

    folders = '/var/tmp "$HOME" "${TMPDIR:-/tmp}" /tmp'

    def __init__(self, address: str, port: int | None, control: Path) -> None:
        self.name = address
        self._port = [] if port is None else ["-p", str(port)]
        self._control = control
        self._master = "yes"

    def command(self, script: str) -> list[str]:
        """The first one becomes the master of the connection."""
        options = {**_OPTIONS, "ControlMaster": self._master, "ControlPath": str(self._control)}
        self._master = "no"
        flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        host = re.sub(r"[\[\]]", "", self.name)
        return ["ssh", "-T", *self._port, *flags, "--", host, f"exec sh -c {shlex.quote(script)}"]

    def put(self, files: Mapping[str, Path], folder: str, advance: Callable[[float], None]) -> None:
        """Send files as one tar stream."""
        with tempfile.TemporaryFile() as errors:
            receiver = subprocess.Popen(
                self.command(f"cd {shlex.quote(folder)} && exec tar -xof -"),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=children.environment(),
                start_new_session=True,
            )
            try:
                with contextlib.suppress(BrokenPipeError):
                    _send(files, receiver, advance)
                status = receiver.wait()
            finally:
                if receiver.poll() is None:
                    receiver.kill()
                    receiver.wait()
            if status == 0:
                return
            errors.seek(0)
            said = errors.read(64 << 10).decode("utf-8", "replace")
            if re.search("No space left|Disk quota|Wrote only", said):
                raise DeviceError(
                    f"{self.name} has no space left in {Path(folder).parent}; free some, or name a folder"
                )
            last = (said.strip().splitlines() or [f"tar ended with status {status}"])[-1]
            raise DeviceError(self.reason(status, said) or f"copying to {self.name} failed: {last}")

    def shell(self, command: str) -> str:
        """With a terminal, so that Ctrl-C arrives."""
        return shlex.join(["ssh", "-t", *self._port, re.sub(r"[\[\]]", "", self.name), command])

    def reason(self, status: int, stderr: str) -> str:
        """By the words of OpenSSH's client, which ends with 255 for troubles of its own."""
        if status != _FAILED:
            return ""
        name, ssh = self.name, shlex.join(["ssh", *self._port, self.name])
        for words, line in _TROUBLES.items():
            if words in stderr:
                return line.format(name=name, ssh=ssh, port="".join(f"{word} " for word in self._port))
        return f"the connection to {name} broke off"


def _send(
    files: Mapping[str, Path], receiver: subprocess.Popen[bytes], advance: Callable[[float], None]
) -> None:
    """Write the tar stream; BrokenPipeError where the other end is gone."""
    assert receiver.stdin
    done = 0
    try:
        with tarfile.open(fileobj=receiver.stdin, mode="w|", format=tarfile.GNU_FORMAT) as archive:
            for name, path in files.items():
                entry = tarfile.TarInfo(name)
                with path.open("rb") as file:
                    held = os.fstat(file.fileno())
                    entry.size, entry.mtime = held.st_size, int(held.st_mtime)
                    entry.mode = 0o755 if held.st_mode & 0o100 else 0o644
                    archive.addfile(entry, _Counted(file, done, advance))
                done += entry.size
    finally:
        with contextlib.suppress(BrokenPipeError):
            receiver.stdin.close()


class _Counted:
    """A file that tells how much of it was read."""

    def __init__(self, file: IO[bytes], done: int, advance: Callable[[float], None]) -> None:
        self._file, self._done, self._advance = file, done, advance

    def read(self, size: int = -1) -> bytes:
        """Read the stream as a file is read."""
        block = self._file.read(size)
        self._done += len(block)
        self._advance(self._done)
        return block
