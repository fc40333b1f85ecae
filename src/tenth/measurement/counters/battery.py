"""Phones and laptops on battery: the fuel gauge, read from sysfs (on Android through adb's shell, too).

    /sys/class/power_supply/battery/{type,status,current_now,voltage_now}       microamperes, microvolts
    /sys/class/power_supply/BAT0/{type,status,power_now,...}                    microwatts

The sign of the current differs by vendor, so only its size is used, and only while the battery is
discharging: with a charger connected the reading is not what the device takes. Some vendors give
milliamperes: less than 10,000 is read as those, since a running device never draws so few microamperes. The
gauge averages over seconds to half a minute; its figures compare runs on one device better than devices.
"""

from __future__ import annotations

from pathlib import Path

from tenth.measurement.counters._base import Source, Unavailable, read_number, read_text

_PERIOD = 1.0  # seconds; many gauges are slower
_SMALL = 10_000  # below it the unit is a thousandth, not a millionth
_VOLTS = (2.5, 30.0)  # of any battery of a phone or laptop


def find(root: Path) -> Source:
    """The battery, if the device runs on it now."""
    base = root / "sys/class/power_supply"
    supplies = sorted(path.parent for path in base.glob("*/type"))
    batteries = [folder for folder in supplies if _is_battery(folder)]
    if not batteries:
        raise Unavailable(f"no battery under {base}")
    battery = batteries[0]

    def watts() -> float:
        _refuse_charger(battery, supplies)
        return _watts(battery)

    watts()
    return Source("battery", "the whole device, at its battery", _PERIOD, watts, counts=False, whole=True)


def _is_battery(folder: Path) -> bool:
    """Of the device itself: a mouse's or a pen's says scope Device."""
    own = not (folder / "scope").exists() or read_text(folder / "scope") != "Device"
    return own and read_text(folder / "type") == "Battery"


def _refuse_charger(battery: Path, supplies: list[Path]) -> None:
    status = read_text(battery / "status")
    if status != "Discharging":
        raise Unavailable(
            f"the battery is {status.lower()!r}; unplug the device (adb works over Wi-Fi: adb tcpip 5555)"
        )
    for supply in supplies:
        if (supply / "online").exists() and supply != battery and read_text(supply / "online") == "1":
            raise Unavailable(f"the charger {supply.name} is connected; unplug the device")


def _watts(battery: Path) -> float:
    if (battery / "power_now").exists() and (watts := abs(read_number(battery / "power_now"))):
        return watts / 1e6
    return power(read_number(battery / "current_now"), read_number(battery / "voltage_now"))


def power(current: float, volts: float) -> float:
    """Watts from current_now and voltage_now as the kernel has them; Unavailable for what cannot be."""
    volts /= 1e6
    if volts < _VOLTS[0] / 100:
        volts *= 1000  # millivolts
    if not _VOLTS[0] <= volts <= _VOLTS[1]:
        raise Unavailable(f"voltage_now gives {volts:g} V, which no battery has")
    if current == 0:
        raise Unavailable("current_now stands at 0: this gauge does not report the current")
    return abs(current) / (1e3 if abs(current) < _SMALL else 1e6) * volts
