"""Jetson boards: the INA3221 power monitors, read from sysfs.

    /sys/class/hwmon/hwmonN/{name,inK_label,inK_input,currK_input}     millivolts, milliamperes

The rail of the whole module is taken where there is one; on an AGX Orin the three that make it up.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tenth.measurement.counters._base import Source, Unavailable, read_number, read_text

_PERIOD = 0.1  # seconds
_TOTAL = ("VDD_IN", "POM_5V_IN")
_PARTS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")


def find(root: Path) -> Source:
    """Find the sensor of a Jetson module's power."""
    rails: dict[str, tuple[Path, Path]] = {}
    for name in sorted((root / "sys/class/hwmon").glob("hwmon*/name")):
        if read_text(name) != "ina3221":
            continue
        for label in sorted(name.parent.glob("in*_label")):
            channel = label.name.removeprefix("in").removesuffix("_label")
            pair = name.parent / f"in{channel}_input", name.parent / f"curr{channel}_input"
            if pair[1].exists():
                rails[read_text(label)] = pair
    if not rails:
        raise Unavailable(f"no INA3221 under {root / 'sys/class/hwmon'}")
    chosen: Iterable[str] = [name for name in _TOTAL if name in rails][:1]
    if not chosen and all(name in rails for name in _PARTS):
        chosen = _PARTS
    if not chosen:
        raise Unavailable(f"its rails are {', '.join(sorted(rails))}; none of them is known as the total")
    files = [rails[name] for name in chosen]

    def watts() -> float:
        return sum(read_number(volts) * read_number(amperes) for volts, amperes in files) / 1e6

    watts()
    return Source(
        "ina3221", f"the module, rail {' + '.join(chosen)}", _PERIOD, watts, counts=False, whole=True
    )
