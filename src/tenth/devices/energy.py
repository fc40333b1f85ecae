"""What a token costs in joules, and how long a battery lasts at it.

    estimate   W of the whole device while decoding / sustained tokens/s, where the device's power is known;
               else bytes read * pJ/byte of devices of its kind, idle power and screen included
    floor      bytes * pJ/byte of the DRAM + operations * pJ: no device can do with less; a meter that says
               less is wrong
    battery    mean power at a chosen speed v is idle + v / sustained speed * (decoding - idle), for 95 % of
               the charge

Power hardly depends on what is decoded: 4.2 to 4.9 W in 11 of 12 runs of five runtimes on an iPhone 17 Pro
(john-rocky/apple-silicon-llm-bench), and power over sustained speed met their joules within 2 % (median; 29 %
at most).

Sources. DRAM, J per byte: LPDDR4 13-14 pJ/bit (a thesis cited in Dongyunkam/DRAM_info), LPDDR5 7 pJ/bit
(Active-in-Flash paper), LPDDR5X a fifth less (vendors' claim), DDR4 14 pJ/bit (a survey of 2017). int8
multiply and add: 0.2-0.5 pJ (Manning's survey; Horowitz, ISSCC 2014, has 0.23 pJ at 45 nm). MobileLLM (Liu et
al., 2024, after Han et al. 2016 and Malladi et al. 2012): 0.1 J per token and billion parameters at 8 bits,
which is 100 pJ per byte. Whole devices per byte of weights: iPhone 17 Pro 74-189 pJ (median 126); at the wall
or board: Orin Nano 251, Mac mini M4 361, MacBook M5 Pro 177-413, Raspberry Pi 5 and N150 1200-1500 pJ. Cloud:
0.24 Wh for the median text prompt of Gemini apps (Google's own report of August 2025; its answers' length and
model are not published).
"""

from __future__ import annotations

import math

from tenth.core.records import Interval
from tenth.devices.profile import Device

DRAM = {"LPDDR4X": 108e-12, "LPDDR5": 56e-12, "LPDDR5X": 45e-12, "DDR4": 112e-12}  # J per byte
LEAST_DRAM = min(DRAM.values())  # where the kind of memory is not known: a floor must not be too high
OPERATION = 0.3e-12  # J, int8 multiply or add
MOBILE_LLM = 100e-12  # J per byte
PER_BYTE = {
    "phone": (126e-12, 1.5),
    "board": (600e-12, 2.5),
    "car": (600e-12, 2.5),
    "computer": (500e-12, 3.0),
}
POWER_KNOWN, POWER_CLASS = 1.3, 2.0  # factor either way: the device's own power, or one of its class
USABLE = 0.95  # of a battery's charge
CLOUD_PROMPT = 0.24 * 3600  # J
CHARGE, ANSWER = 50_000.0, 500  # J and tokens of the share that a person is told
KWH = 3.6e6  # J


def per_token(device: Device, speed: Interval, read: float, sustained: float | None) -> Interval:
    """J per token. speed: tokens/s, before its `sustained` share is taken. read: bytes that a token reads."""
    if device.power is None:
        value, factor = read * PER_BYTE[device.kind][0], PER_BYTE[device.kind][1]
        return Interval(value=value, low=value / factor, high=value * factor)
    value = device.power.decode.value / (speed.value * (sustained or 1.0))
    power = math.log(POWER_CLASS if device.power.decode.estimated else POWER_KNOWN)
    # The two errors are independent: their logarithms add up like standard deviations.
    up = math.exp(math.hypot(power, math.log(speed.value / speed.low)))
    down = math.exp(math.hypot(power, math.log(speed.high / speed.value)))
    return Interval(value=value, low=value / down, high=value * up)


def floor(read: float, weights: float, dram: str | None = None) -> float:
    """The least joules of a token that reads so many bytes and multiplies so many weights."""
    return read * DRAM.get(dram or "", LEAST_DRAM) + 2 * weights * OPERATION


def mobile_llm(parameters: float, bits: float = 8.0) -> float:
    """J per token by the constant of MobileLLM."""
    return MOBILE_LLM * parameters * bits / 8


def hours_at(charge: float, joules: float, speed: float) -> float:
    """Hours that a charge (J) lasts at so many joules per token and tokens/s."""
    return charge / (joules * speed) / 3600


def battery_hours(device: Device, joules: Interval, sustained: float, speed: float) -> Interval | None:
    """Hours of decoding at `speed` tokens/s on one charge; None for a device on the mains.

    joules: per token, of `per_token`. sustained: tokens/s that the device can keep up; where `speed` is above
    it, it decodes all the time, slower than asked.
    """
    if device.battery is None:
        return None
    busy = min(1.0, speed / sustained)
    idle = device.power.idle.value if device.power else 0.0

    def hours(joules: float) -> float:
        # joules * sustained is the power while decoding
        mean = busy * joules * sustained + (1 - busy) * min(idle, joules * sustained)
        return USABLE * device.battery.value / mean / 3600 if device.battery else 0.0

    return Interval(value=hours(joules.value), low=hours(joules.high), high=hours(joules.low))


def share_of_charge(joules: float, tokens: int = ANSWER, charge: float = CHARGE) -> float:
    """Share of a charge that an answer takes."""
    return joules * tokens / charge


def grams(joules: float, grid: float) -> float:
    """Grams of CO2 of so many joules where a kWh of electricity brings `grid` grams."""
    return joules / KWH * grid
