"""A small Android phone for the real adb: its daemon's side of the protocol; /data/local/tmp is a folder.

message  = command, arg0, arg1, length, checksum, command ^ 0xffffffff   (little-endian uint32), data
host CNXN -> CNXN "device::...;features=shell_v2,cmd"    or  AUTH for ever, where this computer is not allowed
host OPEN id "shell,v2,raw:..." | "sync:"  ->  OKAY; WRTE and OKAY in turn; CLSE
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import struct
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

TMP, SYS = "/data/local/tmp", "/sys/class/power_supply"
_MAX = 256 * 1024
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE = range(5)  # packets of shell,v2: kind, length, data


@dataclass
class Phone:
    """Listens on loopback, with programs of its own (`program`).

    drop_on: a command that cuts the cable. full: nothing that is pushed finds space."""

    root: Path
    authorised: bool = True
    features: str = "shell_v2,cmd"
    drop_on: str = ""
    full: bool = False
    socket: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    def __post_init__(self) -> None:
        for folder in ("tmp", "sys/battery", "bin"):
            (self.root / folder).mkdir(parents=True)
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def serial(self) -> str:
        """As adb names it after adb connect."""
        return f"127.0.0.1:{self.port}"

    def program(self, name: str, script: str) -> None:
        """Give the phone a program."""
        (self.root / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.root / "bin" / name).chmod(0o755)

    def here(self, text: str) -> str:
        """The phone's paths as ours."""
        return text.replace(TMP, str(self.root / "tmp")).replace(SYS, str(self.root / "sys"))

    def there(self, text: str) -> str:
        """Ours as the phone's."""
        return text.replace(str(self.root / "tmp"), TMP)

    def _accept(self) -> None:
        while True:
            try:
                line = self.socket.accept()[0]
            except OSError:
                return
            threading.Thread(target=_Link(self, line).serve, daemon=True).start()


class _Link:
    """One computer's connection."""

    def __init__(self, phone: Phone, line: socket.socket) -> None:
        self.phone, self.line = phone, line
        self.lock = threading.Lock()
        self.streams: dict[int, _Stream] = {}

    def send(self, command: bytes, arg0: int, arg1: int, data: bytes = b"") -> None:
        number = int.from_bytes(command, "little")
        head = struct.pack("<6I", number, arg0, arg1, len(data), sum(data) & 0xFFFFFFFF, number ^ 0xFFFFFFFF)
        with self.lock:
            self.line.sendall(head + data)

    def serve(self) -> None:
        try:
            while head := self._exactly(24):
                command, arg0, arg1, length = struct.unpack("<4I", head[:16])
                self._handle(command.to_bytes(4, "little"), arg0, arg1, self._exactly(length))
        except OSError:
            pass
        finally:
            self.line.close()
            for stream in self.streams.values():
                stream.arrived.put(None)
                stream.ready.release()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            block = self.line.recv(size - len(data))
            if not block:
                return b""
            data += block
        return data

    def _handle(self, command: bytes, arg0: int, arg1: int, data: bytes) -> None:
        if command in (b"CNXN", b"AUTH") and not self.phone.authorised:
            if (command, arg0) != (b"AUTH", 3):  # a key to be confirmed on the screen: no one does
                self.send(b"AUTH", 1, 0, os.urandom(20))
        elif command == b"CNXN":
            banner = f"device::ro.product.model=Fake;features={self.phone.features}"
            self.send(b"CNXN", 0x01000001, _MAX, banner.encode())
        elif command == b"OPEN":
            stream = self.streams[arg0] = _Stream(self, arg0)
            self.send(b"OKAY", arg0, arg0)
            service = data.rstrip(b"\0").decode()
            work = stream.sync if service == "sync:" else lambda: stream.shell(service.partition(":")[2])
            threading.Thread(target=stream.run, args=(work,), daemon=True).start()
        elif command == b"WRTE":
            self.send(b"OKAY", arg0, arg0)
            self.streams[arg0].arrived.put(data)
        elif command == b"OKAY" and arg0 in self.streams:
            self.streams[arg0].ready.release()
        elif command == b"CLSE" and arg0 in self.streams:
            self.streams[arg0].arrived.put(None)
            self.streams[arg0].ready.release()


