"""Intel's and AMD's RAPL: microjoules of each processor package, from powercap in sysfs.

    /sys/class/powercap/intel-rapl:0/{name,energy_uj,max_energy_range_uj}      a package
    /sys/class/powercap/intel-rapl:0:0/...                                     a part of it: not added again

Leaves out the power supply, the display, storage, and on most small machines the memory chips. The count goes
back to zero after max_energy_range_uj (minutes at full power), which is made up for. Since 2020 only root may
read it. A domain called psys is the whole platform and contains the packages: not added either.
"""

from __future__ import annotations

import re
from pathlib import Path

from tenth.measurement.counters._base import Source, Unavailable, read_number, read_text

_PERIOD = 0.001  # seconds


class _Package:
    """One package; remembers its last value."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "energy_uj"
        self.span = read_number(folder / "max_energy_range_uj")
        self.last, self.total = read_number(self.file), 0

    def microjoules(self) -> int:
        """Since this object was made. At most one wrap between two calls."""
        now = read_number(self.file)
        step = now - self.last
        self.total += step if step >= 0 else step + self.span
        self.last = now
        return self.total


def find(root: Path) -> Source:
    """Find a counter for each processor package that RAPL measures."""
    base = root / "sys/class/powercap"
    if not base.is_dir():
        raise Unavailable(f"there is no {base}")
    packages: dict[str, Path] = {}
    for folder in sorted(base.glob("*"), key=lambda folder: ("mmio" in folder.name, folder.name)):
        if not re.fullmatch(r"(intel|amd)-rapl(-mmio)?:\d+", folder.name):
            continue
        name = read_text(folder / "name")
        if name.startswith("package"):  # the same package may be there twice, as MSR and as MMIO
            packages.setdefault(name, folder)
    if not packages:
        raise Unavailable(f"{base} lists no CPU package")
    counted = [_Package(folder) for folder in packages.values()]
    return Source(
        name="rapl",
        scope=f"CPU {', '.join(packages)} (RAPL)",
        period=_PERIOD,
        read=lambda: sum(package.microjoules() for package in counted) / 1e6,
        counts=True,
        whole=False,
    )
