"""What a device needs to run tenth, and what it must be."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tenth.core.errors import DeviceError
from tenth.remote import package


def ours() -> package.Platform:
    return package.Platform(platform.machine(), sys.version_info[:2], 99)


def test_the_probe_describes_this_python() -> None:
    version = f"{sys.version_info[0]} {sys.version_info[1]}"
    said = f"CPython {version} 64 glibc2.36"
    assert package.platform("x", "Linux", "arm64", said) == package.Platform(
        "aarch64", sys.version_info[:2], 36
    )


@pytest.mark.parametrize(
    ("machine", "python", "said"),
    [
        ("riscv64", "CPython 3 12 64 glibc2.36", "x86_64 and aarch64"),
        ("aarch64", "", "no python3"),
        ("aarch64", "CPython 3 10 64 glibc2.36", "has Python 3.10"),
        ("aarch64", "PyPy 3 11 64 glibc2.36", "64-bit PyPy"),
        ("aarch64", "CPython 3 11 64 glibc2.12", "no glibc 2.17"),
        ("aarch64", "rm -rf /; 1 2", "no clear answer"),
    ],
)
def test_devices_that_will_not_do(machine: str, python: str, said: str) -> None:
    with pytest.raises(DeviceError, match=said):
        package.platform("x", "Linux", machine, python)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is pushed to")
def test_the_same_python_gets_what_is_installed_here(tmp_path: Path) -> None:
    found = package.files(ours(), tmp_path)
    needed = {"tenth", "jinja2", "numpy", "psutil", "pydantic", "cyclopts", "xllamacpp"}
    assert {name.split("/")[0] for name in found} >= needed
    assert all(path.is_file() for path in found.values())
    assert "scipy" not in {name.split("/")[0] for name in found}, "a device decides nothing"
    assert not [name for name in found if "__pycache__" in name or "tiny-7m" in name or name.startswith("..")]
    assert not {name.split("/")[0] for name in found} & {"torch", "transformers"}
    assert list(tmp_path.iterdir()) == [], "nothing was fetched"


def test_what_runs_on_a_device_does_without_what_is_not_sent() -> None:
    code = (
        "import sys\nfor name in ('scipy', 'torch', 'transformers'): sys.modules[name] = None\n"
        "from tenth.runtime import chat, serve\n"
        "from tenth.measurement import check, depth, measure\n"
        "from tenth.report import page\n"
        "from tenth.cli.commands import chat, measure, report, serve"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_wheels_that_cannot_be_fetched_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(
        DeviceError, match=r"wheels for aarch64, Python 3\.19, glibc 2\.31 could not be fetched"
    ):
        package.files(package.Platform("aarch64", (3, 19), 31), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wheels_that_were_damaged_are_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip itself is stood in for: the tests have no index."""
    fetched: list[str] = []

    def fetch(device: package.Platform, requirements: list[str], target: Path) -> None:
        fetched.append(str(device))
        target.mkdir(parents=True)
        (target / "jinja2.py").write_text("x = 1\n" * 100)

    monkeypatch.setattr(package, "_requirements", lambda: ["jinja2"])
    monkeypatch.setattr(package, "_pip", fetch)
    device = package.Platform("aarch64", (3, 19), 31)
    first = package.files(device, tmp_path)["jinja2.py"]
    assert package.files(device, tmp_path)["jinja2.py"] == first
    assert len(fetched) == 1
    first.write_text("import os\n")
    assert package.files(device, tmp_path)["jinja2.py"].read_text() == "x = 1\n" * 100
    (first.parent / "numpy.py").write_text("a stranger's")
    assert "numpy.py" not in package.files(device, tmp_path)
    assert len(fetched) == 3