class _Stream:
    """One service; both ends use the computer's number for it."""

    def __init__(self, link: _Link, number: int) -> None:
        self.link, self.number = link, number
        self.arrived: queue.Queue[bytes | None] = queue.Queue()
        self.ready = threading.Semaphore(1)  # one message under way at a time
        self.lock = threading.Lock()
        self.held = b""

    def run(self, work) -> None:
        try:
            work()
        except (OSError, EOFError):
            return
        self.ready.acquire()
        self.link.send(b"CLSE", self.number, self.number)

    def write(self, data: bytes) -> None:
        with self.lock:
            for begin in range(0, len(data), _MAX):
                self.ready.acquire()
                self.link.send(b"WRTE", self.number, self.number, data[begin : begin + _MAX])

    def read(self, size: int) -> bytes:
        while len(self.held) < size:
            block = self.arrived.get()
            if block is None:
                raise EOFError
            self.held += block
        data, self.held = self.held[:size], self.held[size:]
        return data

    def shell(self, command: str) -> None:
        """shell,v2,raw: our sh in the place of the phone's."""
        phone = self.link.phone
        if phone.drop_on and phone.drop_on in command:
            self.link.line.shutdown(socket.SHUT_RDWR)
            raise EOFError
        process = subprocess.Popen(
            ["sh", "-c", phone.here(command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
            env={"PATH": f"{phone.root / 'bin'}:/usr/bin:/bin"},
        )
        outputs = [
            threading.Thread(target=self._pass_on, args=(kind, pipe), daemon=True)
            for kind, pipe in ((_STDOUT, process.stdout), (_STDERR, process.stderr))
        ]
        feed = threading.Thread(target=self._feed, args=(process,), daemon=True)
        for thread in (*outputs, feed):
            thread.start()
        for thread in outputs:
            thread.join()
        self.write(struct.pack("<BIB", _EXIT, 1, process.wait() & 0xFF))

    def _pass_on(self, kind: int, pipe) -> None:
        try:
            while data := os.read(pipe.fileno(), 32768):
                data = self.link.phone.there(data.decode("latin-1")).encode("latin-1")
                self.write(struct.pack("<BI", kind, len(data)) + data)
        except OSError:
            return
        finally:
            pipe.close()

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        """The computer's side of stdin; the end of the connection is its end too."""
        try:
            while True:
                kind, size = struct.unpack("<BI", self.read(5))
                data = self.read(size)
                if kind == _STDIN:
                    process.stdin.write(data)
                    process.stdin.flush()
                elif kind == _CLOSE:
                    break
        except (EOFError, OSError):
            pass
        with contextlib.suppress(OSError):
            process.stdin.close()

    def sync(self) -> None:
        """The file service, version 1: STAT, SEND, RECV, QUIT."""
        while True:
            request, size = struct.unpack("<4sI", self.read(8))
            words = self.read(size).decode()
            if request == b"QUIT":
                return
            path = Path(self.link.phone.here(words))
            if request == b"STAT":
                held = path.stat() if path.exists() else None
                self.write(
                    struct.pack("<4s3I", b"STAT", *((held.st_mode, held.st_size, 0) if held else (0, 0, 0)))
                )
            elif request == b"RECV":
                data = path.read_bytes()
                for begin in range(0, len(data), 65536):
                    block = data[begin : begin + 65536]
                    self.write(struct.pack("<4sI", b"DATA", len(block)) + block)
                self.write(struct.pack("<4sI", b"DONE", 0))
            elif request == b"SEND":
                name, _, mode = str(path).rpartition(",")
                self._receive(Path(name), int(mode))

    def _receive(self, path: Path, mode: int) -> None:
        data = b""
        while True:
            kind, size = struct.unpack("<4sI", self.read(8))
            if kind == b"DONE":
                break
            data += self.read(size)
        if self.link.phone.full:
            said = b"write failed: No space left on device"
            self.write(struct.pack("<4sI", b"FAIL", len(said)) + said)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode & 0o777)
        self.write(struct.pack("<4sI", b"OKAY", 0))


def replace(path: Path, text: str) -> None:
    """Write a file that others read meanwhile."""
    partial = path.with_name(path.name + ".new")
    partial.write_text(text)
    partial.replace(path)
