"""Raspberry Pi 5: currents and voltages of its power chip's rails, from `vcgencmd pmic_read_adc`.

    VDD_CORE_A current(7)=2.14800000A
    VDD_CORE_V volt(15)=0.84104930V

The sum over rails is less than what the board takes; pi-top's fit to a meter at the supply is used,
watts = 1.1451 * sum + 0.5879. Devices on the USB ports are not seen. A Pi 4 has no such chip.
"""

from __future__ import annotations

import re
from pathlib import Path

from tenth.core import children
from tenth.devices import foreign
from tenth.measurement.counters._base import Source, Unavailable

_PERIOD = 0.25  # seconds; every reading starts a process
_GAIN, _OFFSET = 1.1451, 0.5879
_LINE = re.compile(r"([A-Z0-9_]{1,40})_([AV])\s+(?:current|volt)\([0-9]+\)=([0-9.]+)[AV]")


def find(root: Path) -> Source:
    """The board's power, where vcgencmd knows it."""
    local = root / "usr/bin/vcgencmd"
    program = str(local) if local.is_file() else children.program("vcgencmd")
    if program is None:
        raise Unavailable("there is no vcgencmd (it comes with Raspberry Pi OS)")

    def watts() -> float:
        return _watts(_ask(program))

    watts()
    return Source(
        "pmic",
        "the board without its USB devices (Pi 5 power chip)",
        _PERIOD,
        watts,
        counts=False,
        whole=True,
    )


def _ask(program: str) -> str:
    try:
        return foreign.output([program, "pmic_read_adc"], 5)
    except OSError as error:
        raise Unavailable(f"{program} does not answer: {error}") from None


def _watts(answer: str) -> float:
    values: dict[str, dict[str, float]] = {}
    for line in foreign.lines(answer):
        found = _LINE.search(line)
        value = foreign.number(found[3]) if found else None
        if found and value is not None:
            values.setdefault(found[1], {})[found[2]] = value
    power = [pair["A"] * pair["V"] for pair in values.values() if len(pair) == 2]
    if not power:
        raise Unavailable(f"vcgencmd pmic_read_adc names no rails (it takes a Pi 5): {answer.strip()[:60]!r}")
    return _GAIN * sum(power) + _OFFSET
