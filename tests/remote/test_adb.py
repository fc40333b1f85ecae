"""An Android phone: the real adb, client and server, and a phone that speaks its protocol (adbd.py)."""

import json
import os
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import adbd
import pytest
from bundles import write_bundle
from commands import COMMAND
from sshd import free_port
from waiting import soon

from tenth.cli.console import ConsoleReporter
from tenth.core.errors import DeviceError, InputError
from tenth.core.records import Bench
from tenth.remote import run as running

pytestmark = pytest.mark.skipif(
    shutil.which("adb") is None, reason="no adb here (Debian: apt-get install adb)"
)
SETTINGS = {"n_ctx": 128, "n_ubatch": 16, "type_k": "f16", "type_v": "f16", "threads": 1}
RUNS = [
    {
        "build_commit": "abc",
        "build_number": 7000,
        "n_prompt": prompt,
        "n_gen": gen,
        "n_depth": depth,
        "samples_ts": [speed - 1, speed, speed + 2],
        "cpu_info": "ignored",
    }
    for depth, prompt, gen, speed in ((0, 32, 0, 100.0), (0, 0, 32, 10.0), (64, 0, 32, 8.0))
]
BENCH = f"""case $1 in --help) echo '  -nr, --no-repack'; exit;; esac
echo "$@" >&2
echo "libraries $LD_LIBRARY_PATH" >&2
sleep 0.5
echo '{json.dumps(RUNS)}'"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny", **SETTINGS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server of adb's own on a free port, with keys of its own."""
    home = {"HOME": str(tmp_path_factory.mktemp("home")), "ANDROID_ADB_SERVER_PORT": str(free_port())}
    subprocess.run(["adb", "start-server"], env=os.environ | home, check=True, capture_output=True)
    yield home
    subprocess.run(["adb", "kill-server"], env=os.environ | home, check=True, capture_output=True)


@pytest.fixture
def phone(server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[adbd.Phone]:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    phone = adbd.Phone(tmp_path / "phone")
    phone.program("uname", "case $1 in -o) echo Android;; -s) echo Linux;; -m) echo aarch64;; esac")
    phone.program("getprop", "case $1 in *manufacturer) echo Maker;; *) echo 'Model 5';; esac")
    phone.program("dumpsys", "echo '  AC powered: false'; echo '  USB powered: false'")
    subprocess.run(["adb", "connect", phone.serial], check=True, capture_output=True)
    yield phone
    phone.socket.close()
    subprocess.run(["adb", "disconnect", phone.serial], check=False, capture_output=True)
    assert [path for path in (phone.root / "tmp").rglob("*") if "kept" not in path.parts] == []


def build(folder: Path, script: str = BENCH, name: str = "llama-bench") -> Path:
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "bin" / "libllama.so").write_bytes(b"x")
    program = folder / "bin" / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return folder


def measure(bundle: Path, phone: adbd.Phone, llama: Path | None) -> Bench:
    place = running.Place(f"adb:{phone.serial}", build=llama)
    measured, files = running.measure(bundle, place, (), ConsoleReporter(), depths=(0, 64), repeats=3)
    assert isinstance(measured, Bench)
    assert Bench.model_validate_json(files[0].read_bytes()) == measured
    assert f"<h2>On {files[0].stem.removeprefix('measure-')}</h2>" in files[-1].read_text()
    return measured


