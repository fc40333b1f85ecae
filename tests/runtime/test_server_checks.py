"""What may reach the model's server: heads of HTTP, hosts and origins, bodies, grammars and schemas."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenth.runtime.server import checks, grammar, wire
from tenth.runtime.server.front import Access, names_of
from tenth.runtime.server.wire import RefusedError

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HEAD += b"Content-Length: 2\r\n"


def head(*lines: bytes) -> wire.Head:
    return wire.parse_head(HEAD + b"".join(line + b"\r\n" for line in lines) + b"\r\n")


def status(call: Any, *words: Any) -> int:
    """The status that a request is refused with; 0 where it is not."""
    try:
        call(*words)
    except RefusedError as refused:
        return int(json.loads(refused.body())["error"]["code"])
    return 0


def test_a_head_is_read() -> None:
    read = head(b"X-Two: a", b"X-Two: b")
    assert (read.method, read.path, read.newest, read.stays) == ("POST", "/v1/completions", True, True)
    assert read.length(2) == 2
    assert read.is_json()
    assert wire.parse_head(b"GET /props?x=1 HTTP/1.0\r\n\r\n").path == "/props"


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/2\r\n\r\n",
        b"GET http://127.0.0.1/ HTTP/1.1\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET /\n HTTP/1.1\r\nHost: a\r\n\r\n",
        HEAD + b" folded\r\n\r\n",
        HEAD + b"Host: evil.example\r\n\r\n",
        HEAD + b"Content-Length: 3\r\n\r\n",
        HEAD + b"Bad Name: 1\r\n\r\n",
        HEAD + b"X: a\rb\r\n\r\n",
        HEAD + b"nothing\r\n\r\n",
    ],
)
def test_an_ambiguous_head_is_refused(raw: bytes) -> None:
    assert status(wire.parse_head, raw) == 400


def test_a_body_has_a_length_within_bounds() -> None:
    assert status(head(b"Transfer-Encoding: chunked").length, 9) == 411
    assert status(head().length, 1) == 413
    for length in (b"-1", b"1e3", b"0x10", b"1 2", "²".encode("latin-1"), b"9" * 40):
        raw = b"POST / HTTP/1.1\r\nContent-Length: " + length + b"\r\n\r\n"
        assert status(wire.parse_head(raw).length, 10) == 400


@given(st.binary(max_size=400))
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    with contextlib.suppress(RefusedError):
        wire.parse_head(raw + b"\r\n\r\n")
    with contextlib.suppress(RefusedError):
        wire.parse_head(HEAD + raw + b"\r\n\r\n")
    with contextlib.suppress(RefusedError):
        checks.checked(raw)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["localhost:8080"], 0),
        (["LOCALHOST."], 0),
        (["127.0.0.1:8080"], 0),
        (["127.9.9.9"], 0),
        (["[::1]:8080"], 0),
        (["evil.example:8080"], 403),
        (["localhost.evil.example"], 403),
        (["127.0.0.1.nip.io"], 403),
        (["192.168.1.5"], 403),
        (["0.0.0.0"], 403),
        (["2130706433"], 403),
        (["127.1"], 403),
        (["user@localhost"], 403),
        ([""], 403),
        (["localhost:8080", "Origin: http://localhost:8080"], 0),
        (["localhost:8080", "Origin: http://localhost:3000"], 403),
        (["localhost:8080", "Origin: https://evil.example"], 403),
        (["localhost:8080", "Origin: null"], 403),
        (["localhost:8080", "Origin: http://localhost:8080.evil.example"], 403),
        (["localhost:8080", "Sec-Fetch-Site: cross-site"], 403),
        (["localhost:8080", "Sec-Fetch-Site: same-site"], 403),
        (["localhost:8080", "Sec-Fetch-Site: none"], 0),
    ],
)
def test_only_this_machine_and_its_own_pages_may_ask(lines: list[str], expected: int) -> None:
    raw = "".join(f"{line}\r\n" for line in ("GET /v1/models HTTP/1.1", f"Host: {lines[0]}", *lines[1:]))
    assert status(Access().check, wire.parse_head(raw.encode() + b"\r\n")) == expected
    assert status(Access().check, wire.parse_head(b"GET /v1/models HTTP/1.1\r\n\r\n")) == 403


def test_off_loopback_addresses_and_the_machines_own_names_are_known() -> None:
    access = Access(False, names_of("box.lan"), "k" * 16)
    for host, expected in (("192.168.1.5:80", 0), ("box.lan", 0), ("evil.example", 403)):
        raw = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        assert status(access.check, wire.parse_head(raw)) == expected


def test_a_key_comes_as_bearer_or_as_anthropics_clients_send_it() -> None:
    access = Access(key="secret")
    for line, expected in (
        (b"Authorization: Bearer secret", 0),
        (b"authorization: bearer secret", 0),
        (b"X-Api-Key: secret", 0),
        (b"Authorization: Bearer secreT", 401),
        (b"Authorization: Basic secret", 401),
        (b"Authorization: Bearer", 401),
        (b"Authorization: Bearer s\xe9cret", 401),
        (b"X-Other: secret", 401),
    ):
        assert status(access.check_key, head(line)) == expected


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"]
)
def test_what_a_page_may_send_unasked_is_no_json(kind: str) -> None:
    raw = f"POST / HTTP/1.1\r\nContent-Type: {kind}\r\nContent-Length: 2\r\n\r\n".encode()
    assert not wire.parse_head(raw).is_json()


def test_bodies_pass_as_they_mean() -> None:
    body = {"prompt": "caf\u00e9 \U0001f600", "stop": ["\n"], "temperature": 0.5, "seed": -1}
    assert json.loads(checks.checked(json.dumps(body).encode())) == body
    assert json.loads(checks.checked(b'{"prompt": "a", "prompt": "b"}')) == {"prompt": "b"}, "one meaning"


DEEP: Any = []
for _ in range(100):
    DEEP = [DEEP]
NESTED: Any = {"type": "string"}
for _ in range(40):
    NESTED = {"type": "array", "items": NESTED}


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"1",
        b"{",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 99999999999999999999}',
        b'{"a": "\xff"}',
        b"[" * 60_000,
        b'{"a":' * 60_000,
        json.dumps({"messages": DEEP}).encode(),
        json.dumps({"grammar": "root ::= " + "(" * 30_000}).encode(),
        json.dumps({"grammar": "root ::= " + "a" * 40_000}).encode(),
        json.dumps({"grammar": 'root ::= "a"{1000000}'}).encode(),
        json.dumps({"grammar": 'root ::= ("a"{900} ){900} ' * 20 + '"b"{900}' * 20}).encode(),
        json.dumps({"json_schema": NESTED}).encode(),
        json.dumps({"response_format": {"type": "json_schema", "json_schema": {"schema": NESTED}}}).encode(),
        json.dumps({"tools": [{"function": {"parameters": NESTED}}]}).encode(),
        json.dumps({"tools": [{"input_schema": NESTED}]}).encode(),
        json.dumps({"text": {"format": {"schema": NESTED}}}).encode(),
        json.dumps({"json_schema": {"type": "string", "maxLength": 10**9}}).encode(),
        json.dumps({"json_schema": {"type": "string", "pattern": "(" * 200}}).encode(),
        json.dumps({"json_schema": {"type": "string", "pattern": "a{99999}"}}).encode(),
        json.dumps({"json_schema": {"enum": list(range(9000))}}).encode(),
        b'{"grammar_triggers": []}',
        b'{"grammar_lazy": true}',
        b'{"lora": []}',
        b'{"id_slot": 0}',
        b'{"speculative.n_max": 4}',
        b'{"n_probs": 100000}',
        b'{"top_logprobs": 151936}',
        b'{"n": 1000}',
        b'{"dry_penalty_last_n": 2147483647}',
        json.dumps({"stop": ["a"] * 1000}).encode(),
        json.dumps({"samplers": ["top_k"] * 1000}).encode(),
        json.dumps({"prompt": ["a"] * 1000}).encode(),
        json.dumps({"logit_bias": [[1, 1]] * 5000}).encode(),
    ],
)
def test_bodies_that_ask_for_too_much_are_refused(body: bytes) -> None:
    assert status(checks.checked, body) == 400


def test_grammars_and_schemas_that_people_write_pass() -> None:
    grammar.check_grammar(
        'root ::= ("(" | [)(] | "\\"(")* item{2,5} # ((((((\nitem ::= ' + "(" * 20 + '"a"' + ")" * 20
    )
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 80, "pattern": "^[a-z]{1,80}$"},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 10},
            "inner": {"$ref": "#/$defs/inner"},
        },
        "$defs": {"inner": {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": -(10**12)}]}},
    }
    grammar.check_schema(schema)
