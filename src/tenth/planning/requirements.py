"""What a person requires of a device, as limits of the integer program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pydantic import ValidationError

from tenth.core.errors import BudgetError, InputError
from tenth.core.records import Interval, Requirements
from tenth.devices import energy, speed
from tenth.devices.profile import Device
from tenth.planning.constraints import Cost, Limit
from tenth.planning.plan import Problem

CHAT_SPEED = 10.0  # tokens/s at which a battery is asked about where no --min-speed is given


def checked(device: Device | None, typed: Mapping[str, float | str | None]) -> Requirements:
    """Requirements from what a person typed, by name (None: not given). InputError where they are
    impossible.
    """
    given = {name: value for name, value in typed.items() if value is not None}
    defaults = {"prefer": "quality", "backend": "cpu"}
    of_a_device = [name for name, value in given.items() if value != defaults.get(name)]
    if of_a_device and device is None:
        raise InputError(
            f"{_option(of_a_device[0])} is about a device: give --device NAME (this-machine is one),"
            " not --memory"
        )
    try:
        requirements = Requirements.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{_option(str(first['loc'][0]))} {first['input']}: {first['msg']}") from error
    if device is not None:
        speed.rates(device, requirements.backend)  # an unknown backend is better heard of now
    return requirements


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def token_costs(problem: Problem, device: Device, backend: str) -> tuple[Cost, Cost]:
    """(seconds, joules) of a token that is decoded after half the context."""
    rates = speed.rates(device, backend)
    seconds = Cost(rates.decode, rates.overhead, problem.context // 2)
    if device.power is None:  # so much for each byte
        per_byte = energy.PER_BYTE[device.kind][0]
        return seconds, Cost(dict.fromkeys(rates.decode, per_byte), 0.0, seconds.depth)
    watts = device.power.decode.value / (rates.sustained or 1.0)
    joules = {kind: watts * value for kind, value in seconds.per_byte.items()}
    return seconds, Cost(joules, watts * seconds.fixed, seconds.depth)


def with_requirements(problem: Problem, device: Device, requirements: Requirements) -> Problem:
    """The problem with the limits of these requirements. InputError for what the device cannot be asked,
    BudgetError for a battery that lasts that long by no plan.
    """
    seconds, joules = token_costs(problem, device, requirements.backend)
    limits = []
    if requirements.min_speed:
        limits.append(
            Limit(
                "speed",
                seconds,
                1 / requirements.min_speed,
                f"{requirements.min_speed:g} tokens/s",
                lambda amount: f"{1 / amount:.3g} tokens/s",
                "a smaller --min-speed",
            )
        )
    if requirements.max_joules:
        limits.append(
            Limit(
                "energy",
                joules,
                requirements.max_joules,
                f"{requirements.max_joules:g} J per token",
                lambda amount: f"{amount:.3g} J per token",
                "a larger --max-joules",
            )
        )
    if requirements.battery_hours:
        rate = requirements.min_speed or CHAT_SPEED
        limits += _battery_limit(device, requirements.battery_hours, rate, joules)
    return replace(problem, limits=tuple(limits), seconds_per_token=seconds, prefer=requirements.prefer)


def _battery_limit(device: Device, hours: float, rate: float, joules: Cost) -> list[Limit]:
    """The hours at `rate` tokens/s as a limit on joules per token; none where even decoding without a pause
    lasts as long.
    """
    if device.battery is None:
        raise InputError(
            f"--battery-hours: {device.name} has no battery in its profile; it hangs on the mains"
        )
    allowed = energy.USABLE * device.battery.value / (3600 * hours)  # W
    idle = device.power.idle.value if device.power else 0.0
    if device.power and device.power.decode.value <= allowed:
        return []
    if idle >= allowed:
        longest = energy.USABLE * device.battery.value / (3600 * idle)
        raise BudgetError(
            f"no plan lasts {hours:g} h on {device.name}: doing nothing takes {idle:g} W, which lasts"
            f" {longest:.1f} h; ask for fewer --battery-hours"
        )
    # mean power = idle + busy * (decoding - idle), busy = rate * joules / decoding: solved for joules
    if device.power:
        busy = (allowed - idle) / (device.power.decode.value - idle)
        most = busy * device.power.decode.value / rate
    else:
        most = allowed / rate

    def described(amount: float) -> str:
        return f"{_hours(device, amount, rate):.3g} h at {rate:g} tokens/s"

    requirement = f"{hours:g} h of battery at {rate:g} tokens/s"
    help_text = "fewer --battery-hours or a smaller --min-speed"
    return [Limit("battery", joules, most, requirement, described, help_text)]


def _hours(device: Device, joules: float, rate: float) -> float:
    """Of a battery, at so many joules per token and `rate` tokens/s."""
    power = device.power.decode.value if device.power else joules * rate
    interval = Interval(value=joules, low=joules, high=joules)
    hours = energy.battery_hours(device, interval, power / joules, rate)
    return hours.value if hours else 0.0
