"""Known devices, sizes and shares."""

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenth import devices
from tenth.errors import InputError

GOOD = """
name = "toaster"
title = "A toaster"
kind = "board"
dram = 2_000_000_000
source = "its label"
date = "2026-01-01"
"""
FILES = sorted((Path(devices.__file__).parent / "devices").glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_device_file_is_valid_sourced_and_dated(file: Path) -> None:
    device = devices.load(file.stem)
    assert device.name == file.stem
    assert len(device.source) > 10
    assert device.date.startswith("20")
    assert device.dram % 10**9 == 0, "DRAM is counted in decimal gigabytes as sold"
    assert 4 * 10**9 <= device.dram <= 64 * 10**9
    if "from memory" in device.source:
        assert device.estimated


def test_a_tenth_of_an_8_gb_phone_is_800_mb() -> None:
    assert devices.load("pixel-8").dram * devices.parse_share("10%") == 800_000_000


def test_this_machine_comes_last_and_reports_the_kernels_memory() -> None:
    here = devices.known()[-1]
    assert here == devices.load("this-machine")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        assert f"MemTotal:{here.dram // 1024:>15} kB".split() == meminfo.read_text().splitlines()[0].split()


def test_unknown_device_suggests_the_nearest_and_lists_all() -> None:
    with pytest.raises(InputError, match="Did you mean 'pixel-8'") as caught:
        devices.load("pixel8")
    assert all(file.stem in str(caught.value) for file in FILES)


def test_a_persons_own_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "toaster.toml"
    file.write_text(GOOD)
    assert devices.load(str(file)).dram == 2_000_000_000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text + "\ncolour = 'red'", "colour"),
        (lambda text: text.replace("2_000_000_000", "-1"), "dram"),
        (lambda text: text.replace("dram = 2_000_000_000\n", ""), "dram"),
        (lambda text: text.replace("board", "spoon"), "kind"),
        (lambda text: text.replace('"toaster"', '"kettle"'), "kettle"),
        (lambda text: "name = ", "not TOML"),
        (lambda text: text + "#" * 70_000, "over 65536 bytes"),
    ],
)
def test_a_broken_file_is_refused_in_one_line_that_names_it(tmp_path: Path, change, said: str) -> None:
    file = tmp_path / "toaster.toml"
    file.write_text(change(GOOD))
    with pytest.raises(InputError, match=said) as caught:
        devices.read(file)
    assert "toaster.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        devices.load(str(tmp_path / "no.toml"))
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not TOML"):
        devices.load(str(tmp_path / "b.toml"))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("800MB", 800_000_000), ("600 MB", 600_000_000), ("1.5GB", 1_500_000_000), ("512MiB", 512 * 2**20),
        ("1GiB", 2**30), (" 40mb ", 40_000_000), ("0.1 MB", 100_000), ("123B", 123),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert devices.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "800", "MB", "-1MB", "1e3MB", "1,5GB", "0MB", "0.4B", "1TBB", "٣MB", "nanMB", "1" * 40]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="is not a size"):
        devices.parse_size(text)


@given(
    number=st.decimals(min_value=1, max_value=10**6, places=3),
    unit=st.sampled_from(
        [("kB", 10**3), ("MB", 10**6), ("GB", 10**9), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30)]
    ),
    space=st.sampled_from(["", " "]),
)
def test_sizes_are_exact_and_rounded_down(number: Decimal, unit: tuple[str, int], space: str) -> None:
    assert devices.parse_size(f"{number}{space}{unit[0]}") == int(number * unit[1])


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_an_input_error(text: str) -> None:
    try:
        size = devices.parse_size(text)
    except InputError:
        size = 1
    assert size >= 1


@pytest.mark.parametrize(
    ("text", "share"), [("10%", 0.1), ("0.1", 0.1), ("100%", 1.0), ("1", 1.0), ("12.5 %", 0.125)]
)
def test_shares(text: str, share: float) -> None:
    assert devices.parse_share(text) == share


@pytest.mark.parametrize("text", ["0", "0%", "101%", "-5%", "ten", "", "1.2", "5/10"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(InputError, match="share"):
        devices.parse_share(text)


def test_a_bare_ten_is_asked_about() -> None:
    with pytest.raises(InputError, match="did you mean 10%"):
        devices.parse_share("10")
