"""NVIDIA GPUs: millijoules counted by the driver, through the library zeus (`pip install 'tenth[energy]'`).

tenth runs models on the processor; a GPU's energy is not that of the run, so this counter is used only when
it is asked for by name.
"""

from __future__ import annotations

from pathlib import Path

from tenth.measurement.counters._base import Source, Unavailable

_PERIOD = 0.1  # seconds


def find(root: Path) -> Source:
    """Find a counter for each GPU that NVML lists."""
    if not any((root / "dev").glob("nvidia[0-9]*")):
        raise Unavailable("there is no NVIDIA GPU")
    try:
        from zeus.device import get_gpus
        from zeus.device.exception import ZeusBaseGPUError
    except ImportError:
        raise Unavailable("the library zeus is missing: pip install 'tenth[energy]'") from None
    try:
        gpus = get_gpus()
        count = len(gpus)

        def joules() -> float:
            return float(sum(gpus.get_total_energy_consumption(i) for i in range(count))) / 1e3

        joules()
    except ZeusBaseGPUError as error:
        raise Unavailable(f"zeus: {error}") from None
    return Source(
        "nvml", f"{count} NVIDIA GPU (NVML, zeus)", _PERIOD, joules, counts=True, whole=False, automatic=False
    )
