"""Attacks on `tenth serve` and `tenth chat`: pages of other sites, broken HTTP, greed, bombs, deaths."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from bundles import write_bundle

from attacks.report import attack
from tenth.core.errors import TenthError
from tenth.runtime import bundle, chat, serve
from tenth.runtime.server import checks

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
ROUND = "{{% for {0} in range(3000) %}}"
DOUBLING = "{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
BOMBS = {
    "loops": "".join(map(ROUND.format, "abc")) + "{% endfor %}" * 3,
    "growth": "{% set ns = namespace(x='aaaaaaaa') %}" + DOUBLING + "{{ ns.x }}",
    "output": "{% for a in range(100000000) %}aaaaaaaaaaaa{% endfor %}",
    "a long text": "{{ 'a' * 3000000000 }}",
    "a long list": "{{ range(30000000)|join('aaaaaaaa') }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "depth": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
}
AFTER = 20  # seconds within which an honest request must be answered again
ASKED = {"prompt": "hello", "max_tokens": 2}
NASTY: tuple[object, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        -(2**63),
        1e300,
        -1e300,
        0.5,
        "",
        "a",
        "\x00",
        "\ud7ff" * 99,
        "{" * 999,
    ),
    *(
        [],
        [[]],
        [None],
        [-1],
        [2**31],
        [10**9],
        ["a"] * 60,
        [["a"]],
        {},
        {"a": {}},
        [[1, 2]],
        [["a", False]],
        [{}],
    ),
)
FIELDS = """prompt messages max_tokens n_predict temperature top_k top_p min_p typical_p seed stop stream n
n_probs logprobs top_logprobs logit_bias grammar json_schema response_format tools tool_choice functions
samplers mirostat mirostat_tau mirostat_eta dry_multiplier dry_base dry_allowed_length dry_penalty_last_n
dry_sequence_breakers repeat_penalty repeat_last_n presence_penalty frequency_penalty xtc_probability
xtc_threshold dynatemp_range ignore_eos cache_prompt n_keep n_indent t_max_predict_ms min_keep return_tokens
return_progress timings_per_token chat_template_kwargs reasoning_format reasoning_effort
reasoning_budget_tokens thinking_budget_tokens add_generation_prompt continue_final_message
parallel_tool_calls echo suffix user model stream_options response_fields post_sampling_probs input
instructions content tokens add_special with_pieces input_prefix input_suffix input_extra system text
adaptive_target top_n_sigma verbose reasoning_control reasoning_budget_message""".split()  # noqa: SIM905


@dataclass
class Target:
    """A server that is attacked. peaks: the most that each of its children was seen to hold, bytes."""

    server: serve.Running
    peaks: dict[int, int] = field(default_factory=dict)

    def ask(
        self, path: str = "/v1/completions", body: object = ASKED, seconds: float = 60, **headers: str
    ) -> tuple[int, bytes]:
        """(status, answer) of a POST of JSON; (0, b"") where the connection ends without one."""
        given = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=seconds)
        try:
            connection.request("POST", path, json.dumps(body), given)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()
            self.look()

    def send(self, raw: bytes, seconds: float = 15) -> bytes:
        """What comes back to raw bytes until the connection ends."""
        got = b""
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.server.port), seconds) as sock,
        ):
            with contextlib.suppress(OSError):
                sock.sendall(raw)
            while block := sock.recv(65536):
                got += block
        self.look()
        return got

    def honest(self) -> bool:
        """Whether an honest request is answered, soon."""
        end = time.monotonic() + AFTER
        while time.monotonic() < end:
            if self.ask(seconds=AFTER)[0] == 200:
                return True
            time.sleep(0.2)
        return False

    def look(self) -> None:
        """Take note of what the child holds at most."""
        pid = self.server.engine.pid
        with contextlib.suppress(OSError, StopIteration, ValueError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            held = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
            self.peaks[pid] = max(held, self.peaks.get(pid, 0))


def _pages(target: Target) -> dict[str, bool]:
    """Other hosts, origins and kinds of content, each alone and together."""
    port = target.server.port
    outcomes = {}
    hosts = (
        "evil.example",
        f"evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "0.0.0.0",
        "",
        "a b",
    )
    origins = (
        "http://evil.example",
        "null",
        f"http://localhost:{port + 1}",
        f"https://127.0.0.1:{port}",
        "file://",
    )
    kinds = (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=a",
        "text/plain;json",
        "",
    )
    for host in hosts:
        outcomes[f"Host {host!r}"] = target.ask(Host=host)[0] in (400, 403)
    for origin in origins:
        outcomes[f"Origin {origin}"] = target.ask(Origin=origin)[0] == 403
        outcomes[f"Origin {origin} as text"] = target.ask(Origin=origin, Content_Type="text/plain")[0] == 403
    for kind in kinds:
        outcomes[f"content {kind!r}"] = target.ask(Content_Type=kind)[0] == 415
    for site in ("cross-site", "same-site"):
        outcomes[site] = target.ask(Sec_Fetch_Site=site)[0] == 403
    preflight = "OPTIONS /v1/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n"
    outcomes["preflight"] = b"Access-Control" not in target.send(preflight.encode())
    outcomes["honest"] = target.honest()
    return outcomes


def _broken(target: Target) -> dict[str, bool]:
    """Bytes that are no request, or two in one."""
    post = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    raws = {
        "nothing": b"\r\n\r\n",
        "zeros": bytes(100_000),
        "a long line": b"GET /" + b"a" * 100_000,
        "many headers": post + b"".join(b"X-%d: a\r\n" % n for n in range(2000)) + b"\r\n",
        "TLS": bytes.fromhex("16030100a5010000a10303") + os.urandom(160),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "two lengths": post + b"Content-Length: 2\r\nContent-Length: 200\r\n\r\n{}",
        "chunks and a length": post + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "a negative length": post + b"Content-Length: -1\r\n\r\n{}",
        "a huge length": post + b"Content-Length: 99999999999999\r\n\r\n{}",
        "a folded header": post + b" X: a\r\n\r\n",
        "a proxy's request": b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "CONNECT": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "a path out": b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "slots": b"GET /slots HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "the adapters": b"POST /lora-adapters HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
    }
    outcomes = {}
    for name, raw in raws.items():
        got = target.send(raw)
        outcomes[name] = got == b"" or got.startswith(b"HTTP/1.1 4")
    rng = random.Random(16)
    noise = all(
        got == b"" or got.startswith(b"HTTP/1.1 4")
        for got in (target.send(rng.randbytes(rng.randrange(1, 3000)) + b"\r\n\r\n") for _ in range(50))
    )
    return outcomes | {"50 times noise": noise, "honest": target.honest()}


def _greed(target: Target) -> dict[str, bool]:
    """Bodies that are large, deep, or ask for much."""
    deep: object = []
    schema: object = {"type": "string"}
    for level in range(400):
        deep, schema = [deep], {"type": "array", "items": schema} if level < 200 else schema
    full = target.server.engine.largest_body - 200
    bodies: dict[str, object] = {
        "200,000 parentheses": {**ASKED, "grammar": "root ::= " + "(" * 200_000},
        "20,000 parentheses": {**ASKED, "grammar": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000},
        "a chain of rules": {
            **ASKED,
            "grammar": "root ::= a0\n"
            + "".join(f"a{n} ::= a{n + 1}\n" for n in range(1500))
            + 'a1500 ::= "a"',
        },
        "left recursion": {**ASKED, "grammar": 'root ::= root "a" | root'},
        "empty loops": {**ASKED, "grammar": 'root ::= (("a"?)*)*'},
        "many ways": {**ASKED, "max_tokens": 100, "grammar": "root ::= " + '("a"|"a"|[a-z]*)*' * 60},
        "repetitions": {**ASKED, "grammar": 'root ::= (("a"{900}){900}){900}'},
        "a deep schema": {**ASKED, "json_schema": schema},
        "a schema that refers to itself": {**ASKED, "json_schema": {"$ref": "#"}},
        "a schema of another host": {**ASKED, "json_schema": {"$ref": "http://127.0.0.1:1/a"}},
        "a deep body": {"messages": deep},
        "the longest prompt": {"prompt": "a" * full, "max_tokens": 1},
        "the longest prompt of spaces": {"prompt": " " * full, "max_tokens": 1},
        "the longest prompt of zeros": {"prompt": "\x00" * (full // 6), "max_tokens": 1},
        "many prompts": {"prompt": ["a"] * 60, "max_tokens": 1},
        "more prompts": {"prompt": ["a"] * 6000, "max_tokens": 1},
        "many messages": {"messages": [{"role": "user", "content": "a"}] * (full // 40)},
        "many tools": {"messages": [], "tools": [{"type": "function", "function": {"name": "a"}}] * 1000},
        "all probabilities": {**ASKED, "n_probs": 10**6, "max_tokens": 10**6},
        "no end": {"prompt": "a", "max_tokens": -1, "ignore_eos": True},
        "a negative token": {"prompt": [-1, -(2**31)], "max_tokens": 1},
        "a token beyond": {"prompt": [10**6, 2**31 - 1], "max_tokens": 1},
    }
    outcomes = {}
    for name, body in bodies.items():
        path = "/v1/chat/completions" if "messages" in json.dumps(body)[:20] else "/v1/completions"
        outcomes[name] = target.ask(path, body)[0] in (200, 400, 413, 500, 503) and target.honest()
    raw = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    length = 100_000_000
    sent = raw + b"Content-Length: %d\r\n\r\n" % length + b'{"prompt": "' + b"a" * 10_000_000
    outcomes["100 MB"] = b" 413 " in target.send(sent)[:20]
    return outcomes


def _fields(target: Target) -> dict[str, bool]:
    """Every field with every nasty value, on all paths; the answer may be anything but silence."""
    outcomes = {}
    paths = sorted(checks.GENERATING | checks.QUICK)
    rng = random.Random(16)
    for name in FIELDS:
        answered = True
        for value in NASTY:
            path = rng.choice(paths)
            body: dict[str, object] = {
                "prompt": "a",
                "messages": [{"role": "user", "content": "a"}],
                "content": "a",
            }
            body |= {"max_tokens": 1, "tokens": [1], "input": "a", name: value}
            status = target.ask(path, body, 40)[0]
            answered = answered and (status != 0 or value is None)
        outcomes[name] = answered and target.honest()
    return outcomes


def _connections(target: Target) -> dict[str, bool]:
    """A thousand that never finish, some that send slowly, and some that never read."""
    outcomes = {}
    starts = {"nothing": b"", "half a head": b"POST /v1/completions HTTP/1.1\r\nHost: local"}
    starts["no body"] = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 4000\r\n\r\n{"
    )
    for name, start in starts.items():
        with contextlib.ExitStack() as stack:
            for _ in range(1000):
                with contextlib.suppress(OSError):
                    sock = stack.enter_context(socket.create_connection(("127.0.0.1", target.server.port), 5))
                    sock.sendall(start)
            began = time.monotonic()
            outcomes[f"1,000 with {name}"] = target.honest() and time.monotonic() - began < 5
    body = json.dumps(
        {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True, "n_probs": 50}
    ).encode()
    whole = starts["no body"].replace(b"4000\r\n\r\n{", b"%d\r\n\r\n" % len(body)) + body
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", target.server.port), 5))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(whole)
    outcomes["20 that leave"] = target.honest()
    return outcomes


def _deaths(target: Target) -> dict[str, bool]:
    """The child is killed in each way, while it streams and while it rests."""
    outcomes = {}
    for number in (
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGKILL,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGTERM,
    ):
        timer = threading.Timer(0.05, lambda n=number: os.kill(target.server.engine.pid, n))
        timer.start()
        long = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
        status, raw = target.ask(body=long)
        timer.join()
        told = status == 503 or b'"error"' in raw or b"[DONE]" in raw
        outcomes[f"{number.name} at work"] = told and target.honest()
    for number in (signal.SIGSEGV, signal.SIGKILL):
        os.kill(target.server.engine.pid, number)
        outcomes[f"{number.name} at rest"] = target.honest()
    return outcomes


def _keys(folder: Path) -> dict[str, bool]:
    """Without the key nothing but /health."""
    opened = bundle.open_bundle(folder)
    outcomes = {}
    with serve.running(opened, key="secret-of-many-letters") as server:
        target = Target(server)
        for key in ("", "Bearer ", "Bearer secret", "Basic secret-of-many-letters"):
            outcomes[f"Authorization: {key}"] = target.ask(Authorization=key)[0] == 401
        outcomes["X-Api-Key"] = target.ask(X_Api_Key="a")[0] == 401
        outcomes["the key"] = target.ask(Authorization="Bearer secret-of-many-letters")[0] == 200
        for other in {"engine's key": server.engine.key, "nothing": ""}.items():
            outcomes[other[0]] = target.ask(Authorization=f"Bearer {other[1]}")[0] == 401
        mode = server.engine.socket.parent.stat().st_mode & 0o777
        outcomes["the model's socket is this user's"] = mode == 0o700
    for host in ("0.0.0.0", "::"):
        try:
            with serve.running(opened, host=host, key="short"):
                outcomes[f"{host} with a short key"] = False
        except TenthError:
            outcomes[f"{host} with a short key"] = True
    return outcomes


def _bombs(place: Path) -> dict[str, bool]:
    """Chat templates that would run or grow without end: when the model loads, and when they are asked."""
    outcomes = {}
    for name, bomb in BOMBS.items():
        folder = write_bundle(place / f"load-{name}", bomb)
        began = time.monotonic()
        with contextlib.suppress(TenthError):
            chat.talk(
                bundle.open_bundle(folder), iter(["hello"]), _unheard, _unheard, chat.Sampling(max_tokens=2)
            )
        outcomes[f"{name}, in chat"] = time.monotonic() - began < 75
        asked = "{% if messages[0]['content'] == 'bomb' %}" + bomb + "{% endif %}" + TEMPLATE
        folder = write_bundle(place / f"ask-{name}", asked)
        try:
            with serve.running(bundle.open_bundle(folder)) as server:
                target = Target(server)
                began = time.monotonic()
                body = {"messages": [{"role": "user", "content": "bomb"}], "max_tokens": 2}
                status = target.ask("/v1/chat/completions", body, 90)[0]
                held = status in (400, 500, 503) and time.monotonic() - began < 75
                outcomes[f"{name}, when asked"] = held and target.honest() and _within(target)
        except TenthError:
            outcomes[f"{name}, when asked"] = True  # refused when it was loaded
    return outcomes


def _unheard(_: str) -> None:
    """Nobody reads what a bomb says."""


def _within(target: Target) -> bool:
    """Whether no child held more than its limit and the interpreter."""
    interpreter = 70_000_000
    return max(target.peaks.values(), default=0) <= target.server.engine.limit + interpreter


def attacks() -> Iterator[Mapping[str, object]]:
    """Some six minutes."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        plain = write_bundle(place / "plain", TEMPLATE, budget=20_000_000)
        with serve.running(bundle.open_bundle(plain)) as server:
            target = Target(server)
            yield attack("serve: pages of other sites", _pages(target))
            yield attack("serve: broken HTTP", _broken(target))
            yield attack("serve: greedy bodies", _greed(target))
            yield attack("serve: every field with nasty values", _fields(target))
            yield attack("serve: connections", _connections(target))
            yield attack("serve: a child that dies", _deaths(target))
            line = attack("serve: the memory of the child", {"within the limit": _within(target)})
            yield line | {
                "children": len(target.peaks),
                "limit": server.engine.limit,
                "most": max(target.peaks.values()),
            }
        yield attack("serve: keys", _keys(plain))
        yield attack("serve and chat: bombs in chat templates", _bombs(place))


if __name__ == "__main__":
    for each in attacks():
        print(json.dumps(each), flush=True)
