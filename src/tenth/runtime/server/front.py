"""The front of the server: what other programs talk to. It holds no model, and hands on what it has checked.

Everything is bounded: who may ask, bytes of a request, seconds to send it, connections, requests at work.
What is over a bound gets one JSON error. While too many connections are open that never finish their request,
the oldest of these make room.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tenth.runtime.server import checks, wire
from tenth.runtime.server.engine import Engine, Flight
from tenth.runtime.server.wire import Head, RefusedError

MAX_CONNECTIONS = 128
HEAD_SECONDS = 10  # to send a request's head
IDLE_SECONDS = 60  # before the next request of a connection
SLOWEST = 10_000  # bytes/s at which a body must arrive
SEND_SECONDS = 60  # for a reader to take what is sent
STARTING_SECONDS = 60  # that a request waits for a model that is started again
_BLOCK = 64 << 10  # bytes
_QUICK = 2  # requests beside the one that writes text
_GONE = (ConnectionError, asyncio.IncompleteReadError, EOFError)


@dataclass(frozen=True)
class Access:
    """Who may ask. names: this machine's in Host, for an address off loopback. key: "" if none is needed."""

    loopback: bool = True
    names: frozenset[str] = frozenset()
    key: str = ""

    def check(self, head: Head) -> None:
        """RefusedError for a request that names another host (DNS rebinding), or a page of another site."""
        host = head.headers.get("host", "")
        name = wire.host_name(host)
        known = wire.is_loopback(name)
        if not self.loopback:
            known = known or wire.is_address(name) or name in self.names
        if not known:
            raise RefusedError(403, "this server does not answer to that name (Host)", "permission_error")
        origin = head.headers.get("origin")
        site = head.headers.get("sec-fetch-site", "none")
        if (origin is not None and origin.lower() != f"http://{host.lower()}") or site not in (
            "none",
            "same-origin",
        ):
            raise RefusedError(403, "pages of another origin may not ask this server", "permission_error")

    def check_key(self, head: Head) -> None:
        """RefusedError without the key, compared in a time that tells nothing."""
        given = head.headers.get("authorization", "")
        scheme, _, word = given.partition(" ")
        word = word.strip() if scheme.lower() == "bearer" else head.headers.get("x-api-key", "")
        if self.key and not hmac.compare_digest(word.encode("latin-1"), self.key.encode()):
            raise RefusedError(401, "give the key: Authorization: Bearer KEY", "authentication_error")


@dataclass(eq=False)
class _Client:
    """A connection. busy: its request was read whole; others may have to make room."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    busy: bool = False

    async def send(self, data: bytes) -> None:
        """Send; TimeoutError where the other side does not read."""
        self.writer.write(data)
        async with asyncio.timeout(SEND_SECONDS):
            await self.writer.drain()


@dataclass
class _Answer:
    """The head of the child's answer."""

    status: int
    kind: str  # of its content
    length: int | None  # bytes; None where it comes in chunks


