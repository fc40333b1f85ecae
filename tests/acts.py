"""What the child processes of the tests do."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tenth.core.errors import BudgetError, InputError
from tenth.core.jobs import Emit


def answer(emit: Emit, value: Any, threads: int = 0) -> Any:
    print("noise from Python", flush=True)
    os.write(1, b"noise from native code\n")
    emit({"step": 1})
    emit({"step": 2})
    return {"value": value, "omp": os.environ.get("OMP_NUM_THREADS"), "extra": os.environ.get("EXTRA")}


def refuse(emit: Emit, kind: str) -> None:
    if kind == "budget":
        raise BudgetError("too small", {"total": 3})
    if kind == "input":
        raise InputError("no such thing")
    raise ZeroDivisionError("a mistake of ours")


def unspeakable(emit: Emit) -> Any:
    return object()


def abort(emit: Emit) -> None:
    os.write(2, b"an earlier line\nGGML_ASSERT(reason) failed\n")
    os.abort()


def leave(emit: Emit) -> None:
    os._exit(7)


def hang(emit: Emit) -> None:
    emit({"pid": os.getpid()})
    time.sleep(60)


def core_limit(emit: Emit) -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_CORE)[0]


def encode_without_importance(emit: Emit) -> None:
    """ggml asserts that this type comes with importance weights."""
    import numpy as np

    from tenth.core.ggml import storage_type
    from tenth.runtime import llama as native

    weights, out = np.ones((1, 256), np.float32), np.empty(1000, np.uint8)
    native.library().ggml_quantize_chunk(
        storage_type("IQ2_XS").number, weights.ctypes.data, out.ctypes.data, 0, 1, 256, None
    )


def open_file(emit: Emit, path: str) -> int:
    from tenth.runtime import llama as native

    with native.Session.open(path, n_ctx=64, threads=1) as session:
        session.decode([1, 2], 0)
        return session.n_vocab


def grow_in_cgroup(emit: Emit, limit: int, size: int) -> bool:
    """Allocate and touch `size` bytes in a group that may hold `limit`."""
    from tenth.runtime import limits

    group = limits.limit_memory(limit)
    if group is None:
        return False
    emit({"group": str(group.path), "name": group.name})
    block = bytearray(size)
    emit({"held": len(block)})
    return True


def leave_network(emit: Emit) -> dict[str, Any]:
    import socket

    from tenth.runtime import limits

    said = limits.isolate_network()
    try:
        socket.create_connection(("192.0.2.1", 9), timeout=2).close()
    except OSError as error:
        return {"said": said, "error": error.errno}
    return {"said": said, "error": None}


def resident_growth(emit: Emit) -> int:
    from tenth.runtime import limits

    before = limits.resident(exact=True)
    block = b"x" * 20_000_000
    after = limits.resident(exact=True)
    return after.anonymous - before.anonymous if block else 0


def call_home(emit: Emit, native: bool) -> int:
    """Try one TCP connection to an address that is no one's, by Python or past it."""
    import socket

    with socket.socket() as line:
        if not native:
            return line.connect_ex(("192.0.2.1", 9))
        import ctypes

        address = (2).to_bytes(2, "little") + bytes([0, 9, 192, 0, 2, 1]) + bytes(8)
        return ctypes.CDLL(None).connect(line.fileno(), address, len(address))


def open_in_vain_and_for_real(emit: Emit, path: str) -> str:
    try:
        Path(path + ".absent").read_text()
    except OSError:
        return Path(path).read_text()
    return ""


def misbehave(emit: Emit, how: str, path: str) -> str:
    """In a cell: what came of it."""
    import signal
    import socket
    import subprocess
    import sys
    import threading

    try:
        if how == "fork":
            while True:
                os.fork()
        elif how == "exec":
            subprocess.run([sys.executable, "-c", ""], check=True)
        elif how == "socket":
            socket.socket()
        elif how == "write":
            Path(path, "written").write_text("x")
        elif how == "fill":
            with Path(path, "filled").open("wb") as file:
                while True:
                    file.write(bytes(1 << 20))
        elif how == "read":
            return Path(path).read_text()
        elif how == "kill":
            os.kill(os.getppid(), signal.SIGTERM)
        elif how == "hang":
            while True:
                pass
        elif how == "memory":
            held = bytearray(1)
            while True:
                held += bytes(1 << 24)
        elif how == "thread":
            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()
    except OSError as error:
        return type(error).__name__ + f" {error.errno}"
    return "done"


def burn(emit: Emit, seconds: float) -> None:
    from tenth.runtime import lockdown

    lockdown.shut(seconds=seconds)
    while True:
        pass
