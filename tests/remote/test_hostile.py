"""A device that lies: real processes and the real keeper, with this machine's shell as the way to it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import liars
import pytest
from bundles import write_bundle

from tenth.core.errors import DeviceError
from tenth.core.records import Bench
from tenth.remote import _base, llama, package, run
from tenth.runtime.bundle import open_bundle


@pytest.fixture
def there(tmp_path: Path) -> Iterator[_base.Folder]:
    with liars.Here().folder(str(tmp_path / "there")) as folder:
        yield folder


@pytest.fixture(autouse=True)
def _soon() -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 30


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a program on the device's path, before its own."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path('/usr/bin')}:/bin")

    def make(name: str, script: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return make


@pytest.mark.parametrize("how", liars.ENDLESS)
def test_endless_output_is_ended(there: _base.Folder, how: str) -> None:
    seen: list[str] = []
    with pytest.raises(DeviceError, match="answered with more than"):
        there.run(liars.ENDLESS[how], 60, lambda line: seen.append(line) if len(seen) < 10 else None)
    assert all(len(line) <= 2000 for line in seen)


def test_a_terminal_s_sequences_are_not_passed_on(there: _base.Folder) -> None:
    seen: list[str] = []
    done = there.run("printf 'a\\033[2Jb\\007\\n\\033]0;title\\007\\n' >&2", 60, seen.append)
    assert seen == ["a [2Jb", " ]0;title"]
    assert done.last_line == " ]0;title"


def test_a_file_is_taken_up_to_its_limit(there: _base.Folder) -> None:
    """Whatever its size is said to be: no command asks for that."""
    there.run("head -c 11 /dev/zero > short; ln -s /dev/zero endless", 60)
    assert there.get("short", 11) == bytes(11)
    for name in ("short", "endless"):
        with pytest.raises(DeviceError, match="larger than 10 bytes"):
            there.get(name, 10)
    with pytest.raises(DeviceError, match="cannot be read"):
        there.get("absent", 10)


@pytest.mark.parametrize("what", liars.FACTS)
def test_facts_of_a_liar(there: _base.Folder, program: Callable[[str, str], Path], what: str) -> None:
    program(*liars.FACTS[what])
    facts = run.look(there)
    assert 0 <= facts.memory < 1 << 80
    assert facts.space < 1 << 80
    assert all(word.isprintable() and len(word) <= 100 for word in (facts.system, facts.machine, facts.title))
    if liars.FACTS[what][0] in ("sed", "df"):
        assert (facts.memory if liars.FACTS[what][0] == "sed" else facts.space) == 0


@pytest.mark.parametrize("answer", liars.PYTHONS, ids=range(len(liars.PYTHONS)))
def test_pythons_of_a_liar(answer: str) -> None:
    with pytest.raises(DeviceError) as error:
        package.platform("liar", "Linux", "x86_64", answer)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("said", liars.ANSWERS, ids=range(len(liars.ANSWERS)))
def test_json_of_a_liar(there: _base.Folder, said: str, tmp_path: Path) -> None:
    tool = tmp_path / "tenth"
    tool.write_text(f"#!/bin/sh\n{said}\n")
    tool.chmod(0o755)
    there.put({"tenth": tool}, lambda _: None)
    with pytest.raises(DeviceError, match=r"answered with more than|tenth measure failed on here"):
        run.run_there(there, ["measure", "OUT"], _Quiet())


class _Quiet:
    def say(self, message: str) -> None:
        assert message.isprintable()

    @contextlib.contextmanager
    def step(self, name: str, total: float, unit: str = "") -> Iterator[Callable[[float], None]]:
        yield lambda _: None


def measured(there: _base.Folder, tmp_path: Path, name: str, script: str) -> Bench:
    tool = tmp_path / name
    tool.write_text(f"#!/bin/sh\ncase $1 in --help) exit;; esac\n{script}\n")
    tool.chmod(0o755)
    there.put({f"llama/{name}": tool}, lambda _: None)
    bundle = open_bundle(write_bundle(tmp_path / "bundle", n_ctx=128, n_ubatch=16, threads=1))
    tests = llama.Tests(plan=bundle.plan, sha256="", device="liar", depths=(0,), repeats=1)
    return llama.measure(there, [f"llama/{name}"], tests)[0]


@pytest.mark.parametrize("how", liars.BENCHES)
def test_speeds_of_a_liar(there: _base.Folder, tmp_path: Path, how: str) -> None:
    with pytest.raises(DeviceError, match=r"gave no speeds|larger than"):
        measured(there, tmp_path, "llama-bench", liars.BENCHES[how])


@pytest.mark.parametrize("how", liars.TIMINGS)
def test_timings_of_a_liar(there: _base.Folder, tmp_path: Path, how: str) -> None:
    with pytest.raises(DeviceError, match="printed no timings"):
        measured(there, tmp_path, "llama-cli", liars.TIMINGS[how])


@pytest.mark.parametrize(
    "state",
    [
        "tr '\\0' '\\n' < /dev/zero | head -c 3000000",
        "tr '\\0' a < /dev/zero | head -c 3000000",
        "echo '² powered: true'",
    ],
)
def test_a_battery_of_a_liar(
    there: _base.Folder, tmp_path: Path, program: Callable[[str, str], Path], state: str
) -> None:
    program("dumpsys", f"{state}; echo; echo 'USB powered: true'")
    found = measured(there, tmp_path, "llama-bench", f"echo '{json.dumps([liars.TEST])}'")
    assert found.energy.startswith("not measured: the phone is plugged in (USB")