@dataclass
class Front:
    """A server in front of a model."""

    engine: Engine
    access: Access
    _clients: dict[_Client, None] = field(default_factory=dict)  # oldest first
    _writing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    _quick: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_QUICK))
    _bodies: int = 0  # bytes of all bodies at hand

    async def listen(self, sockets: list[socket.socket]) -> None:
        """Serve until cancelled."""
        servers = [
            await asyncio.start_server(self._client, sock=sock, limit=wire.MAX_HEAD, backlog=MAX_CONNECTIONS)
            for sock in sockets
        ]
        try:
            await asyncio.gather(*(server.serve_forever() for server in servers))
        finally:
            for client in list(self._clients):
                client.writer.transport.abort()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its first byte to its last."""
        client = _Client(reader, writer)
        if not self._make_room():
            writer.write(_whole(503, wire.error_body(503, "too many requests at once", "unavailable_error")))
            writer.close()
            return
        self._clients[client] = None
        try:
            while await self._serve_one(client):
                client.busy = False
        except (*_GONE, TimeoutError, OSError):
            pass
        finally:
            self._clients.pop(client, None)
            writer.close()

    def _make_room(self) -> bool:
        """Whether one more connection may stay; one that has not finished its request may have to go."""
        if len(self._clients) < MAX_CONNECTIONS:
            return True
        for client in self._clients:
            if not client.busy:
                del self._clients[client]
                client.writer.transport.abort()
                return True
        return False

    async def _serve_one(self, client: _Client) -> bool:
        """Read and answer one request; whether the connection stays open."""
        try:
            head = await self._read_head(client)
            if head is None:
                return False
            self.access.check(head)
            if head.path in checks.HEALTH and head.method in ("GET", "HEAD"):
                await client.send(self._health(head))
                return head.stays
            self.access.check_key(head)
            _check_route(head)
            body = await self._read_body(client, head)
        except RefusedError as refused:
            await client.send(_whole(refused.status, refused.body()))
            await _drain(client)
            return False
        client.busy = True
        self._bodies += len(body)
        try:
            return await self._forward(client, head, body)
        finally:
            self._bodies -= len(body)

    async def _read_head(self, client: _Client) -> Head | None:
        """The next request's head; None where there is none."""
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                first = await client.reader.readexactly(1)
            async with asyncio.timeout(HEAD_SECONDS):
                return wire.parse_head(first + await client.reader.readuntil(b"\r\n\r\n"))
        except asyncio.LimitOverrunError:
            raise RefusedError(431, f"the headers are longer than {wire.MAX_HEAD} bytes") from None
        except (*_GONE, TimeoutError):
            return None

    async def _read_body(self, client: _Client, head: Head) -> bytes:
        """The checked body; empty for a GET."""
        most = self.engine.largest_body
        length = head.length(most if head.method == "POST" else 0)
        if head.method != "POST":
            return b""
        if not head.is_json():
            raise RefusedError(415, "the body must be sent as Content-Type: application/json")
        if self._bodies + length > 4 * most:
            raise RefusedError(503, "too many requests at once", "unavailable_error")
        if head.headers.get("expect", "").lower() == "100-continue":
            await client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            async with asyncio.timeout(HEAD_SECONDS + length / SLOWEST):
                raw = await client.reader.readexactly(length)
        except TimeoutError:
            raise RefusedError(408, "the body did not arrive in time") from None
        return checks.checked(raw)

    def _health(self, head: Head) -> bytes:
        if self.engine.ready:
            return _whole(200, b'{"status": "ok"}', head)
        return _whole(503, wire.error_body(503, "the model is loading", "unavailable_error"), head)

    async def _forward(self, client: _Client, head: Head, body: bytes) -> bool:
        """Let the child answer, one text at a time; whether the connection stays open."""
        turn = self._writing if head.path in checks.GENERATING else self._quick
        async with _while_there(client), turn:
            if not await asyncio.to_thread(self.engine.wait_ready, STARTING_SECONDS):
                why = self.engine.reason or "the model is loading"
                await client.send(_whole(503, wire.error_body(503, why, "unavailable_error"), head))
                return head.stays
            relay = _Relay(client, head)
            with self.engine.asked() as flight:
                try:
                    async with self._child(head, body) as (reader, answer):
                        await relay.answer(reader, answer, flight)
                except (*_GONE, OSError, ValueError) as error:
                    if isinstance(error, TimeoutError) or client.writer.transport.is_closing():
                        raise
                    why = await asyncio.to_thread(self.engine.why)
                    await relay.broken(f"{why}; the model is started again")
            return relay.stays

    @contextlib.asynccontextmanager
    async def _child(self, head: Head, body: bytes) -> AsyncIterator[tuple[asyncio.StreamReader, _Answer]]:
        """Ask the child; its answer is read from the stream. ConnectionError where it dies."""
        reader, writer = await asyncio.open_unix_connection(str(self.engine.socket), limit=_BLOCK)
        lines = [
            f"{'POST' if head.method == 'POST' else 'GET'} {head.path} HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {self.engine.key}",
            "Connection: close",
        ]
        if head.method == "POST":
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        try:
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("ascii") + body)
            await writer.drain()
            yield reader, _read_answer(await reader.readuntil(b"\r\n\r\n"))
        finally:
            writer.transport.abort()


