"""What a device needs to run tenth: the package and its base dependencies, as one folder for PYTHONPATH; what
only planning takes (scipy) stays here.

Where this machine has the device's architecture, Python and a C library no newer than its, these are the
files installed here, and nothing is fetched. Else pip fetches wheels for the device into the cache, once.
Nothing is installed into the device's system.
"""

from __future__ import annotations

import hashlib
import importlib.metadata as installed
import platform as here
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tenth
from tenth.core import children, digests
from tenth.core.errors import DeviceError, InputError
from tenth.core.store import default_work
from tenth.devices import foreign

OLDEST = (3, 11)  # Python
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_OLDEST_GLIBC = 17  # of the manylinux wheels of the runtime
_NOT_NEEDED = ("__pycache__", "tests", "tiny-7m")  # the bundled model is for fitting
_PLANNING = ("scipy",)  # packages that only a decision takes
_MANYLINUX = re.compile(r"manylinux(?:_2_(\d+)|(2014))_(\w+)")


@dataclass(frozen=True)
class Platform:
    """What decides which compiled files run: machine "aarch64", Python (3, 11), glibc 2.x as x."""

    machine: str
    python: tuple[int, int]
    glibc: int

    def __str__(self) -> str:
        return f"{self.machine}, Python {self.python[0]}.{self.python[1]}, glibc 2.{self.glibc}"


def platform(device: str, system: str, machine: str, python: str) -> Platform:
    """From what a device says of itself: `uname -s`, `uname -m`, and the line of `PROBE`.

    Raises DeviceError, with what to do, where no wheel of the runtime can run there.
    """
    other = "give --llama-cli a llama.cpp that was built for it"
    if system != "Linux":
        raise DeviceError(
            f"{device} runs {system or 'an unknown system'}, and only Linux takes a push; install tenth there"
        )
    if machine.lower() not in _MACHINES:
        raise DeviceError(
            f"{device} is a {machine or 'machine of unknown kind'}; the runtime's wheels are for x86_64 and"
            f" aarch64 (a 64-bit system): {other}"
        )
    if not python:
        raise DeviceError(f"{device} has no python3; install Python 3.{OLDEST[1]} or newer there, or {other}")
    words = python.split()
    numbers = [foreign.whole(word) for word in words[1:3]]
    if len(words) != 5 or numbers[0] is None or numbers[1] is None:
        raise DeviceError(f"the python3 of {device} gives no clear answer ({python[:80]!r})")
    name, version, bits, libc = words[0][:40], (numbers[0], numbers[1]), words[3][:40], words[4][:40]
    if version < OLDEST:
        raise DeviceError(
            f"{device} has Python {version[0]}.{version[1]}; 3.{OLDEST[1]} or newer is needed, or {other}"
        )
    if name != "CPython" or bits != "64":
        raise DeviceError(
            f"the python3 of {device} is a {bits}-bit {name}; 64-bit CPython is needed, or {other}"
        )
    glibc = re.fullmatch(r"glibc2\.([0-9]{1,4})\b.*", libc)
    if not glibc or int(glibc[1]) < _OLDEST_GLIBC:
        raise DeviceError(f"{device} has no glibc 2.{_OLDEST_GLIBC} or newer ({libc}): {other}")
    return Platform(_MACHINES[machine.lower()], version, int(glibc[1]))


# One line: implementation, version, bits, C library. The words of `platform`.
PROBE = (
    "import sys,platform as p;"
    "print(p.python_implementation(),*sys.version_info[:2],64 if sys.maxsize>2**32 else 32,"
    "(''.join(p.libc_ver()) or 'unknown').replace(' ',''))"
)


def files(device: Platform, cache: Path | None = None) -> dict[str, Path]:
    """Name below the folder -> local file, of everything that a device needs.

    Raises InputError where tenth itself is not installed here, DeviceError where wheels cannot be had.
    """
    own = Path(tenth.__file__).parent
    own_files = {f"tenth/{name}": path for name, path in _tree(own)}
    return own_files | (_installed(device) or _fetched(device, cache or default_work() / "kits"))


