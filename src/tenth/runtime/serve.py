"""Run a finished bundle: a child process holds llama.cpp's own HTTP server on loopback, set as the plan says.

The child is apart because llama.cpp aborts its process on some errors; its death becomes one line here. It
gets its orders as one JSON line on stdin, answers with one on stdout, and ends when its stdin closes, so that
it cannot outlive its parent. llama.cpp's log goes to a temporary file, whose last line explains a failure.

    parent --- {"gguf": ..., "runtime": {...}, "port": ...} ---> child
    parent <-- {"url": "http://127.0.0.1:PORT"} ---------------- child
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import IO, Any

from tenth.core.errors import NativeError, OutputError
from tenth.core.records import Runtime
from tenth.runtime.bundle import Bundle

HOST = "127.0.0.1"


@dataclass
class Running:
    """The child that serves; `url` is its address without a path."""

    url: str
    port: int
    key: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def check(self) -> None:
        """NativeError when the child has ended."""
        if self.process.poll() is not None:
            raise NativeError(_death(self.process.returncode, self.log))

    def wait(self) -> None:
        """Block while the child serves; NativeError when it ends by itself."""
        self.process.wait()
        self.check()


@contextmanager
def running(bundle: Bundle, port: int = 0, key: str = "") -> Iterator[Running]:
    """Serve a bundle on loopback for the duration of the block.

    Port 0 takes a free one; with key "" no request needs a key.
    OutputError when the port is taken; NativeError when the model does not load.
    """
    if port:
        _check_free(port)
    orders = {
        "gguf": str(bundle.gguf.resolve()),
        "runtime": bundle.plan.runtime.model_dump(),
        "port": port,
        "key": key,
        "alias": bundle.plan.model or "tenth",
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from tenth.runtime.serve import child; child()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the parent, which then closes the child's stdin
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(orders).encode() + b"\n")
                process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                raise NativeError(_death(process.wait(), log))
            url = str(json.loads(answer)["url"])
            yield Running(url, int(url.rsplit(":", 1)[1]), key, process, log)
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def child() -> None:
    """The child's whole life: read the orders, load, announce the address, end with stdin."""
    orders = json.loads(sys.stdin.buffer.readline())
    announce = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # llama.cpp may print; our answer must stay alone on the old stdout
    import xllamacpp

    try:
        server = xllamacpp.Server(_params(xllamacpp, orders))
    except (RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(3)
    announce.write(json.dumps({"url": server.listening_address}).encode() + b"\n")
    announce.flush()
    sys.stdin.buffer.read()
    os._exit(0)  # nothing to save, and the server's own shutdown would wait for open streams


def _params(xllamacpp: ModuleType, orders: Mapping[str, Any]) -> Any:
    runtime = Runtime.model_validate(orders["runtime"])
    params = xllamacpp.CommonParams()
    params.model.path = orders["gguf"]
    params.model_alias = {orders["alias"]}
    params.hostnames = [HOST]
    params.port = orders["port"]
    params.cors_origins = "localhost"  # a page of the web must not read from a person's local model
    params.api_keys = [orders["key"]] if orders["key"] else []
    params.ui = False
    params.offline = True
    params.n_ctx = runtime.n_ctx
    params.n_batch = params.n_ubatch = runtime.n_ubatch
    params.n_parallel = 1
    params.cache_type_k = _ggml_type(xllamacpp, runtime.type_k)
    params.cache_type_v = _ggml_type(xllamacpp, runtime.type_v)
    flash = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = getattr(
        flash, f"LLAMA_FLASH_ATTN_TYPE_{'ENABLED' if runtime.flash_attention else 'DISABLED'}"
    )
    params.no_extra_bufts = not runtime.repack
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP
    params.n_gpu_layers = 0
    params.fit_params = False  # it would change the settings that were proven
    # The budget knows no second copies of past conversations.
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.n_ctx_checkpoints = 0
    if runtime.threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = runtime.threads
    return params


def _ggml_type(xllamacpp: ModuleType, name: str) -> object:
    kind = xllamacpp.ggml_type.__members__.get(f"GGML_TYPE_{name.upper()}")
    if kind is None:
        raise ValueError(f"the plan's KV cache type {name!r} is unknown to llama.cpp")
    return kind


def _check_free(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise OutputError(f"cannot listen on {HOST}:{port}: {error}; choose another --port") from error


def _environment() -> dict[str, str]:
    # Idle OpenMP threads must not burn the cores between tokens. The dropped names steer llama.cpp.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "AIP_"))}
    return kept | {"OMP_WAIT_POLICY": "passive"}


def _death(code: int, log: IO[bytes]) -> str:
    """One line for a child that ended: the signal or status, and the last line that explains it."""
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").splitlines()
    words = ("error", "assert", "fail")
    telling = [line.strip() for line in lines if any(word in line.lower() for word in words)]
    with suppress(ValueError):
        if code < 0:
            return f"llama.cpp died of {signal.Signals(-code).name}: {_last(telling or lines)}"
    return f"llama.cpp could not run the model (status {code}): {_last(telling or lines)}"


def _last(lines: list[str]) -> str:
    return lines[-1][:300] if lines else "it said nothing"
