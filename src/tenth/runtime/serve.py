"""Run a finished bundle as an OpenAI-compatible HTTP server, for the time of a with statement.

The front (server/front.py) runs in a thread of this process; the model in a child (server/engine.py), which
is under the plan's memory limit, and is started again when it dies.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tenth.core.errors import InputError, OutputError
from tenth.runtime.bundle import Bundle
from tenth.runtime.server.engine import Engine
from tenth.runtime.server.front import Access, Front, names_of

HOST = "127.0.0.1"
SHORTEST_KEY = 16  # letters, where other machines may ask


@dataclass(frozen=True)
class Running:
    """A server that answers; `url` is its address without a path."""

    url: str
    port: int
    local: bool  # listens on loopback only
    engine: Engine

    def check(self) -> None:
        """NativeError when the model is given up."""
        self.engine.check()

    def wait(self) -> None:
        """Block while it serves; NativeError when the model is given up."""
        self.engine.wait()


@contextmanager
def running(bundle: Bundle, port: int = 0, key: str = "", host: str = HOST) -> Iterator[Running]:
    """Serve a bundle for the duration of the block.

    Port 0 takes a free one; with key "" no request needs a key, which is for loopback only (InputError).
    OutputError when the address cannot be listened on; NativeError when the model does not load.
    """
    listening = _listen(host, port, key)
    with listening:
        address, taken = listening.getsockname()[:2]
        loopback = ipaddress.ip_address(address).is_loopback
        shown = f"[{address}]" if ":" in address else address
        with Engine(bundle) as engine:
            front = Front(engine, Access(loopback, names_of(host), key))
            with _in_background(front, listening):
                yield Running(f"http://{shown}:{taken}", taken, loopback, engine)


def _listen(host: str, port: int, key: str) -> socket.socket:
    """A socket that listens; InputError for an address or a key that cannot be."""
    if not key.isascii() or not key.isprintable() or key.strip() != key:
        raise InputError("the key holds what cannot be sent in a header; give printable ASCII without spaces")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host!r} is no address of this machine: {error}") from None
    if not ipaddress.ip_address(address[0]).is_loopback and len(key) < SHORTEST_KEY:
        raise InputError(
            f"--host {host} can be reached from other machines; give an --api-key of {SHORTEST_KEY} letters"
            " or more, such as what this prints: openssl rand -hex 16"
        )
    listening = socket.socket(family, kind)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        raise OutputError(f"cannot listen on {host}:{port}: {error}; choose another --port") from error
    return listening


@contextmanager
def _in_background(front: Front, listening: socket.socket) -> Iterator[None]:
    """The front in a thread with an event loop of its own, until the end of the block."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def serve() -> None:
        task = asyncio.ensure_future(front.listen([listening.dup()]))
        loop.call_soon(ready.set)
        tasks.append(task)
        try:
            await task
        except asyncio.CancelledError:
            return

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(serve())
            others = asyncio.all_tasks(loop)
            for other in others:
                other.cancel()
            loop.run_until_complete(asyncio.gather(*others, return_exceptions=True))
        finally:
            loop.close()

    tasks: list[asyncio.Future[None]] = []
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(tasks[0].cancel)
        thread.join()
