"""The child that holds the model: llama.cpp's own server on a Unix socket, under a hard memory limit.

    parent --- {"gguf": ..., "runtime": {...}, "socket": ..., "limit": ...} ---> child, one line on stdin
    parent <-- {"group": ...} or {"watch": bytes}, {"ready": true} ------------- child, lines on stdout

It ends when its stdin closes. What llama.cpp says of errors goes to stderr, a file; nothing else does, so
that no string of the model's can pass for an error.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from tenth.core import children
from tenth.core.jobs import Event
from tenth.core.records import Record, Runtime
from tenth.runtime import limits

_ERRORS = 1  # llama.cpp's verbosity
_STACKS = 512 << 20  # bytes of address space for the threads' stacks, of which next to nothing is used
_FAILED = 3


class Orders(Record):
    """What the child is told. limit: bytes above what the interpreter holds before llama.cpp is loaded."""

    gguf: Path
    runtime: Runtime
    socket: Path
    key: str
    alias: str
    limit: int


def main() -> None:
    """The child's whole life: read the orders, shut itself in, load, say that it is ready, end with stdin."""
    children.restrain()
    orders = Orders.model_validate_json(sys.stdin.buffer.readline())
    announce = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # llama.cpp may print; our answers must stay alone on the old stdout

    def tell(event: Event) -> None:
        with suppress(OSError):
            announce.write(json.dumps(event).encode() + b"\n")
            announce.flush()

    threading.Thread(target=_end_with_stdin, daemon=True).start()
    _hold(orders.limit, tell)
    import xllamacpp

    try:
        server = xllamacpp.Server(_params(xllamacpp, orders))
    except (RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(_FAILED)
    tell({"ready": bool(server.listening_address)})
    threading.Event().wait()


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)  # nothing to save, and the server's own shutdown would wait for open streams


def _hold(limit: int, tell: Any) -> None:
    """Limit this process: by a cgroup, else by address space for data, and by the parent, who looks."""
    start = limits.baseline()
    group = limits.limit_memory(limit + start.total)
    if group:
        tell(group.event())
        return
    with suppress(ImportError, OSError, ValueError, KeyError):
        import resource

        most = limits.data_size() + limit + _STACKS
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    tell({"watch": start.total + limit})  # from outside: llama.cpp keeps Python waiting while it loads


def _params(xllamacpp: ModuleType, orders: Orders) -> Any:
    """llama.cpp's settings: the plan's, and nothing that could hold more or reach further."""
    runtime = orders.runtime
    params = xllamacpp.CommonParams()
    params.model.path = str(orders.gguf)
    params.model_alias = {orders.alias}
    params.hostnames = [str(orders.socket)]
    params.api_keys = [orders.key]
    params.n_threads_http = 4  # the front asks for no more at a time
    params.ui = False
    params.offline = True
    params.endpoint_slots = True  # tells the parent whether it works or is stuck
    params.verbosity = _ERRORS
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
