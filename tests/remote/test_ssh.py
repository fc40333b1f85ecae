"""Another machine over ssh: a real sshd on loopback, in a namespace of its own where root allows it."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sshd
from bundles import write_bundle
from commands import COMMAND
from hypothesis import given
from hypothesis import strategies as st
from waiting import soon

from tenth import remote
from tenth.cli.console import ConsoleReporter
from tenth.core.errors import DeviceError, InputError
from tenth.core.records import Bench, Measurement
from tenth.remote import _base
from tenth.remote import run as running

server = pytest.mark.skipif(sshd.SSHD is None, reason="no sshd here (Debian: apt-get install openssh-server)")
root = pytest.mark.skipif(os.geteuid() != 0, reason="a small disk and a namespace can only be made by root")


@pytest.fixture(scope="module")
def module_device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
    device = sshd.start(tmp_path_factory.mktemp("sshd"))
    yield device
    device.stop()


@pytest.fixture
def device(module_device: sshd.Sshd, monkeypatch: pytest.MonkeyPatch) -> sshd.Sshd:
    monkeypatch.setenv("PATH", module_device.path)
    return module_device


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def processes(words: str) -> list[str]:
    """Command lines that hold these words."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if words in line and int(folder.name) != os.getpid():
            found.append(line)
    return found


def reach(where: str = "") -> Any:
    return remote.connect(remote.parse(f"{sshd.HOST}{where}"))


def push(bundle: Path, target: str, port: int | None = None, overwrite: bool = False) -> running.Pushed:
    return running.push(bundle, running.Place(target, port), ConsoleReporter(), overwrite)


