"""The few words of HTTP/1.1 that the front understands (RFC 9112), read strictly, and the answers it writes.

What is ambiguous between two readers of HTTP is refused: folded lines, repeated headers that decide
something, bodies in chunks, control characters.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

MAX_HEAD = 16 << 10  # bytes of the request line and all headers
_MAX_HEADERS = 100
_REQUEST = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]{0,2047}) HTTP/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_ONCE = {
    "host",
    "origin",
    "content-length",
    "content-type",
    "authorization",
    "x-api-key",
    "transfer-encoding",
}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::(\d{1,5}))?")
_JSON = re.compile(r"application/json\s*(?:;\s*charset=\"?utf-8\"?\s*)?", re.I)


class RefusedError(Exception):
    """A request that is not served: the status, and a sentence for the one who asks."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind

    def body(self) -> bytes:
        """The error as JSON, as llama.cpp and OpenAI's clients know it."""
        return error_body(self.status, self.message, self.kind)


def error_body(status: int, message: str, kind: str) -> bytes:
    """An error as JSON."""
    return json.dumps({"error": {"code": status, "message": message, "type": kind}}).encode()


@dataclass(frozen=True)
class Head:
    """A request without its body. path: without the query. headers: by name in small letters."""

    method: str
    path: str
    newest: bool  # HTTP/1.1, and not 1.0
    headers: Mapping[str, str]

    @property
    def stays(self) -> bool:
        """Whether the connection may serve another request afterwards."""
        return self.newest and "close" not in self.headers.get("connection", "").lower()

    def length(self, most: int) -> int:
        """The size of the body in bytes; RefusedError where it is not said, or more than `most`."""
        if "transfer-encoding" in self.headers:
            raise RefusedError(411, "send the body with a Content-Length, not in chunks")
        text = self.headers.get("content-length")
        if text is None:
            if self.method == "POST":
                raise RefusedError(411, "a body needs a Content-Length")
            return 0
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise RefusedError(400, "Content-Length is not a number")
        if int(text) > most:
            raise RefusedError(
                413,
                f"the body is larger than the {most} bytes that this model may be sent",
                "exceed_context_size_error",
            )
        return int(text)

    def is_json(self) -> bool:
        """Whether the body is said to be JSON, which no page of another site may send unasked."""
        return _JSON.fullmatch(self.headers.get("content-type", "").strip()) is not None


def parse_head(raw: bytes) -> Head:
    """A request's head, from its first byte to the empty line; RefusedError for anything else."""
    lines = raw.split(b"\r\n")
    request = _REQUEST.fullmatch(lines[0])
    if request is None:
        raise RefusedError(400, "this is not a request of HTTP/1.1")
    if len(lines) > _MAX_HEADERS + 3:
        raise RefusedError(431, f"more than {_MAX_HEADERS} headers")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        if not line:
            break
        header = _HEADER.fullmatch(line)
        if header is None:
            raise RefusedError(400, "a header is malformed")
        name, value = header[1].decode("ascii").lower(), header[2].decode("latin-1").strip()
        if name in headers and name in _ONCE:
            raise RefusedError(400, f"the header {name} is given twice")
        headers[name] = value
    path = request[2].decode("ascii").split("?", 1)[0]
    return Head(request[1].decode("ascii"), path, request[3] == b"1", headers)


def host_name(host: str) -> str:
    """The name or address in a Host header or an origin, without its port; "" for nonsense."""
    match = _HOST.fullmatch(host)
    if match is None:
        return ""
    return match[1].strip("[]").lower().rstrip(".")


def is_loopback(name: str) -> bool:
    """Whether a name means this machine alone, whatever a name server says."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_address(name: str) -> bool:
    """Whether a name is an IP address, which no name server can turn into another."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def answer_head(status: int, headers: Mapping[str, str]) -> bytes:
    """The first lines of an answer. No header lets a page of another origin read it."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}"]
    safe = {"Server": "tenth", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    lines += [f"{name}: {value}" for name, value in {**safe, **headers}.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
