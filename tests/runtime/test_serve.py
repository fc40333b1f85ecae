"""Chat and server on a tiny random model: real processes, real HTTP on loopback."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import write_bundle
from waiting import soon

from tenth.core.errors import InputError, NativeError, OutputError
from tenth.runtime import bundle, chat, serve

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def templated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("templated"), TEMPLATE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        if body:
            headers.setdefault("Content-Type", "application/json")
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def tenth(*words: str, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", "from tenth.__main__ import main; main()", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def server(templated: Path) -> Iterator[serve.Running]:
    with serve.running(bundle.open_bundle(templated)) as running:
        yield running


def test_the_server_lists_its_model_and_answers(server: serve.Running) -> None:
    status, raw = ask(server.port, "GET", "/v1/models")
    assert status == 200
    assert json.loads(raw)["data"][0]["id"] == "tiny"
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    status, raw = ask(server.port, "POST", "/v1/chat/completions", body)
    assert status == 200
    assert json.loads(raw)["usage"]["completion_tokens"] <= 5
    assert json.loads(raw)["choices"][0]["message"]["role"] == "assistant"


def test_the_server_streams(server: serve.Running) -> None:
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 5,
        "stream": True,
        "ignore_eos": True,
        "temperature": 0,  # a random model: what it says must not depend on luck
    }
    status, raw = ask(server.port, "POST", "/v1/chat/completions", body)
    events = [line.removeprefix(b"data: ") for line in raw.splitlines() if line.startswith(b"data: ")]
    assert status == 200
    assert len(events) > 3
    assert events[-1] == b"[DONE]"
    assert json.loads(events[0])["object"] == "chat.completion.chunk"


def test_the_server_listens_on_loopback_only_and_takes_the_plans_settings(server: serve.Running) -> None:
    assert server.url == f"http://127.0.0.1:{server.port}"
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    addresses = {
        row[1].split(":")[0] for row in listening if row[1].endswith(f":{server.port:04X}") and row[3] == "0A"
    }
    assert addresses == {"0100007F"}
    props = json.loads(ask(server.port, "GET", "/props")[1])
    assert props["default_generation_settings"]["n_ctx"] == 256
    assert props["total_slots"] == 1


def test_a_web_page_may_not_read_from_it(server: serve.Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/v1/models", headers={"Origin": "https://example.org"})
    assert connection.getresponse().getheader("Access-Control-Allow-Origin") is None
    connection.close()


def test_a_key_is_demanded_where_one_is_set(folder: Path) -> None:
    body = {"prompt": "hello", "max_tokens": 1}
    with serve.running(bundle.open_bundle(folder), key="secret") as running:
        assert ask(running.port, "POST", "/v1/completions", body)[0] == 401
        assert ask(running.port, "POST", "/v1/completions", body, Authorization="Bearer secret")[0] == 200
        pid = running.engine.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_serve_command_ends_with_ctrl_c_and_takes_its_child_along(templated: Path) -> None:
    port = free_port()
    process = tenth("serve", str(templated), "--port", str(port), "--json")
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["url"] == f"http://127.0.0.1:{port}/v1"
        assert ask(port, "GET", "/v1/models")[0] == 200
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "Traceback" not in err
    with pytest.raises(OSError):
        ask(port, "GET", "/v1/models")


def test_the_child_does_not_outlive_a_killed_parent(folder: Path) -> None:
    port = free_port()
    process = tenth("serve", str(folder), "--port", str(port), "--json")
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()

    def silent() -> bool:
        try:
            ask(port, "GET", "/health")
        except OSError:
            return True
        return False

    soon(silent, "the server still answers", 5)


def test_a_taken_port_is_one_error(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with (
            pytest.raises(OutputError, match="choose another --port"),
            serve.running(bundle.open_bundle(folder), port=taken.getsockname()[1]),
        ):
            pass


def test_piped_chat_answers_line_by_line_and_quits(folder: Path) -> None:
    process = tenth("chat", str(folder), "--max-tokens", "4")
    out, err = process.communicate("hello\n\nonce more\n/quit\nnever asked\n", timeout=60)
    assert process.returncode == 0
    assert out.count("\n") >= 2
    assert "no chat template" in err


def test_chat_as_json_is_one_object_and_repeats_itself(templated: Path) -> None:
    outs = []
    for _ in range(2):
        process = tenth(
            "chat", str(templated), "--prompt", "hello", "--max-tokens", "6", "--seed", "3", "--json"
        )
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        outs.append(json.loads(out))
    assert outs[0] == outs[1]
    assert outs[0]["turns"][0]["user"] == "hello"


def test_a_template_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = bundle.open_bundle(
        write_bundle(tmp_path / "broken", "{% for m in messages %}{{ m }}{% endif %}")
    )
    with pytest.raises(NativeError, match="cannot use the file's chat template: "), serve.running(broken):
        pass


@pytest.mark.parametrize("with_template", [True, False])
def test_a_conversation_that_outgrows_the_context_forgets_its_beginning(
    folder: Path, templated: Path, with_template: bool
) -> None:
    said: list[str] = []
    written: list[str] = []
    opened = bundle.open_bundle(templated if with_template else folder)
    messages = iter(["a b c d e f g h " * 9, "i j k l m n o p " * 9, "q r s t u v " * 200])
    turns = chat.talk(opened, messages, written.append, said.append, chat.Sampling(max_tokens=3))
    assert [user[:1] for user, _ in turns] == ["i"]
    said = [line for line in said if "no chat template" not in line]
    assert len(said) == 2
    assert "its beginning is forgotten" in said[0]
    assert "longer than the model's context" in said[1]


def test_a_message_that_is_too_long_alone_is_an_error(folder: Path) -> None:
    with pytest.raises(InputError, match="longer than the model's context"):
        chat.talk(bundle.open_bundle(folder), iter(["a " * 600]), print, print, chat.Sampling())


def test_models_cannot_steer_the_terminal() -> None:
    assert chat.printable("a\x1b[2J\x07b\nc\td\u202e\x9b\\\u200d") == "a[2Jb\nc\td\\\u200d"


def test_a_template_is_found_where_there_is_one(folder: Path, templated: Path) -> None:
    assert not bundle.open_bundle(folder).has_template
    assert bundle.open_bundle(templated).has_template


def test_broken_bundles_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match=r"no model\.gguf"):
        bundle.open_bundle(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"MZ..")
    with pytest.raises(InputError, match=r"no plan\.json"):
        bundle.open_bundle(tmp_path)
    (tmp_path / "plan.json").write_bytes((folder / "plan.json").read_bytes())
    with pytest.raises(InputError, match="not a GGUF file"):
        bundle.open_bundle(tmp_path)
    (tmp_path / "plan.json").write_text('{"version": 1, "surprise": 2}')
    with pytest.raises(InputError, match="is not a plan"):
        bundle.open_bundle(tmp_path)


def test_what_llama_cpp_refuses_is_one_error(tmp_path: Path, folder: Path) -> None:
    write_bundle(tmp_path)
    whole = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NativeError) as caught, serve.running(bundle.open_bundle(tmp_path)):
        pass
    assert "\n" not in str(caught.value)
    write_bundle(tmp_path, type_k="q99")
    with pytest.raises(NativeError, match="'q99' is unknown"), serve.running(bundle.open_bundle(tmp_path)):
        pass


def test_a_dead_child_is_started_again(folder: Path) -> None:
    body = {"prompt": "hello", "max_tokens": 1}
    with serve.running(bundle.open_bundle(folder)) as running:
        os.kill(running.engine.pid, signal.SIGABRT)
        soon(lambda: "SIGABRT" in running.engine.reason, "its death was not seen")
        assert ask(running.port, "POST", "/v1/completions", body)[0] == 200


def test_a_child_that_always_dies_ends_the_server_with_one_error(folder: Path) -> None:
    with serve.running(bundle.open_bundle(folder)) as running:
        killed = set()

        def kill_the_next() -> bool:
            if running.engine.ready and running.engine.pid not in killed:
                killed.add(running.engine.pid)
                os.kill(running.engine.pid, signal.SIGSEGV)
            return running.engine.given_up

        soon(kill_the_next, "it is still started again", 60)
        with pytest.raises(NativeError, match="died of SIGSEGV"):
            running.wait()
        assert len(killed) == 5


BOMBS = {
    "growth": "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "output": "{% for a in range(100000000) %}aaaaaaaaaaaa{% endfor %}",
    "a long text": "{{ 'a' * 3000000000 }}",
    "a long list": "{{ range(30000000)|join('aaaaaaaa') }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "depth": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_in_a_template_ends_the_child_and_not_the_machine(tmp_path: Path, bomb: str) -> None:
    loaded = write_bundle(tmp_path / "loaded", BOMBS[bomb], budget=20_000_000)
    with pytest.raises(NativeError, match=r"wanted more memory|died of SIG"):
        chat.talk(bundle.open_bundle(loaded), iter(["hello"]), print, print, chat.Sampling(max_tokens=1))
    if bomb == "depth":
        return
    asked = "{% if messages[0]['content'] == 'bomb' %}" + BOMBS[bomb] + "{% endif %}" + TEMPLATE
    folder = write_bundle(tmp_path / "asked", asked, budget=20_000_000)
    body = {"messages": [{"role": "user", "content": "bomb"}], "max_tokens": 1}
    with serve.running(bundle.open_bundle(folder)) as running:
        status, raw = ask(running.port, "POST", "/v1/chat/completions", body)
        assert status == 503
        assert "is started again" in json.loads(raw)["error"]["message"]
        body["messages"] = [{"role": "user", "content": "hello"}]
        assert ask(running.port, "POST", "/v1/chat/completions", body)[0] == 200


def test_a_bomb_is_ended_where_no_cgroup_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENTH_NO_CGROUP", "1")
    folder = write_bundle(tmp_path / "loaded", BOMBS["growth"], budget=20_000_000)
    with pytest.raises(NativeError, match="wanted more memory"), serve.running(bundle.open_bundle(folder)):
        pass


def test_a_stream_ends_with_an_error_when_the_child_dies(folder: Path) -> None:
    body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True, "temperature": 0}
    with serve.running(bundle.open_bundle(folder)) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data: ")
        os.kill(running.engine.pid, signal.SIGSEGV)
        events = [line for line in answer.read().splitlines() if line.startswith(b"data: ")]
        connection.close()
        last = events[-1].removeprefix(b"data: ")
        assert last == b"[DONE]" or json.loads(last)["error"]["code"] == 503
        assert ask(running.port, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200


def test_a_thousand_unfinished_requests_block_nobody(server: serve.Running) -> None:
    start = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            with contextlib.suppress(OSError):
                sock.sendall(start)
        assert ask(server.port, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://evil.example", "Content-Type": "text/plain"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_pages_of_other_sites_are_refused(
    server: serve.Running, headers: dict[str, str], status: int
) -> None:
    assert (
        ask(server.port, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}, **headers)[0] == status
    )


def test_a_page_of_the_servers_own_may_ask(server: serve.Running) -> None:
    own = {"Origin": f"http://127.0.0.1:{server.port}", "Sec-Fetch-Site": "same-origin"}
    assert ask(server.port, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}, **own)[0] == 200


def test_other_machines_need_a_key_of_some_length(folder: Path) -> None:
    for host, key in (("0.0.0.0", ""), ("0.0.0.0", "short"), ("::", "short"), ("localhost", "a\nb")):
        with (
            pytest.raises(InputError, match="key"),
            serve.running(bundle.open_bundle(folder), host=host, key=key),
        ):
            pass
