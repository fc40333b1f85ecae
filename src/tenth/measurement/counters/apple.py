"""Apple Silicon: processor, GPU, neural engine and memory, through the library zeus.

zeus (`pip install 'tenth[energy]'`) reads IOReport, which needs no root. Display, storage and
radio are not in it.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from tenth.measurement.counters._base import Source, Unavailable

_PARTS = ("cpu_total_mj", "dram_mj", "gpu_mj", "gpu_sram_mj", "ane_mj")
_PERIOD = 0.1  # seconds


def find(root: Path) -> Source:  # noqa: ARG001
    """Find the power counter of this Mac's chip."""
    if sys.platform != "darwin" or platform.machine() != "arm64":
        raise Unavailable("this is no Apple Silicon Mac")
    try:
        from zeus.device.soc import get_soc
        from zeus.device.soc.common import ZeusSoCInitError
    except ImportError:
        raise Unavailable("the library zeus is missing: pip install 'tenth[energy]'") from None
    try:
        chip = get_soc()
    except ZeusSoCInitError as error:
        raise Unavailable(f"zeus: {error}") from None

    def joules() -> float:
        energy = chip.get_total_energy_consumption()
        return sum(getattr(energy, part, None) or 0 for part in _PARTS) / 1e3

    joules()
    return Source(
        "apple",
        "CPU, GPU, neural engine and DRAM (IOReport, zeus)",
        _PERIOD,
        joules,
        counts=True,
        whole=False,
    )