@dataclass
class _Relay:
    """Passes the child's answer on to a client."""

    client: _Client
    head: Head
    begun: bool = False
    stays: bool = False
    stream: bool = False  # of server-sent events

    async def answer(self, reader: asyncio.StreamReader, answer: _Answer, flight: Flight) -> None:
        """Pass it on as it comes."""
        flight.answered = True
        headers = {"Content-Type": answer.kind}
        chunked = answer.length is None and self.head.newest
        self.stays = self.head.stays and (chunked or answer.length is not None)
        if answer.length is not None:
            headers["Content-Length"] = str(answer.length)
        elif chunked:
            headers["Transfer-Encoding"] = "chunked"
        if not self.stays:
            headers["Connection"] = "close"
        self.stream = answer.kind.startswith("text/event-stream")
        self.begun = True
        await self.client.send(wire.answer_head(answer.status, headers))
        if self.head.method == "HEAD":
            return
        async for block in _blocks(reader, answer.length):
            await self.client.send(_chunk(block) if chunked else block)
        if chunked:
            await self.client.send(b"0\r\n\r\n")

    async def broken(self, why: str) -> None:
        """Say that the child died: as an answer, or as the stream's last event."""
        body = wire.error_body(503, why, "unavailable_error")
        if not self.begun:
            await self.client.send(_whole(503, body, self.head))
            self.stays = self.head.stays
            return
        self.stays = False
        if self.stream:
            event = b"data: " + body + b"\n\n"
            await self.client.send(_chunk(event) + b"0\r\n\r\n" if self.head.newest else event)


def _check_route(head: Head) -> None:
    """RefusedError for a path that is not served, or not in this way."""
    posts = head.path in checks.GENERATING or head.path in checks.QUICK
    if not posts and head.path not in checks.READING:
        raise RefusedError(404, "there is nothing under this path", "not_found_error")
    if head.method not in (("POST",) if posts else ("GET", "HEAD")):
        raise RefusedError(405, f"{head.method} is not for this path")


def _whole(status: int, body: bytes, head: Head | None = None) -> bytes:
    """An answer of JSON; after which the connection ends where there is no good request to follow."""
    headers = {"Content-Type": "application/json; charset=utf-8", "Content-Length": str(len(body))}
    if head is None or not head.stays:
        headers["Connection"] = "close"
    nothing = head is not None and head.method == "HEAD"
    return wire.answer_head(status, headers) + (b"" if nothing else body)


def _chunk(block: bytes) -> bytes:
    return f"{len(block):x}\r\n".encode() + block + b"\r\n"


async def _drain(client: _Client) -> None:
    """Let a refused sender read the answer: a connection closed on unread bytes would be reset."""
    with contextlib.suppress(*_GONE, TimeoutError):
        client.writer.write_eof()
        async with asyncio.timeout(1):
            for _ in range(64):
                if not await client.reader.read(_BLOCK):
                    return


@contextlib.asynccontextmanager
async def _while_there(client: _Client) -> AsyncIterator[None]:
    """Ends the block with ConnectionError when the client leaves, so that nothing is written for nobody."""
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while not client.reader.at_eof() and not client.writer.transport.is_closing():
            await asyncio.sleep(0.25)
        left = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not left:
            raise
        task.uncancel()
        raise ConnectionError("the client left") from None
    finally:
        watcher.cancel()


def _read_answer(raw: bytes) -> _Answer:
    """The head of the child's answer; ValueError for anything else."""
    first, *lines = raw.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = headers.get("content-length")
    kind = headers.get("content-type", "application/json; charset=utf-8")
    return _Answer(int(first.split(" ")[1]), kind, None if length is None else int(length))


async def _blocks(reader: asyncio.StreamReader, length: int | None) -> AsyncIterator[bytes]:
    """The child's body piece by piece; IncompleteReadError where it breaks off."""
    if length is None:
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
        return
    while length:
        block = await reader.readexactly(min(length, _BLOCK))
        length -= len(block)
        yield block


def names_of(host: str) -> frozenset[str]:
    """The names that Host may give for an address off loopback."""
    own = socket.gethostname().lower()
    return frozenset({host.lower(), own, f"{own}.local"})
