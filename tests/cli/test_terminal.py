"""What reaches the terminal, and how a command ends: hostile names, closed and full streams, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from bundles import write_bundle
from commands import COMMAND
from hypothesis import given
from hypothesis import strategies as st

from tenth.cli import console, process
from tenth.core.progress import one_line, visible
from tenth.runtime import chat

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m[bold red]a[/]\u202eb\x7f\r\x00"
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
VERBS = "chat serve eval fit judge leaderboard measure plan push report submit devices".split()  # noqa: SIM905


def run(*words: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, timeout=60, check=False, **options
    )


def shell(line: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command with the redirections of a shell's line."""
    script = f'"$@" {line}'
    return subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    tiny.make_model(folder, "llama", "tied")
    return folder


@given(st.text())
def test_nothing_that_steers_is_left(text: str) -> None:
    assert not STEERING.search(visible(text, "\n\t").replace("\n", "").replace("\t", ""))
    assert not STEERING.search(one_line(text)), "nor a line break"
    assert not STEERING.search(chat.printable(text).replace("\n", "").replace("\t", ""))


def test_what_can_be_read_stays() -> None:
    plain = "Grüße, 你好, שלום, نمی\u200cخواهم, 👩\u200d👧 a\u00a0b \\x1b"
    assert visible(plain) == one_line(plain) == chat.printable(plain) == plain
    assert visible(HOSTILE) == "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m[bold red]a[/]\\u202eb\\x7f\\r\\x00"
    assert visible(os.fsdecode(b"caf\xe9")) == "caf\\xe9"
    assert one_line("a\nb\tc\u2028d\x85e") == "a b c d e"


def test_rich_takes_nothing_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = console.ConsoleReporter()
    reporter.say(HOSTILE)
    reporter.table([(HOSTILE, "[link=http://evil.example]x[/link]")])
    with reporter.step(f"{HOSTILE} step", 2, HOSTILE) as advance:
        advance(1)
    shown = capsys.readouterr().err
    assert shown.count("[bold red]a[/]") >= 3
    assert "[link=http://evil.example]x[/link]" in shown
    assert not STEERING.search(shown.replace("\n", ""))


