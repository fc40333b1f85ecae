"""What a measurement depends on besides the file: the processor, its heat and clock, and what else runs."""

from __future__ import annotations

import datetime
import os
import platform
from contextlib import suppress
from pathlib import Path

import psutil

from tenth.core.records import Machine
from tenth.devices import foreign
from tenth.runtime import llama

_NAMES = ("model name", "Hardware", "Model", "cpu model")  # of /proc/cpuinfo, by architecture
_CPUINFO = 4 << 20  # bytes: 2,000 cores
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_BOARD = Path("/proc/device-tree/model")


def load() -> float | None:
    """Load average of the last minute; None where the system does not say."""
    with suppress(OSError, AttributeError):
        return round(os.getloadavg()[0], 2)
    return None


def celsius() -> float | None:
    """The hottest sensor of the system; None where it shows none.

    psutil reads the monitoring chips, and thermal zones only where there are no such chips: the zones of a
    board whose one chip is in its drive are read here.
    """
    groups = psutil.sensors_temperatures().values() if hasattr(psutil, "sensors_temperatures") else ()
    sensors = [sensor.current for group in groups for sensor in group]
    for file in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
        with suppress(OSError):
            sensors.append((foreign.whole(foreign.read(file)) or 0) / 1000)
    return max((value for value in sensors if 1 <= value <= 150), default=None)


def processor() -> str:
    """The board or the processor by name, else its architecture."""
    with suppress(OSError):
        return foreign.shown(foreign.read(_BOARD)).strip()[:100]
    with suppress(OSError):
        text = foreign.read(Path("/proc/cpuinfo"), _CPUINFO)
        lines = [foreign.shown(line).partition(":") for line in text.splitlines()]
        for key in _NAMES:
            for name, _, value in lines:
                if name.strip() == key and value.strip():
                    return value.strip()[:100]
    return platform.processor() or platform.machine()


def describe(threads: int, load_before: float | None, celsius_before: float | None) -> Machine:
    """The machine now, with what was seen before the measurement. threads: 0 for all."""
    governor = ""
    with suppress(OSError):
        governor = foreign.shown(foreign.read(_GOVERNOR)).strip()[:40]
    return Machine(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        processor=processor(),
        cores=llama.cores(),
        threads=threads or llama.cores(),
        load_before=load_before,
        load_after=load(),
        celsius_before=celsius_before,
        celsius_after=celsius(),
        governor=governor,
    )