@server
def test_a_bundle_is_measured_there_and_nothing_stays(
    device: sshd.Sshd, bundle: Path, tmp_path: Path
) -> None:
    there = tmp_path / "a folder" / "there"
    words = ["--repeats", "1", "--depths", "0", "--counter", "none", "--idle", "0", "--json"]
    done = subprocess.run(
        [*COMMAND, "measure", bundle, "--on", f"{sshd.HOST}:{there}", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    measured = Measurement.model_validate_json(done.stdout)
    assert measured.model == "tiny"
    assert measured.depths[0].decode.value > 0
    assert measured == Measurement.model_validate_json((bundle / "measure-device.json").read_bytes())
    assert (bundle / "measure-device.log").stat().st_size > 0
    assert "<h2>On device</h2>" in (bundle / "report.html").read_text()
    assert not (bundle / "measure.json").exists(), "that is for this machine"
    assert list(tmp_path.iterdir()) == [], "the folders made on the way are gone too"
    soon(lambda: not processes(str(tmp_path)), "no process is left")
    if os.geteuid() == 0:
        assert device.isolated


@server
def test_what_was_pushed_runs_there_with_nothing_installed(
    device: sshd.Sshd, bundle: Path, tmp_path: Path
) -> None:
    pushed = push(bundle, f"{sshd.HOST}:{tmp_path}/models/tiny")
    assert pushed.folder == f"{tmp_path}/models/tiny"
    assert pushed.size > bundle.joinpath("model.gguf").stat().st_size
    assert pushed.commands[0] == f"ssh -t device '{pushed.folder}/tenth chat {pushed.folder}/bundle'"
    plain = f"env -i PATH=/usr/bin:/bin {pushed.folder}/tenth chat {pushed.folder}/bundle"
    asked = f"{plain} --prompt one --max-tokens 3 --json"
    done = subprocess.run(["ssh", sshd.HOST, asked], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["turns"][0]["user"] == "one"
    with pytest.raises(DeviceError, match="--overwrite replaces it"):
        push(bundle, f"{sshd.HOST}:{tmp_path}/models/tiny")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny"]


@server
def test_a_folder_is_kept_under_its_name_or_replaced(device: sshd.Sshd, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    final = tmp_path / "there" / "it's ours"
    for content, replace in (("one", False), ("two", True)):
        file.write_text(content)
        with reach() as way, way.folder(final=str(final), replace=replace) as there:
            there.put({"deep/a b": file}, lambda done: None)
            assert not replace or (final / "deep" / "a b").read_text() == "one", "the old one stays meanwhile"
            assert there.keep() == str(final)
        assert (final / "deep" / "a b").read_text() == content
    assert [path.name for path in (tmp_path / "there").iterdir()] == [final.name]
    assert {path.name for path in final.iterdir()} == {"deep", _base.MARK}
    (tmp_path / "thesis").mkdir()
    with pytest.raises(DeviceError, match="no tenth push"), reach() as way:
        way.folder(final=str(tmp_path / "thesis"), replace=True).__enter__()
    assert (tmp_path / "thesis").is_dir()


@server
@pytest.mark.parametrize("how", ["line", "death", "silence"])
def test_a_lost_connection_leaves_nothing(
    device: sshd.Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The server's process dies; ours dies; or the line is dead without either end having been told."""
    there, mark = tmp_path / "there", f"sleep {time.time_ns()}"
    if how == "death":
        code = (
            "from tenth import remote\n"
            "with remote.connect(remote.parse('device')) as way:\n"
            f"  with way.folder({str(there)!r}) as folder: folder.run('{mark}')"
        )
        with tempfile.TemporaryDirectory() as scratch:  # of the connection; who is killed cannot remove it
            child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": scratch})
            soon(lambda: len(processes(mark)) > 2, "it runs there")
            child.kill()
            child.wait()
    else:
        if how == "silence":
            monkeypatch.setattr(_base, "SILENCE", 2)
            monkeypatch.setattr(_base, "BEAT", 1000)
        else:
            threading.Thread(
                target=lambda: (
                    soon(lambda: len(processes(mark)) > 2, "it runs"),
                    *map(sshd._kill, device.children()),
                )
            ).start()
        lost = pytest.raises(DeviceError, match="connection to device was lost")
        with lost, reach() as way, way.folder(str(there)) as folder:
            folder.run(mark)
    soon(lambda: not there.exists(), "the folder is removed")
    soon(lambda: not processes(mark), "what ran there is ended")


@server
def test_a_device_is_not_trusted_with_our_memory_or_time(device: sshd.Sshd, tmp_path: Path) -> None:
    with reach() as way, way.folder(str(tmp_path)) as there:
        with pytest.raises(DeviceError, match="more than"):
            there.run(f"head -c {_base.MAX_OUTPUT + 1} /dev/zero")
        with pytest.raises(DeviceError, match=r"did not finish within 0\.5 s"):
            there.run("sleep 98765", timeout=0.5)
        there.run("echo abc > file; echo said >&2")
        assert there.get("file", 4) == b"abc\n"
        with pytest.raises(DeviceError, match="larger than 3"):
            there.get("file", 3)
        with pytest.raises(DeviceError, match="cannot be read"):
            there.get("absent", 3)
        done = there.run("echo out; echo err >&2; exit 7")
        assert (done.status, done.out, done.last_line) == (7, "out\n", "err")
    assert list(tmp_path.iterdir()) == []
    soon(lambda: not processes("sleep 98765"), "it is stopped there")


@server
@root
def test_a_full_disk_is_said_before_and_during_the_copy(
    device: sshd.Sshd, bundle: Path, tmp_path: Path
) -> None:
    disk, big = tmp_path / "disk", tmp_path / "big"
    disk.mkdir()
    big.write_bytes(bytes(3_000_000))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    try:
        with pytest.raises(
            DeviceError, match=r"has 2\.\d\d MB free in .*MB are needed; free some, or name another"
        ):
            push(bundle, f"{sshd.HOST}:{disk}/there")
        with (
            pytest.raises(DeviceError, match="no space left"),
            reach() as way,
            way.folder(str(disk)) as there,
        ):
            there.put({"big": big}, lambda done: None)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


@server
@pytest.mark.parametrize(
    ("programs", "said"),
    [
        ({"uname": "case $1 in -m) echo armv7l;; -s) echo Linux;; esac"}, "device is a armv7l"),
        ({"uname": "echo Darwin"}, "runs Darwin"),
        ({"python3": "echo CPython 3 9 64 glibc2.31"}, r"has Python 3\.9; 3\.11 or newer is needed"),
        ({"python3": "echo CPython 3 11 32 glibc2.36"}, "is a 32-bit CPython"),
        ({"python3": "echo CPython 3 12 64 unknown"}, r"no glibc 2\.17"),
        ({"python3": "exit 127"}, "gives no clear answer|has no python3"),
    ],
)
def test_a_device_that_cannot_run_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str], said: str
) -> None:
    (tmp_path / "fake").mkdir()
    later = dict.fromkeys(("python3.11", "python3.12", "python3.13", "python3.14"), "exit 127")
    for name, script in (later | programs).items():
        (tmp_path / "fake" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "fake" / name).chmod(0o755)
    (tmp_path / "server").mkdir()
    device = sshd.start(tmp_path / "server", first_on_path=tmp_path / "fake")
    try:
        monkeypatch.setenv("PATH", device.path)
        with pytest.raises(DeviceError, match=said):
            push(bundle, f"{sshd.HOST}:{tmp_path}/there/tiny")
        assert not (tmp_path / "there").exists()
    finally:
        device.stop()


@server
def test_a_phone_with_termux_measures_with_its_own_llama_cpp(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = {"build_number": 7, "n_prompt": 0, "n_gen": 32, "samples_ts": [9.0, 11.0]}
    programs = {
        "uname": "case $1 in -o) echo Android;; -s) echo Linux;; -m) echo aarch64;; esac",
        "llama-bench": f"case $1 in --help) exit;; esac; echo '[{json.dumps(run)}]'",
    }
    for folder in ("fake", "server"):
        (tmp_path / folder).mkdir()
    for name, script in programs.items():
        (tmp_path / "fake" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "fake" / name).chmod(0o755)
    device = sshd.start(tmp_path / "server", first_on_path=tmp_path / "fake")
    try:
        monkeypatch.setenv("PATH", device.path)
        place = running.Place(f"{sshd.HOST}:{tmp_path}/there")
        measured, _ = running.measure(bundle, place, ("measure", "OUT"), ConsoleReporter(), (0,))
        assert isinstance(measured, Bench)
        assert measured.depths[0].decode.value == 10
        assert "repacking" in measured.notes[1]
        assert "dumpsys" in measured.energy
        with pytest.raises(InputError, match="--minutes needs tenth on the device"):
            running.measure(bundle, place, ("measure", "OUT", "--minutes", "1"), ConsoleReporter())
        pushed = running.push(bundle, running.Place(f"{sshd.HOST}:{tmp_path}/kept"), ConsoleReporter())
        assert f"cd {tmp_path}/kept && llama-cli -m bundle/model.gguf -c 256" in pushed.commands[0]
        assert not (tmp_path / "there").exists()
    finally:
        device.stop()


@server
def test_hosts_and_keys_that_do_not_answer(
    device: sshd.Sshd, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is one line with what to do; the person's own configuration decides about keys."""
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    changed = tmp_path / "changed"
    changed.write_text(f"device {' '.join((tmp_path / 'other.pub').read_text().split()[:2])}\n")
    free = sshd.free_port()

    def refusal(**options: str) -> str:
        (tmp_path / "bin").mkdir(exist_ok=True)
        flags = " ".join(f"-o {name}={value}" for name, value in options.items())
        script = f'#!/bin/sh\nexec {device.folder}/bin/ssh {flags} "$@"\n'
        (tmp_path / "bin" / "ssh").write_text(script)
        (tmp_path / "bin" / "ssh").chmod(0o755)
        with pytest.raises(DeviceError) as caught:
            push(bundle, f"device:{tmp_path}/there/tiny")
        return str(caught.value)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    said = {
        refusal(
            ProxyCommand="none", HostName="no-such-host.invalid"
        ): "no host is known by the name of device",
        refusal(ProxyCommand="none", Port=str(free)): "device refuses the connection",
        refusal(
            UserKnownHostsFile="none"
        ): "does not know the host key of device yet; connect once and accept",
        refusal(
            UserKnownHostsFile=str(changed)
        ): "the host key of device is not the one that this machine knows",
        refusal(PubkeyAuthentication="no"): "accepts none of your keys",
        refusal(ProxyCommand="false"): "the connection to device broke off",
    }
    for answer, wanted in said.items():
        assert wanted in answer
        assert "\n" not in answer
    assert not (tmp_path / "there").exists()


@server
def test_on_the_command_line_it_is_one_line_and_status_2(device: sshd.Sshd, tmp_path: Path) -> None:
    words = ["push", tmp_path, f"{sshd.HOST}:{tmp_path}/there", "--json"]
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "not a finished bundle" in json.loads(done.stdout)["error"]["message"]
    assert done.stderr.count("\n") == 1


@server
def test_what_tenth_says_there_is_said_here(device: sshd.Sshd, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_text("#!/bin/sh\necho progress >&2\necho '{\"a\": 1}'\n")
    heard: list[str] = []
    voice = ConsoleReporter()
    voice.say = heard.append  # type: ignore[method-assign]
    with reach() as way, way.folder(str(tmp_path)) as there:
        file.chmod(0o755)
        there.put({"tenth": file}, lambda done: None)
        assert running.run_there(there, ("measure", "OUT"), voice) == {"a": 1}
        assert heard == ["  progress"]
        file.write_text("#!/bin/sh\necho not json\necho oops >&2\nexit 1\n")
        there.put({"tenth": file}, lambda done: None)
        with pytest.raises(DeviceError, match=r"tenth measure failed on device \(status 1\): oops"):
            running.run_there(there, ("measure", "OUT"), voice)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("pi@raspberry", ("ssh", "pi@raspberry", "", "pi-raspberry")),
        ("pi@raspberry:models/a b", ("ssh", "pi@raspberry", "models/a b", "pi-raspberry")),
        ("host:~/x", ("ssh", "host", "x", "host")),
        ("me@[fe80::1%eth0]:/x", ("ssh", "me@[fe80::1%eth0]", "/x", "me-fe80-1-eth0")),
        ("adb:R5CT", ("adb", "R5CT", "", "R5CT")),
        ("adb:10.0.0.2:5555", ("adb", "10.0.0.2:5555", "", "10.0.0.2-5555")),
        ("adb:R5CT:/data/local/tmp/x", ("adb", "R5CT", "/data/local/tmp/x", "R5CT")),
    ],
)
def test_targets(words: str, parts: tuple[str, str, str, str]) -> None:
    target = remote.parse(words)
    assert (target.transport, target.address, target.folder, target.slug) == parts


@given(st.text())
def test_a_target_is_never_an_option_of_ssh(words: str) -> None:
    """Whatever a person writes, the host that ssh gets is a plain name."""
    with suppress(InputError):
        target = remote.parse(words)
        assert (target.transport == "adb") == words.startswith("adb:")
        if target.transport == "ssh":
            with remote.connect(target) as way:
                host = way.command("true")[-2]
            assert not host.startswith("-")
            assert not host.rpartition("@")[2].startswith("-")
            assert not set(host) & set(" \t/")
