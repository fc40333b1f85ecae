"""What the child processes of the tests do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from ctypes import CDLL
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import JsonValue

from tenth.core.errors import BudgetError, InputError
from tenth.core.ggml import storage_type
from tenth.core.jobs import Emit, Job
from tenth.core.records import Record, Runtime
from tenth.runtime import limits, llama, lockdown


class Echoed(Record):
    value: JsonValue
    openmp: str | None
    extra: str | None


class Echo(Job[Echoed]):
    value: JsonValue
    threads: int = 0

    def run(self, emit: Emit) -> Echoed:
        print("noise from Python", flush=True)
        os.write(1, b"noise from native code\n")
        emit({"step": 1})
        emit({"step": 2})
        return Echoed(
            value=self.value, openmp=os.environ.get("OMP_NUM_THREADS"), extra=os.environ.get("EXTRA")
        )


class Refuse(Job[None]):
    kind: Literal["budget", "input", "other"]

    def run(self, emit: Emit) -> None:
        if self.kind == "budget":
            raise BudgetError("too small", {"total": 3})
        if self.kind == "input":
            raise InputError("no such thing")
        raise ZeroDivisionError("a mistake of ours")


class Unspeakable(Job[Any]):
    """Its result is no JSON."""

    def run(self, emit: Emit) -> Any:
        return object()


class Abort(Job[None]):
    def run(self, emit: Emit) -> None:
        os.write(2, b"an earlier line\nGGML_ASSERT(reason) failed\n")
        os.abort()


class Leave(Job[None]):
    def run(self, emit: Emit) -> None:
        os._exit(7)


class Hang(Job[None]):
    def run(self, emit: Emit) -> None:
        emit({"pid": os.getpid()})
        time.sleep(60)


class CoreLimit(Job[int]):
    def run(self, emit: Emit) -> int:
        import resource

        return resource.getrlimit(resource.RLIMIT_CORE)[0]


class EncodeWithoutImportance(Job[None]):
    """ggml asserts that this type comes with importance weights."""

    def run(self, emit: Emit) -> None:
        weights, out = np.ones((1, 256), np.float32), np.empty(1000, np.uint8)
        llama.library().ggml_quantize_chunk(
            storage_type("IQ2_XS").number, weights.ctypes.data, out.ctypes.data, 0, 1, 256, None
        )


class OpenFile(Job[int]):
    path: Path

    def run(self, emit: Emit) -> int:
        with llama.Session.open(self.path, Runtime(n_ctx=64, n_ubatch=64, threads=1)) as session:
            session.decode([1, 2], 0)
            return session.n_vocab


class GrowInCgroup(Job[bool]):
    """Allocate and touch `size` bytes in a group that may hold `limit`."""

    limit: int
    size: int

    def run(self, emit: Emit) -> bool:
        group = limits.limit_memory(self.limit)
        if group is None:
            return False
        emit(group.event() | {"name": group.name})
        block = bytearray(self.size)
        emit({"held": len(block)})
        return True


class Left(Record):
    network: str
    error: int | None  # of a connection that was tried afterwards


class LeaveNetwork(Job[Left]):
    def run(self, emit: Emit) -> Left:
        network = limits.isolate_network()
        try:
            socket.create_connection(("192.0.2.1", 9), timeout=2).close()
        except OSError as error:
            return Left(network=network, error=error.errno)
        return Left(network=network, error=None)


class ResidentGrowth(Job[int]):
    def run(self, emit: Emit) -> int:
        before = limits.resident(exact=True)
        block = b"x" * 20_000_000
        after = limits.resident(exact=True)
        return after.anonymous - before.anonymous if block else 0


class CallHome(Job[int]):
    """Try one TCP connection to an address that is no one's, by Python or past it."""

    native: bool

    def run(self, emit: Emit) -> int:
        with socket.socket() as line:
            if not self.native:
                return line.connect_ex(("192.0.2.1", 9))
            address = (2).to_bytes(2, "little") + bytes([0, 9, 192, 0, 2, 1]) + bytes(8)
            return int(CDLL(None).connect(line.fileno(), address, len(address)))


class OpenInVainAndForReal(Job[str]):
    path: Path

    def run(self, emit: Emit) -> str:
        try:
            Path(f"{self.path}.absent").read_text()
        except OSError:
            return self.path.read_text()
        return ""


class Misbehave(Job[str]):
    """In a sandbox: what came of it."""

    how: str
    path: Path

    def run(self, emit: Emit) -> str:
        try:
            if self.how == "read":
                return self.path.read_text()
            self._try()
        except OSError as error:
            return f"{type(error).__name__} {error.errno}"
        return "done"

    def _try(self) -> None:
        if self.how == "fork":
            while True:
                os.fork()
        elif self.how == "exec":
            subprocess.run([sys.executable, "-c", ""], check=True)
        elif self.how == "socket":
            socket.socket()
        elif self.how == "write":
            (self.path / "written").write_text("x")
        elif self.how == "fill":
            with (self.path / "filled").open("wb") as file:
                while True:
                    file.write(bytes(1 << 20))
        elif self.how == "kill":
            os.kill(os.getppid(), signal.SIGTERM)
        elif self.how == "hang":
            while True:
                pass
        elif self.how == "memory":
            held = bytearray(1)
            while True:
                held += bytes(1 << 24)
        elif self.how == "thread":
            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()


class Burn(Job[None]):
    seconds: float

    def run(self, emit: Emit) -> None:
        lockdown.shut(seconds=self.seconds)
        while True:
            pass
