"""Energy counters on files of the real format: the readers are the real ones, the files are written here."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.core.errors import InputError
from tenth.measurement import counters
from tenth.measurement.counters import Meter, Source, Unavailable, battery, ina3221, pmic, rapl
from tenth.measurement.energy import Ledger, least_seconds

SPAN = 262_143_328_850  # max_energy_range_uj of a real package


def lay(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def package(root: Path, name: str, title: str, energy: int, span: int = SPAN) -> Path:
    folder = f"sys/class/powercap/{name}"
    files = {"name": title, "energy_uj": energy, "max_energy_range_uj": span}
    lay(root, {f"{folder}/{file}": content for file, content in files.items()})
    return root / folder / "energy_uj"


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder whose parents anyone may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_rapl_adds_packages_and_nothing_that_is_part_of_one(tmp_path: Path) -> None:
    first = package(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    second = package(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    others = [
        package(tmp_path, name, title, 7)
        for name, title in (
            ("intel-rapl:0:0", "core"),
            ("intel-rapl:0:1", "dram"),
            ("intel-rapl:2", "psys"),
            ("intel-rapl-mmio:0", "package-0"),
        )
    ]
    (tmp_path / "sys/class/powercap/intel-rapl").mkdir()
    source = rapl.find(tmp_path)
    assert "package-0, package-1" in source.scope
    start = source.read()
    first.write_text("4000000\n")
    second.write_text("5500000\n")
    for other in others:
        other.write_text("99000000\n")
    assert source.read() - start == pytest.approx(3.5)


@given(st.lists(st.integers(0, 999), max_size=40), st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_a_wrap_of_rapl_is_made_up_for(steps: list[int], start: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = package(Path(folder), "intel-rapl:0", "package-0", start, span=1000)
        source = rapl.find(Path(folder))
        first, now = source.read(), start
        for step in steps:
            now = (now + step) % 1000
            file.write_text(f"{now}\n")
            source.read()
        assert source.read() - first == pytest.approx(sum(steps) / 1e6)


def test_rapl_that_only_root_may_read_says_so(scratch: Path) -> None:
    package(scratch, "intel-rapl:0", "package-0", 1).chmod(0o400)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    else:
        (scratch / "sys/class/powercap/intel-rapl:0/energy_uj").chmod(0)
    try:
        with pytest.raises(Unavailable, match=r"only root may read .*energy_uj; run as root, or allow it"):
            rapl.find(scratch)
        with pytest.raises(InputError, match="the energy counter rapl cannot be used: only root"):
            counters.choose("rapl", scratch)
        assert counters.choose("auto", scratch)[0] is None
        assert "rapl: only root" in counters.choose("auto", scratch)[1]
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("broken", ["", "many", "12 34"])
def test_a_counter_that_is_no_number_is_refused(tmp_path: Path, broken: str) -> None:
    package(tmp_path, "intel-rapl:0", "package-0", 1).write_text(broken)
    with pytest.raises(Unavailable, match="not a number"):
        rapl.find(tmp_path)


PMIC = """\
  3V7_WL_SW_A current(0)=0.10000000A
  VDD_CORE_A current(7)=2.00000000A
  EXT5V_V volt(24)=5.13000000V
  3V7_WL_SW_V volt(8)=3.70000000V
  VDD_CORE_V volt(15)=0.90000000V
