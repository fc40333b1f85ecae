from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from tenth.runtime import syscalls

ALL = syscalls.Rights(threads=True, writes=True)
HEADERS = {
    "x86_64": (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")),
    "aarch64": (Path("/usr/include/asm-generic/unistd.h"),),
}


@pytest.mark.parametrize("machine", syscalls.ARCHITECTURES)
def test_the_numbers_are_the_kernel_s(machine: str) -> None:
    header = next((path for path in HEADERS[machine] if path.is_file()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed")
    text = header.read_text()
    known = {
        name.removeprefix("3264_"): int(number)
        for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)
    }
    # asm-generic/unistd.h: on a machine of 64 bits stat's successors bear the old names
    renamed = {"newfstatat": "fstatat"} if "newfstatat" not in known else {}
    assert {
        name: known.get(renamed.get(name, name)) for name in syscalls.numbers(machine, ALL)
    } == syscalls.numbers(machine, ALL)


@pytest.mark.parametrize("machine", syscalls.ARCHITECTURES)
def test_the_numbers_are_libseccomp_s(machine: str) -> None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("there is no libseccomp")
    for name, number in syscalls.numbers(machine, ALL).items():
        found = library.seccomp_syscall_resolve_name_arch(
            ctypes.c_uint32(syscalls.ARCHITECTURES[machine]), name.encode()
        )
        assert found == number, name


def test_less_rights_are_fewer_calls() -> None:
    for machine in syscalls.ARCHITECTURES:
        every, none = (
            set(syscalls.numbers(machine, rights)) for rights in (ALL, syscalls.Rights(False, False))
        )
        assert none < every
        assert "clone" in every - none
        assert every - none >= {"unlinkat", "renameat", "mkdirat", "ftruncate"}


def test_a_filter_is_short_enough_for_the_kernel() -> None:
    for machine in syscalls.ARCHITECTURES:
        assert len(syscalls.filter_code(machine, 1, ALL)) // 8 <= 4096
