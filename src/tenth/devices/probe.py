"""What this machine is: memory, cores, instruction sets, and how fast it reads. Asked once a process."""

from __future__ import annotations

import datetime
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import psutil

from tenth.core.errors import InputError
from tenth.devices import foreign
from tenth.devices.profile import Backend, Bandwidth, Device, Fact, MemoryRule, Words
from tenth.runtime.llama import cores

THIS_MACHINE = "this-machine"
_SECONDS = 0.6  # of reading
_READ = 256 * 2**20  # bytes read at a time, far more than a cache holds
_X86 = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")
_ARM = ("asimddp", "i8mm", "sve", "sve2", "sme", "bf16")


@cache
def this_machine() -> Device:
    """The machine that this runs on: the memory that its kernel reports, the speed it was seen to read at."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    speed = reading_speed()

    def fact(value: float, how: str, estimated: bool = False) -> Fact:
        return Fact(value=value, source=how, date=today, estimated=estimated)

    arm = platform.machine().lower() in ("arm64", "aarch64")
    mac = platform.system() == "Darwin"
    kernels = "apple-cpu" if arm and mac else "arm-cpu" if arm else "x86-cpu"
    return Device(
        name=THIS_MACHINE,
        title="This machine",
        kind="computer",
        dram=fact(installed_memory(), "what the kernel reports in all"),
        memory=MemoryRule(rule="macos" if mac else "linux"),
        bandwidth=Bandwidth(spec=fact(speed, f"read with numpy on {cores()} threads"), measured=True),
        backends={"cpu": Backend(kernels=kernels)},
        isa=Words(value=_instruction_sets(), source="/proc/cpuinfo and the platform's name", date=today),
        storage=fact(0.5e9, "not measured: a SATA disk taken", estimated=True),
        cores=fact(cores(), "the cores that this process may use"),
    )


def reading_speed() -> float:
    """B/s of reading memory with numpy on all cores; the best pass of half a second."""
    threads = cores()
    size = min(_READ, installed_memory() // 16)
    parts = np.array_split(np.ones(size // 8, np.float64), threads)
    best, begin = 0.0, time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        while time.perf_counter() - begin < _SECONDS:
            start = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = max(best, size / (time.perf_counter() - start))
    return best


def _instruction_sets() -> list[str]:
    names = {platform.machine() or "unknown"}
    try:
        text = foreign.read(Path("/proc/cpuinfo"), 4 << 20)
    except OSError:
        return sorted(names)
    for line in text.splitlines():
        if line.lower().startswith(("flags", "features")):
            return [*sorted(names), *(flag for flag in (*_X86, *_ARM) if flag in line.split())]
    return sorted(names)


def installed_memory() -> int:
    """Bytes. Raises InputError where the system does not say."""
    try:
        return int(psutil.virtual_memory().total)
    except OSError as error:
        raise InputError("this machine does not say how much memory it has; use --memory 800MB") from error