"""


def vcgencmd(root: Path, said: str) -> None:
    lay(root, {"usr/bin/vcgencmd": f"#!/bin/sh\n[ \"$1\" = pmic_read_adc ] && cat <<'END'\n{said}END"})
    (root / "usr/bin/vcgencmd").chmod(0o755)


def test_pi_5_rails_are_multiplied_and_added(tmp_path: Path) -> None:
    vcgencmd(tmp_path, PMIC)
    source = pmic.find(tmp_path)
    assert source.read() == pytest.approx(1.1451 * (0.1 * 3.7 + 2.0 * 0.9) + 0.5879)
    assert source.whole


def test_a_pi_4_has_no_power_chip(tmp_path: Path) -> None:
    vcgencmd(tmp_path, 'error=1 error_msg="Command not registered"\n')
    with pytest.raises(Unavailable, match="it takes a Pi 5"):
        pmic.find(tmp_path)


def jetson(root: Path, rails: dict[int, tuple[str, int, int]]) -> Path:
    lay(root, {"sys/class/hwmon/hwmon0/name": "cpu_thermal", "sys/class/hwmon/hwmon1/name": "ina3221"})
    for channel, (label, volts, amperes) in rails.items():
        stem = "sys/class/hwmon/hwmon1/"
        lay(
            root,
            {
                f"{stem}in{channel}_label": label,
                f"{stem}in{channel}_input": volts,
                f"{stem}curr{channel}_input": amperes,
            },
        )
    return root


def test_jetsons_total_rail_is_taken_alone(tmp_path: Path) -> None:
    jetson(
        tmp_path, {1: ("VDD_IN", 19_000, 600), 2: ("VDD_CPU_GPU_CV", 19_000, 200), 3: ("VDD_SOC", 19_000, 90)}
    )
    lay(tmp_path, {"sys/class/hwmon/hwmon1/in4_label": "sum of shunt voltages"})
    source = ina3221.find(tmp_path)
    assert source.read() == pytest.approx(11.4)
    assert "VDD_IN" in source.scope


def test_jetsons_parts_are_added_and_unknown_rails_refused(tmp_path: Path) -> None:
    parts = {1: ("VDD_GPU_SOC", 19_000, 100), 2: ("VDD_CPU_CV", 19_000, 200), 3: ("VIN_SYS_5V0", 5_000, 400)}
    assert ina3221.find(jetson(tmp_path / "agx", parts)).read() == pytest.approx(1.9 + 3.8 + 2.0)
    with pytest.raises(Unavailable, match="its rails are VDD_ODD"):
        ina3221.find(jetson(tmp_path / "odd", {1: ("VDD_ODD", 1, 1)}))


def phone(root: Path, **changes: object) -> Path:
    files = {"type": "Battery", "status": "Discharging", "current_now": -1_200_000, "voltage_now": 3_900_000}
    lay(root, {f"sys/class/power_supply/battery/{k}": v for k, v in (files | changes).items()})
    return lay(root, {"sys/class/power_supply/usb/type": "USB", "sys/class/power_supply/usb/online": 0})


@pytest.mark.parametrize(
    ("current", "voltage"),
    [
        (-1_200_000, 3_900_000),
        (1_200_000, 3_900_000),
        (-1_200, 3_900_000),
        (1_200, 3_900),
        (1_200_000, 3_900),
    ],
)
def test_a_phones_gauge_in_any_sign_and_unit(tmp_path: Path, current: int, voltage: int) -> None:
    phone(tmp_path, current_now=current, voltage_now=voltage)
    assert battery.find(tmp_path).read() == pytest.approx(4.68)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown"])
def test_a_plugged_in_phone_is_refused(tmp_path: Path, status: str) -> None:
    phone(tmp_path, status=status)
    with pytest.raises(InputError, match=f"the battery is '{status.lower()}'; unplug"):
        counters.choose("battery", tmp_path)


def test_a_phone_on_a_weak_charger_is_refused_too(tmp_path: Path) -> None:
    lay(phone(tmp_path), {"sys/class/power_supply/usb/online": 1})
    with pytest.raises(Unavailable, match="the charger usb is connected"):
        battery.find(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"current_now": 0}, "stands at 0"),
        ({"current_now": 0, "power_now": 0}, "stands at 0"),
        ({"voltage_now": 90_000_000}, "which no battery has"),
        ({"voltage_now": 12}, "which no battery has"),
        ({"type": "Mains"}, "no battery"),
        ({"scope": "Device"}, "no battery"),
    ],
)
def test_a_gauge_that_cannot_be_believed(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    phone(tmp_path, **changes)
    with pytest.raises(Unavailable, match=said):
        battery.find(tmp_path)


def test_a_laptops_battery_gives_power_itself(tmp_path: Path) -> None:
    phone(tmp_path, power_now=9_870_000)
    assert battery.find(tmp_path).read() == pytest.approx(9.87)


def test_what_sees_the_whole_device_is_taken_first(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", "package-0", 1)
    source, _ = counters.choose("auto", tmp_path)
    assert source is not None
    assert source.name == "rapl"
    phone(tmp_path)
    source, without = counters.choose("auto", tmp_path)
    assert source is not None
    assert source.name == "battery"
    assert "no INA3221" in without
    assert counters.choose("none", tmp_path) == (None, "switched off")


def test_without_any_every_reason_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source, without = counters.choose("auto", tmp_path)
    assert source is None
    assert all(f"{name}: " in without for name in counters.known())
    with pytest.raises(InputError, match=r"unknown energy counter 'rapt'.* Did you mean 'rapl'"):
        counters.choose("rapt", tmp_path)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("counts", [True, False])
def test_a_meter_gives_power_times_time(counts: bool) -> None:
    clock = Clock()

    def read() -> float:
        return 7.0 * clock.now if counts else 7.0

    with Meter(Source("test", "", 3600, read, counts, whole=True), clock) as meter:
        assert meter.joules() == 0
        for _ in range(5):
            clock.now += 0.1
            assert meter.joules() == pytest.approx(7 * clock.now)


def test_rising_power_is_integrated_by_trapezoids() -> None:
    clock = Clock()
    source = Source("test", "", 3600, lambda: 10 * clock.now, counts=False, whole=True)
    with Meter(source, clock) as meter:
        for step in (0.1, 0.3, 0.05):
            clock.now += step
            meter.joules()
        assert meter.joules() == pytest.approx(5 * clock.now**2)


def test_a_meter_reads_power_by_itself() -> None:
    enough = threading.Event()
    readings: list[float] = []

    def read() -> float:
        readings.append(7.0)
        if len(readings) > 3:
            enough.set()
        return 7.0

    with Meter(Source("test", "", 0.01, read, counts=False, whole=True)):
        assert enough.wait(60), "the meter's thread does not read"


def test_a_phone_plugged_in_on_the_way_is_an_error(tmp_path: Path) -> None:
    source = battery.find(phone(tmp_path))
    with Meter(source) as meter:
        phone(tmp_path, status="Charging")
        with pytest.raises(InputError, match="battery failed: the battery is 'charging'"):
            meter.joules()


def test_phases_become_gross_and_net(tmp_path: Path) -> None:
    joules = [0.0]
    source = Source("test", "all of it", 0.1, lambda: joules[0], counts=True, whole=True)
    assert least_seconds(source) == 2.0
    with Meter(source) as meter:
        ledger = Ledger(meter)
        ledger.idle = ledger.idle.__class__(0, 3.0, 6.0)
        for more in (20.0, 30.0, 22.0):
            ledger.on_event({"begin": "decode"})
            joules[0] += more
            ledger.on_event({"end": "decode", "tokens": 100})
        found = {reading.name: reading for reading in ledger.readings()}
    assert found["power_idle"].value == 0.5
    gross, net = found["energy_decode"], found["energy_decode_net"]
    assert (gross.value, gross.count) == (pytest.approx(0.22), 3)
    assert gross.spread == pytest.approx(0.05)
    assert 0 < gross.value - net.value < 0.01
    assert "all of it" in gross.conditions


NO_NUMBERS = {
    "superscript": "²",
    "digits": "9" * 4000,
    "many digits": "9" * 5000,
    "underscores": "1_000",
    "infinite": "1e999",
    "nan": "nan",
    "binary": "\udcff\udcfe",
    "escape": "\x1b[2J",
    "empty": "",
}


@pytest.mark.parametrize("what", NO_NUMBERS)
def test_a_file_of_the_system_that_lies(tmp_path: Path, what: str) -> None:
    """Every counter that reads files: one clear reason, which a terminal may show."""

    def spoil(path: Path) -> None:
        path.write_bytes(NO_NUMBERS[what].encode("utf-8", "surrogateescape"))

    power = "sys/class/power_supply/BAT0"
    lay(
        tmp_path,
        {f"{power}/type": "Battery", f"{power}/status": "Discharging", f"{power}/voltage_now": 4_000_000},
    )
    spoil(tmp_path / power / "current_now")
    rail = "sys/class/hwmon/hwmon0"
    lay(tmp_path, {f"{rail}/name": "ina3221", f"{rail}/in1_label": "VDD_IN", f"{rail}/in1_input": 5000})
    spoil(tmp_path / rail / "curr1_input")
    spoil(package(tmp_path, "intel-rapl:0", "package-0", 1))
    for find in (battery.find, ina3221.find, rapl.find):
        with pytest.raises(Unavailable, match="not a number") as reason:
            find(tmp_path)
        assert str(reason.value).isprintable()
        assert len(str(reason.value)) < 400


@pytest.mark.parametrize(
    "said",
    [
        "yes",
        "tr '\\0' 9 < /dev/zero",
        "echo 'VDD_A current(7)=1.2.3A'; echo 'VDD_V volt(7)=1V'",
        "echo 'VDD_A current(7)=.A'; echo 'VDD_V volt(7)=1V'",
        f"echo 'VDD_A current(7)={'9' * 400}A'; echo 'VDD_V volt(7)=1V'",
        "tr '\\0' _ < /dev/zero | head -c 900000",
        "printf '\\033[2J'",
    ],
)
def test_a_power_chip_that_lies(tmp_path: Path, said: str) -> None:
    program = tmp_path / "usr/bin/vcgencmd"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n{said}\n")
    program.chmod(0o755)
    with pytest.raises(Unavailable) as reason:
        pmic.find(tmp_path)
    assert str(reason.value).isprintable()