def _tree(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not set(name.parts) & set(_NOT_NEEDED):
            yield name.as_posix(), path


def _requirements() -> list[str]:
    """The base dependencies of what runs on a device, as pip takes them."""
    try:
        lines = installed.requires("tenth") or []
    except installed.PackageNotFoundError:
        raise InputError(
            "tenth is not installed here, so its dependencies are unknown; pip install it first"
        ) from None
    return sorted(line for line in lines if "extra ==" not in line and _name(line) not in _PLANNING)


def _name(requirement: str) -> str:
    """ "Typing_Extensions>=4" -> typing-extensions."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def _installed(device: Platform) -> dict[str, Path]:
    """The files installed here, where all of them run there; else nothing."""
    ours = (
        _MACHINES.get(here.machine().lower()),
        sys.version_info[:2],
        sys.implementation.name,
        sys.platform,
    )
    if ours != (device.machine, device.python, "cpython", "linux") or sys.abiflags:
        return {}
    local: dict[str, Path] = {}
    todo, seen = [_name(line) for line in _requirements()], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            package = installed.distribution(name)
        except installed.PackageNotFoundError:
            continue  # asked for on other systems only
        if package.files is None or not _runs(package.read_text("WHEEL") or "", device):
            return {}
        for file in package.files:
            path = Path(str(file.locate()))
            if not set(file.parts) & {"..", *_NOT_NEEDED} and path.is_file():
                local[file.as_posix()] = path
        todo += [_name(line) for line in package.requires or [] if "extra ==" not in line]
    return local


def _runs(wheel: str, device: Platform) -> bool:
    """Whether a wheel's own description says that it runs there."""
    for tag in re.findall(r"^Tag: (\S+)", wheel, re.M):
        if tag.endswith("-none-any"):
            return True
        match = _MANYLINUX.search(tag)
        if match and match[3] == device.machine and int(match[1] or _OLDEST_GLIBC) <= device.glibc:
            return True
    return False


def _fetched(device: Platform, cache: Path) -> dict[str, Path]:
    """The wheels' files, fetched by pip into a folder of the cache that is named after what is in it; fetched
    again where they are not as they were.
    """
    requirements = _requirements()
    key = hashlib.sha256("\n".join([str(device), *requirements]).encode()).hexdigest()[:16]
    final = cache / f"{device.machine}-{device.python[0]}.{device.python[1]}-{key}"
    if not _whole(final):
        partial = final.with_name(final.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        try:
            _pip(device, requirements, partial)
            digests.begin(partial)
            digests.finish(partial)
            partial.replace(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return {name: path for name, path in _tree(final) if name != digests.LIST}


def _whole(folder: Path) -> bool:
    """Whether a fetched folder is there and undamaged; a damaged one is removed."""
    if not folder.exists():
        return False
    try:
        digests.check(folder)
    except digests.Damage:
        digests.remove(folder)
        return False
    return True


def _pip(device: Platform, requirements: list[str], target: Path) -> None:
    newest_first = [f"manylinux_2_{x}_{device.machine}" for x in range(device.glibc, _OLDEST_GLIBC - 1, -1)]
    platforms = [*newest_first, f"manylinux2014_{device.machine}"]
    words = [
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
        "--target",
        str(target.resolve()),
        "--only-binary",
        ":all:",
        "--implementation",
        "cp",
        "--python-version",
        f"{device.python[0]}.{device.python[1]}",
        *(word for name in platforms for word in ("--platform", name)),
        *requirements,
    ]
    done = subprocess.run(
        children.module("pip", *words),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=target.parent,  # pip reads names of files and folders, too, where it is
        env=children.python_environment(),
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        reason = (
            errors[-1].removeprefix("ERROR: ")[:300] if errors else f"pip ended with status {done.returncode}"
        )
        raise DeviceError(
            f"the wheels for {device} could not be fetched: {reason}; this takes pip and, once, a network"
            f" with {', '.join(requirements)}"
        )