def test_a_phone_is_measured_with_a_named_llama_bench(
    bundle: Path, phone: adbd.Phone, tmp_path: Path
) -> None:
    phone.program("dumpsys", "echo '  AC powered: false'; echo '  USB powered: true'")
    line = [
        "measure",
        bundle,
        "--on",
        f"adb:{phone.serial}",
        "--llama-cli",
        build(tmp_path / "llama"),
        "--json",
    ]
    done = subprocess.run([*COMMAND, *line], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    measured = Bench.model_validate_json(done.stdout)
    assert (measured.device, measured.runtime) == ("Maker Model 5", "llama.cpp b7000 (abc)")
    assert [(d.depth, d.decode.value, d.decode.spread) for d in measured.depths] == [
        (0, 10, 1.5),
        (64, 8, 1.5),
    ]
    assert measured.depths[0].prefill is not None
    assert measured.depths[0].prefill.value == 100
    assert {r.name for r in measured.readings} == {"peak", "peak_file_backed", "peak_anonymous"}
    assert "plugged in (USB), so its power reading means nothing" in measured.energy
    log = next(bundle.glob("measure-127*.log")).read_text()
    assert "-ub 16 -ctk f16 -ctv f16 -t 1 -b 16 -fa 1 --no-repack -p 32 -n 32" in log
    assert "/llama/bin\n" in log


def test_the_fuel_gauge_counts_on_battery_only(bundle: Path, phone: adbd.Phone, tmp_path: Path) -> None:
    """A gauge of 1 A at 4 V that wavers; an hour of the same value would be no measurement."""
    gauge, ended = phone.root / "sys" / "battery", threading.Event()

    def waver() -> None:
        for count in range(100_000):
            if ended.is_set():
                return
            adbd.replace(gauge / "current_now", str(-1_000_000 - count))
            time.sleep(0.02)

    (gauge / "current_now").write_text("-1000000")
    (gauge / "voltage_now").write_text("4000000")
    slow = build(tmp_path / "llama", BENCH.replace("sleep 0.5", 'case "$*" in *"-p 0"*) sleep 6;; esac'))
    threading.Thread(target=waver).start()
    try:
        measured = measure(bundle, phone, slow)
    finally:
        ended.set()
    readings = {reading.name: reading for reading in measured.readings}
    assert readings["power_decode"].value == pytest.approx(4.0, rel=0.01)
    assert readings["energy_decode"].value == pytest.approx(0.4, rel=0.01)
    assert measured.energy.startswith("counter battery")


def test_a_gauge_that_stands_still_or_cannot_be_read(bundle: Path, phone: adbd.Phone, tmp_path: Path) -> None:
    assert "cannot be used by adb's shell" in measure(bundle, phone, build(tmp_path / "llama")).energy
    (phone.root / "sys" / "battery" / "current_now").write_text("-1000000")
    (phone.root / "sys" / "battery" / "voltage_now").write_text("4000000")
    assert "gave 1 values only" in measure(bundle, phone, build(tmp_path / "llama")).energy


@pytest.mark.parametrize(
    "said",
    [
        "eval time = 1 ms / 5 tokens ( 2.25 ms per token, 443.5 tokens per second)\\n"
        "x: eval time = 8.27 ms / 1 runs ( 8.27 ms per token, 12.5 tokens per second)",
        "[ Prompt: 443.5 t/s | Generation: 12.5 t/s ]",
    ],
)
def test_timings_of_llama_cli(bundle: Path, phone: adbd.Phone, tmp_path: Path, said: str) -> None:
    said = said.replace("eval time = 1", "prompt eval time = 1", 1)
    depth = measure(bundle, phone, build(tmp_path / "llama", f"printf '{said}' >&2", "llama-cli")).depths[0]
    assert depth.prefill is not None
    assert (depth.prefill.value, depth.decode.value) == (443.5, 12.5)


def test_pushed_once_and_what_to_type(bundle: Path, phone: adbd.Phone, tmp_path: Path) -> None:
    llama = build(tmp_path / "llama", name="llama-cli")
    place = running.Place(f"adb:{phone.serial}:{adbd.TMP}/kept", build=llama)
    pushed = running.push(bundle, place, ConsoleReporter())
    assert pushed.folder == f"{adbd.TMP}/kept"
    assert pushed.commands == [
        f'adb -s {phone.serial} shell \'cd {adbd.TMP}/kept && env LD_LIBRARY_PATH="$PWD"/llama/bin'
        " ./llama/bin/llama-cli -m bundle/model.gguf -c 128 -b 16 -ub 16 -ctk f16 -ctv f16 -t 1 -fa on"
        " --no-repack'"
    ]
    assert (phone.root / "tmp/kept/bundle/model.gguf").read_bytes() == (bundle / "model.gguf").read_bytes()
    with pytest.raises(DeviceError, match="--overwrite"):
        running.push(bundle, place, ConsoleReporter())
    running.push(bundle, place, ConsoleReporter(), overwrite=True)


def test_what_can_be_wrong_with_a_phone(bundle: Path, phone: adbd.Phone, tmp_path: Path) -> None:
    """One line each; the fixture sees that nothing stays."""
    llama = build(tmp_path / "llama")

    def measure_at(words: str) -> None:
        running.measure(bundle, running.Place(words, build=llama), (), ConsoleReporter())

    with pytest.raises(DeviceError, match="adb sees no phone 'nosuch'"):
        measure_at("adb:nosuch")
    with pytest.raises(InputError, match="no serial number"):
        measure_at("adb:-s")
    with pytest.raises(InputError, match=r"name a llama\.cpp built for Android.*pkg install openssh"):
        running.push(bundle, running.Place(f"adb:{phone.serial}"), ConsoleReporter())
    with pytest.raises(InputError, match="holds none of llama-bench"):
        running.push(bundle, running.Place(f"adb:{phone.serial}", build=bundle), ConsoleReporter())
    with pytest.raises(InputError, match="no llama-cli to talk with"):
        running.push(bundle, running.Place(f"adb:{phone.serial}", build=llama), ConsoleReporter())
    phone.full = True
    with pytest.raises(DeviceError, match="no space left"):
        measure(bundle, phone, llama)
    phone.full = False
    failing = build(tmp_path / "failing", "echo 'error: cannot load' >&2; exit 3")
    with pytest.raises(DeviceError, match=r"llama\.cpp failed on .* \(status 3\): error: cannot load"):
        measure(bundle, phone, failing)
    with pytest.raises(DeviceError, match="gave no speeds"):
        measure(bundle, phone, build(tmp_path / "empty", "echo '[]'"))
    wrong = build(tmp_path / "wrong")
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, 62) + bytes(100)
    (wrong / "bin" / "llama-bench").write_bytes(head)
    with pytest.raises(DeviceError, match=r"was built for x86_64, and .* is aarch64"):
        measure(bundle, phone, wrong)
    phone.drop_on = "--help"
    with pytest.raises(DeviceError, match=r"connection to adb:.* was lost"):
        measure(bundle, phone, llama)
    soon(lambda: not any((phone.root / "tmp").iterdir()), "something stayed on the phone")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"authorised": False}, "has not allowed this computer yet"),
        ({"features": "cmd"}, "Android 7 or newer"),
    ],
)
def test_a_phone_that_may_not_or_cannot(
    bundle: Path,
    server: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, bool],
    said: str,
) -> None:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    phone = adbd.Phone(tmp_path / "phone", **options)
    subprocess.run(["adb", "connect", phone.serial], check=False, capture_output=True)
    with pytest.raises(DeviceError, match=said):
        measure(bundle, phone, build(tmp_path / "llama"))
    phone.socket.close()
