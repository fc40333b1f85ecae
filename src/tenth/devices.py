"""Known devices, one TOML file each in ``devices/``, and the sizes and shares a person types.

DRAM is counted in decimal gigabytes as sold: a phone sold with 8 GB has 8 000 000 000 bytes here, so that its
tenth is the 800 MB that its owner expects (859 MB in binary gigabytes; a budget must not err upwards).
A file's facts carry their source and date; `estimated` marks those without a public one.
"""

from __future__ import annotations

import datetime
import os
import re
import tomllib
from decimal import Decimal
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from tenth.errors import InputError, unknown
from tenth.records import Device

THIS_MACHINE = "this-machine"
UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
MAX_TOML_BYTES = 64 * 1024


def known() -> list[Device]:
    """Every device that has a file, by name, and this machine last. InputError for a broken file."""
    files = sorted(Path(str(_folder())).glob("*.toml"))
    return [*(read(file) for file in files), this_machine()]


def load(name: str) -> Device:
    """The device of that name; a name that ends in .toml is read as a person's own device file.

    InputError for an unknown name (with the nearest known one) or a file with missing, unknown or wrong keys.
    """
    if name == THIS_MACHINE:
        return this_machine()
    if name.endswith(".toml"):
        return read(Path(name))
    names = {file.stem: file for file in Path(str(_folder())).glob("*.toml")}
    if name not in names:
        raise unknown("device", name, [*names, THIS_MACHINE], "Or give the bytes yourself: --memory 800MB.")
    return read(names[name])


def read(file: Path) -> Device:
    """Read one device file. InputError naming the file and the first thing wrong with it."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_TOML_BYTES + 1)
        if len(raw) > MAX_TOML_BYTES:
            raise InputError(f"device file {file} is over {MAX_TOML_BYTES} bytes; it should be a few lines")
        device = Device.model_validate(tomllib.loads(raw.decode("utf-8")))
    except OSError as error:
        raise InputError(f"cannot read the device file {file}: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"device file {file} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"device file {file}: {where}: {first['msg']}") from error
    if device.name != file.stem:
        raise InputError(f"device file {file} names its device {device.name!r}; name it like the file")
    return device


def this_machine() -> Device:
    """The machine that this runs on, with the memory that its kernel reports."""
    dram, source = _installed_memory()
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return Device(
        name=THIS_MACHINE, title="This machine", kind="computer", dram=dram, source=source, date=today
    )


def parse_size(text: str) -> int:
    """Bytes of "800MB", "1.5 GB" (decimal) or "512MiB", "1GiB" (binary), rounded down; else InputError."""
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([a-zA-Z]*)\s*", text)
    advice = "write a number and a unit, such as 800MB, 1.5GB or 512MiB"
    if match is None:
        raise InputError(f"{text!r} is not a size; {advice}")
    number, unit = match.groups()
    if unit.lower() not in UNITS:
        problem = f"unit {unit!r} is unknown" if unit else "the unit is missing"
        raise InputError(f"{text!r} is not a size: {problem}; {advice}")
    size = int(Decimal(number) * UNITS[unit.lower()])
    if size < 1:
        raise InputError(f"{text!r} is not a size: it is less than one byte; {advice}")
    return size


def parse_share(text: str) -> float:
    """A share of a device's memory in (0, 1] from "10%" or "0.1"; InputError otherwise."""
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(%?)\s*", text)
    if match is None:
        raise InputError(f"{text!r} is not a share; write 10% or 0.1")
    number, percent = match.groups()
    share = float(Decimal(number) / (100 if percent else 1))
    if not 0 < share <= 1:
        guess = f"; did you mean {number}%?" if not percent and 1 < share <= 100 else ""
        raise InputError(f"a share must be above 0 and at most 100 %, not {text!r}{guess}")
    return share


def _folder() -> resources.abc.Traversable:
    return resources.files("tenth") / "devices"


def _installed_memory() -> tuple[int, str]:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024, "/proc/meminfo, MemTotal"
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "sysconf(SC_PHYS_PAGES)"
    except (AttributeError, OSError, ValueError) as error:
        raise InputError("this machine does not say how much memory it has; use --memory 800MB") from error
