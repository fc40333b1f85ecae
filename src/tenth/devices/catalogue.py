"""Known devices, one TOML file each in ``devices/``, and the sizes and shares a person types.

DRAM is counted in decimal gigabytes as sold: a phone sold with 8 GB has 8 000 000 000 bytes here, so that its
tenth is the 800 MB that its owner expects (859 MB in binary gigabytes; a budget must not err upwards).
What a file holds is said in devices/profile.py.
"""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from importlib import resources
from pathlib import Path

import platformdirs
from pydantic import ValidationError

from tenth.core.errors import InputError, unknown
from tenth.devices.probe import THIS_MACHINE, this_machine
from tenth.devices.profile import Device
from tenth.devices.speed import classes

UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
MAX_TOML_BYTES = 64 * 1024


def all_devices(own: bool = True) -> list[Device]:
    """Every device that has a file, by name, and this machine last. InputError for a broken file.

    own: with those of the person's own folder (`own_folder`), which come before packaged ones of the same
    name.
    """
    files = _files(own)
    return [*(read(files[name]) for name in sorted(files)), this_machine()]


def own_folder() -> Path:
    """Where a person keeps device files: on Linux below $XDG_CONFIG_HOME or ~/.config, in tenth/devices."""
    return platformdirs.user_config_path("tenth") / "devices"


def load(name: str) -> Device:
    """The device of that name; a name that ends in .toml is read as a person's own device file.

    InputError for an unknown name (with the nearest known one) or a file with missing, unknown or wrong keys.
    """
    if name == THIS_MACHINE:
        return this_machine()
    if name.endswith(".toml"):
        return read(Path(name))
    names = _files()
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
    except ValidationError as error:
        raise InputError(f"device file {file}: {_first_problem(error)}") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
        raise InputError(f"device file {file} is not TOML: {error!s:.200}") from error
    if device.name != file.stem:
        raise InputError(f"device file {file} names its device {device.name!r}; name it like the file")
    for name, backend in device.backends.items():
        if backend.kernels not in classes():
            raise unknown(f"class of kernels in {file}, backends.{name}:", backend.kernels, classes())
    return device


def _first_problem(error: ValidationError) -> str:
    """ "bandwidth.spec.value: is missing; every number needs value, source and date"."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    if first["type"] == "missing":
        return f"{where}: is missing (a number is a table of value, source and date)"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


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


def _files(own: bool = True) -> dict[str, Path]:
    folders = [Path(str(resources.files("tenth.devices"))) / "profiles", *([own_folder()] if own else [])]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.toml"))}
