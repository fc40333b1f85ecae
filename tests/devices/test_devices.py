"""Known devices, sizes and shares."""

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import FACT, TOASTER, script, toaster

from tenth.core.errors import InputError
from tenth.devices import catalogue, speed
from tenth.models import source

FILES = sorted((Path(catalogue.__file__).parent / "profiles").glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_device_file_keeps_the_contract(file: Path) -> None:
    device = catalogue.load(file.stem)
    assert device.name == file.stem
    assert device.bytes % 10**9 == 0, "DRAM is counted in decimal gigabytes as sold"
    assert 4 * 10**9 <= device.bytes <= 64 * 10**9
    assert device.storage.value < device.bandwidth.spec.value
    facts = list(every_fact(device.model_dump()))
    assert len(facts) >= 6
    for fact in facts:
        assert len(fact["source"]) > 10
        assert fact["date"].startswith("20")
        if "from memory" in fact["source"] or "for this phone" in fact["source"]:
            assert fact["estimated"]
    if device.kind == "phone":
        assert device.battery is not None
        assert 30e3 < device.battery.value < 90e3
        assert device.memory.limit is not None
        assert device.memory.rule in ("ios", "android")
    for backend in device.backends:
        rates = speed.rates(device, backend)
        assert all(each >= 1 / device.bandwidth.spec.value for each in rates.decode.values())


def every_fact(value: object) -> list[dict]:
    """Every table with a source, however deep."""
    if isinstance(value, dict):
        if "source" in value:
            return [value]
        return [fact for each in value.values() for fact in every_fact(each)]
    return []


def test_a_tenth_of_an_8_gb_phone_is_800_mb() -> None:
    assert catalogue.load("pixel-8").bytes * catalogue.parse_share("10%") == 800_000_000


def test_this_machine_comes_last_and_is_probed_once() -> None:
    here = catalogue.all_devices()[-1]
    assert here is catalogue.load("this-machine")
    assert here.bandwidth.measured
    assert here.bandwidth.spec.value > 1e8
    assert here.cores is not None
    assert here.cores.value >= 1
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        assert f"MemTotal:{here.bytes // 1024:>15} kB".split() == meminfo.read_text().splitlines()[0].split()


def test_a_device_is_one_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It appears in the list, in plans, in the table of the docs and in the bench."""
    toaster(tmp_path / "tenth" / "devices")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert "toaster" in [device.name for device in catalogue.all_devices()]
    assert "toaster" not in [device.name for device in catalogue.all_devices(own=False)]
    command = [sys.executable, "-c", "from tenth.cli.app import main; main()"]
    words = [
        "plan",
        str(source.bundled()),
        "--device",
        "toaster",
        "--share",
        "2%",
        "--context",
        "512",
        "--json",
    ]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60, check=True)
    forecast = json.loads(done.stdout)["forecast"]
    assert forecast["device"] == "toaster"
    listed = subprocess.run([*command, "devices"], capture_output=True, text=True, timeout=60, check=True)
    assert "A toaster" in listed.stdout
    assert "| toaster | 200 MB |" in script("scripts/devices_table.py").page([catalogue.load("toaster")])
    script("bench/devices.py").predictions([catalogue.load("toaster")])
    assert '"device": "toaster"' in capsys.readouterr().out


def test_unknown_device_suggests_the_nearest_and_lists_all() -> None:
    with pytest.raises(InputError, match="Did you mean 'pixel-8'") as caught:
        catalogue.load("pixel8")
    assert all(file.stem in str(caught.value) for file in FILES)


def test_a_persons_own_file_is_read(tmp_path: Path) -> None:
    device = catalogue.load(str(toaster(tmp_path)))
    assert device.bytes == 2_000_000_000
    assert device.power is not None
    assert device.power.decode.value == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: "colour = 'red'" + text, "colour"),
        (lambda text: text.replace("value = 2_000_000_000", "value = -1"), "dram.value"),
        (lambda text: text.replace("value = 2_000_000_000", "value = 1000"), "dram: 1000 B is impossible"),
        (lambda text: text.replace("value = 2_000_000_000", "value = nan"), "dram.value"),
        (lambda text: text.replace("value = 2_000_000_000,", ""), "dram.value: is missing"),
        (lambda text: text.replace(f"dram = {{ value = 2_000_000_000, {FACT} }}", ""), "dram: is missing"),
        (lambda text: text.replace('source = "its label, read today",', "", 1), "dram.source: is missing"),
        (lambda text: text.replace('date = "2026-01-01"', 'date = "soon"', 1), "dram.date"),
        (lambda text: text.replace("[power]", "[battery2]"), "battery2"),
        (lambda text: text.replace("value = 5,", "value = 0.5,"), "1 W idle is not below 0.5 W"),
        (lambda text: text.replace("value = 0.5,", "value = 1.5,"), "impossible"),
        (lambda text: text.replace("value = 8e9,", "value = 8e10,"), "above bandwidth.spec"),
        (lambda text: text.replace("value = 1_900_000_000,", "value = 3e9,"), "memory.limit is above dram"),
        (lambda text: text.replace("Q4_0", "Q4_9"), "Q4_9 is not a storage type"),
        (lambda text: text.replace('"arm-cpu"', '"arm-cpus"'), "Did you mean 'arm-cpu'"),
        (lambda text: text.replace("[backends.cpu", "[backends.cuda"), "backends.cpu is missing"),
        (lambda text: text.replace("board", "spoon"), "kind"),
        (lambda text: text.replace('"toaster"', '"kettle"'), "kettle"),
        (lambda text: "name = ", "not TOML"),
        (lambda text: text + "#" * 70_000, "over 65536 bytes"),
    ],
)
def test_a_broken_file_is_refused_in_one_line_that_names_it(tmp_path: Path, change, said: str) -> None:
    file = toaster(tmp_path, change(TOASTER))
    with pytest.raises(InputError, match=said) as caught:
        catalogue.read(file)
    assert "toaster.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        catalogue.load(str(tmp_path / "no.toml"))
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not TOML"):
        catalogue.load(str(tmp_path / "b.toml"))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("800MB", 800_000_000),
        ("600 MB", 600_000_000),
        ("1.5GB", 1_500_000_000),
        ("512MiB", 512 * 2**20),
        ("1GiB", 2**30),
        (" 40mb ", 40_000_000),
        ("0.1 MB", 100_000),
        ("123B", 123),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert catalogue.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "800", "MB", "-1MB", "1e3MB", "1,5GB", "0MB", "0.4B", "1TBB", "٣MB", "nanMB", "1" * 40]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="is not a size"):
        catalogue.parse_size(text)


@given(
    number=st.decimals(min_value=1, max_value=10**6, places=3),
    unit=st.sampled_from(
        [("kB", 10**3), ("MB", 10**6), ("GB", 10**9), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30)]
    ),
    space=st.sampled_from(["", " "]),
)
def test_sizes_are_exact_and_rounded_down(number: Decimal, unit: tuple[str, int], space: str) -> None:
    assert catalogue.parse_size(f"{number}{space}{unit[0]}") == int(number * unit[1])


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_an_input_error(text: str) -> None:
    try:
        size = catalogue.parse_size(text)
    except InputError:
        size = 1
    assert size >= 1


@pytest.mark.parametrize(
    ("text", "share"), [("10%", 0.1), ("0.1", 0.1), ("100%", 1.0), ("1", 1.0), ("12.5 %", 0.125)]
)
def test_shares(text: str, share: float) -> None:
    assert catalogue.parse_share(text) == share


@pytest.mark.parametrize("text", ["0", "0%", "101%", "-5%", "ten", "", "1.2", "5/10"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(InputError, match="share"):
        catalogue.parse_share(text)


def test_a_bare_ten_is_asked_about() -> None:
    with pytest.raises(InputError, match="did you mean 10%"):
        catalogue.parse_share("10")