def test_on_a_terminal_bars_move_and_names_do_not(tmp_path: Path) -> None:
    """A real terminal: rich's own sequences are there, and none of the name's."""
    code = (
        "from tenth.cli.process import plain_streams\n"
        "from tenth.cli.console import ConsoleReporter, print_line\n"
        "import sys, warnings\n"
        f"name = {HOSTILE!r}\n"
        "with plain_streams():\n"
        "    reporter = ConsoleReporter()\n"
        "    with reporter.step(name, 2, name) as advance:\n"
        "        advance(1); reporter.say(name)\n"
        "    print_line(name); print(name); warnings.warn(name); print(name, file=sys.stderr)\n"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        shown = b""
        try:
            while block := os.read(ours, 65536):
                shown += block
        except OSError:  # how a terminal of Linux ends
            pass
    os.close(ours)
    assert child.returncode == 0, shown
    assert b"\x1b[" in shown
    for sequence in (b"\x1b]0;", b"\x1b[2J", "\x9b31m".encode(), "\u202e".encode(), b"\x07"):
        assert sequence not in shown
    assert shown.count(b"\\x1b]0;owned\\x07") >= 6


def test_hostile_names_of_models_paths_and_devices(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("\x00", "").replace("/", "")
    shutil.copytree(model, folder)
    device = tmp_path / "device.toml"
    device.write_text('name = "a\\u001b[2J"\ntitle = "\\u001b]0;x\\u0007[red]"\n')
    bundle = write_bundle(tmp_path / "bundle")
    plan = json.loads((bundle / "plan.json").read_text()) | {"model": HOSTILE}
    (bundle / "plan.json").write_text(json.dumps(plan))
    for words in (
        ("plan", folder, "--memory", "100MB", "--context", "64"),
        ("plan", folder, "--memory", "100MB", "--context", "64", "--json"),
        ("plan", f"{folder}-absent", "--memory", "100MB"),
        ("plan", model, "--memory", HOSTILE.replace("\x00", "")),
        ("plan", model, "--device", device),
        ("plan", model, "--device", HOSTILE.replace("\x00", "")),
        (HOSTILE.replace("\x00", ""),),
        ("plan", f"--{HOSTILE}".replace("\x00", "")),
        ("report", bundle),
        ("chat", folder),
        ("chat", bundle, "--prompt", HOSTILE.replace("\x00", ""), "--max-tokens", "40"),
        ("judge", folder, "--device", "pixel-8"),
        ("leaderboard", folder, "-o", tmp_path / "site"),
    ):
        done = run(*words)
        for shown in (done.stdout, done.stderr):
            assert not STEERING.search(shown.decode().replace("\n", "").replace("\t", "")), words
        assert b"Traceback" not in done.stderr, done.stderr.decode()


def test_a_path_that_is_no_utf_8_is_shown(model: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    done = subprocess.run([*COMMAND, "plan", name, "--memory", "100MB"], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"caf\\udce9" in done.stderr
    shutil.copytree(model, name.decode("utf-8", "surrogateescape"))
    words = ["--memory", "100MB", "--context", "64"]
    for more in ([], ["--json"]):
        done = subprocess.run([*COMMAND, "plan", name, *words, *more], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "caf\\xe9"


def test_chat_goes_on_after_a_byte_that_is_no_utf_8(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    done = run("chat", bundle, "--max-tokens", 4, "--json", input=b"hello\ncaf\xe9\nonce \xff\xfe more\n")
    assert done.returncode == 0, done.stderr
    asked = [turn["user"] for turn in json.loads(done.stdout)["turns"]]
    assert asked == ["hello", "caf\ufffd", "once \ufffd\ufffd more"]
    done = subprocess.run(
        [*COMMAND, "chat", bundle, "--max-tokens", "2", "--json", "--prompt", b"caf\xe9"],
        capture_output=True,
        check=False,
    )
    assert json.loads(done.stdout)["turns"][0]["user"] == "caf\ufffd"


PLAN = ("--memory", "100MB", "--context", "64", "--json")


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("verb", ["plan", "devices", "--help", "--version", "submit"])
def test_stdout_that_is_closed_full_or_gone(model: Path, verb: str) -> None:
    words = {"plan": ("plan", model, *PLAN), "submit": ("submit", "--template")}.get(verb, (verb,))
    for closed in (">&-", "<&-", "2>&-", ">&- 2>&- <&-"):
        done = shell(closed, *words)
        assert (done.returncode, done.stderr) == (0, ""), closed
    full = shell("> /dev/full", *words)
    assert full.returncode == 2
    assert full.stderr == "tenth: error: cannot write to stdout: No space left on device\n"
    assert shell("> /dev/full 2> /dev/full", *words).returncode == 2
    ours, theirs = os.pipe()
    os.close(ours)
    gone = subprocess.run([*COMMAND, *map(str, words)], stdout=theirs, stderr=subprocess.PIPE, check=False)
    os.close(theirs)
    assert (gone.returncode, gone.stderr) == (1, b"")


def test_a_file_or_program_that_vanishes_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tenth.cli import app

    def vanished() -> int:
        subprocess.run([tmp_path / "gone"], check=True)
        return 0

    def unread() -> int:
        (tmp_path / "gone.json").read_text()
        return 0

    for run_it in (vanished, unread):
        assert app.guarded(run_it, []) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert str(tmp_path / "gone") in said
        assert "No such file" in said


UP = "from tenth.__main__ import main; import os; os.write(2, b'up\\n'); main()"


@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_at_any_moment_is_130_and_no_traceback(verb: str, tmp_path: Path, model: Path) -> None:
    """While modules load, above all: at moments spread over the first second after Python itself is up."""
    bundle = write_bundle(tmp_path / "bundle")
    words = {
        "fit": ["fit", model, "-o", tmp_path / "out", "--memory", "100MB", "--context", "64"],
        "plan": ["plan", model, "--memory", "100MB"],
        "push": ["push", bundle, "nobody@192.0.2.1"],
        "submit": ["submit", bundle, "-o", tmp_path / "submitted"],
        "judge": ["judge", tmp_path, "--device", "pixel-8"],
        "leaderboard": ["leaderboard", tmp_path, "-o", tmp_path / "site"],
        "eval": ["eval", bundle, "--tasks", "piqa"],
        "devices": ["devices"],
    }.get(verb, [verb, bundle])
    for moment in (0.01, 0.1, 0.3):
        child = subprocess.Popen(
            [sys.executable, "-c", UP, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
            cwd=tmp_path,
        )
        assert child.stderr
        assert child.stderr.readline() == b"up\n"
        time.sleep(moment)  # no event marks the moments that are meant
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=30)
        assert b"Traceback" not in said, said.decode()
        assert b"KeyboardInterrupt" not in said, said.decode()
        done_before = child.returncode in (0, 2) and b"stopped" not in said
        served = verb == "serve" and child.returncode == 0
        assert child.returncode == 130 or done_before or served, (child.returncode, said)


def test_a_second_ctrl_c_does_not_disturb_what_is_put_away() -> None:
    code = (
        "import os, signal\nfrom tenth.cli import app\n"
        "def run():\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGINT); print('put away', flush=True)\n"
        "raise SystemExit(app.guarded(run, []))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "put away\n", "stopped\n")


def test_a_ctrl_c_that_becomes_another_error_is_still_one() -> None:
    def run_it() -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as error:  # as Python 3.11 does in __set_name__
            raise RuntimeError("Error calling __set_name__") from error
        return 0

    from tenth.cli import app

    assert app.guarded(run_it, []) == 130


def test_sigterm_ends_as_ctrl_c_does(tmp_path: Path) -> None:
    def run_it() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    from tenth.cli import app

    assert app.guarded(run_it, []) == 143
    assert isinstance(process.Plain(sys.stdout), process.Plain)
