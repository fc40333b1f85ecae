"""From a device to the planner's numbers, and from a decision to what it will do there.

Speed is that of decoding after half the context. Limits are held by the predictions themselves, not by the
ends of their intervals.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from tenth.core.errors import BudgetError, InputError
from tenth.core.format import megabytes
from tenth.core.metrics import estimate
from tenth.core.records import Estimate, Forecast, Interval, Requirements, Trade
from tenth.devices import energy, speed
from tenth.devices.profile import RULES, Device
from tenth.planning.constraints import Cost, Limit
from tenth.planning.plan import Decision, Problem, prefill_slowness, smallest_decision
from tenth.planning.tradeoff import binding, curves

CHAT_SPEED = 10.0  # tokens/s at which a battery is asked about where no --min-speed is given
NOTHING = 1e-4  # nats per token; curves end where it is less
BUDGETS = (0.6, 1.0, 1.6, 2.5)  # of the budget, one curve each


def requirements(device: Device | None, **given: Any) -> Requirements:
    """Demands from what a person typed (None: not given). InputError where they are impossible."""
    kept = {name: value for name, value in given.items() if value is not None}
    asks = [
        name for name in kept if name not in ("prefer", "backend") or kept[name] not in ("quality", "cpu")
    ]
    if asks and device is None:
        option = "--" + asks[0].replace("_", "-")
        raise InputError(
            f"{option} is about a device: give --device NAME (this-machine is one), not --memory"
        )
    try:
        found = Requirements(**kept)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise InputError(f"{option} {first['input']}: {first['msg']}") from error
    if device is not None:
        speed.rates(device, found.backend)  # an unknown backend is better heard of now
    return found


def asked(problem: Problem, device: Device, requirements: Requirements) -> Problem:
    """The problem with the limits of these demands. InputError for what the device cannot be asked."""
    rates = speed.rates(device, requirements.backend)
    seconds = Cost(rates.decode, rates.overhead, problem.context // 2)
    joules = _joules(device, rates, seconds)
    limits = []
    if requirements.min_speed:
        limits.append(
            Limit(
                "speed",
                seconds,
                1 / requirements.min_speed,
                f"{requirements.min_speed:g} tokens/s",
                lambda each: f"{1 / each:.3g} tokens/s",
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
                lambda each: f"{each:.3g} J per token",
                "a larger --max-joules",
            )
        )
    if requirements.battery_hours:
        limits += _battery(device, requirements, joules)
    return replace(problem, limits=tuple(limits), seconds_per_token=seconds, prefer=requirements.prefer)


def _joules(device: Device, rates: speed.Rates, seconds: Cost) -> Cost:
    """Joules of a token: power * seconds, or bytes * pJ/byte."""
    if device.power is None:
        each = energy.PER_BYTE[device.kind][0]
        return Cost(dict.fromkeys(rates.decode, each), 0.0, seconds.depth)
    watts = device.power.decode.value / (rates.sustained or 1.0)
    return Cost({k: watts * v for k, v in seconds.per_byte.items()}, watts * seconds.fixed, seconds.depth)


def _battery(device: Device, requirements: Requirements, joules: Cost) -> list[Limit]:
    """The hours as a limit on joules per token; none where even decoding without a pause lasts as long."""
    hours, seconds_per_token = requirements.battery_hours or 0.0, requirements.min_speed or CHAT_SPEED
    if device.battery is None:
        raise InputError(
            f"--battery-hours: {device.name} has no battery in its profile; it hangs on the mains"
        )
    allowed = energy.USABLE * device.battery.value / (3600 * hours)  # W
    idle = device.power.idle.value if device.power else 0.0
    if device.power and device.power.decode.value <= allowed:
        return []
    if idle >= allowed:
        most = energy.USABLE * device.battery.value / (3600 * idle)
        raise BudgetError(
            f"no plan lasts {hours:g} h on {device.name}: doing nothing takes {idle:g} W, which lasts"
            f" {most:.1f} h; ask for fewer --battery-hours"
        )
    # mean power = idle + busy * (decoding - idle), busy = pace * joules / decoding: solved for joules
    if device.power:
        busy = (allowed - idle) / (device.power.decode.value - idle)
        most = busy * device.power.decode.value / seconds_per_token
    else:
        most = allowed / seconds_per_token

    def said(each: float) -> str:
        return f"{_hours_of(device, each, seconds_per_token):.3g} h at {seconds_per_token:g} tokens/s"

    what = f"{hours:g} h of battery at {seconds_per_token:g} tokens/s"
    return [Limit("battery", joules, most, what, said, "fewer --battery-hours or a smaller --min-speed")]


def _hours_of(device: Device, joules: float, seconds_per_token: float) -> float:
    power = device.power.decode.value if device.power else joules * seconds_per_token
    found = energy.battery_hours(
        device, Interval(value=joules, low=joules, high=joules), power / joules, seconds_per_token
    )
    return found.value if found else 0.0


def forecast(
    problem: Problem,
    decision: Decision,
    budget: int,
    device: Device,
    requirements: Requirements,
    draw: bool = True,
) -> Forecast:
    """What the decision will do on the device. draw: with the curves of what else could be had."""
    rates = speed.rates(device, requirements.backend)
    seconds = Cost(rates.decode, rates.overhead, problem.context // 2)
    joules = _joules(device, rates, seconds)
    found: list[list[Trade]] = []
    if draw:
        least = smallest_decision(problem).memory.total
        budgets = sorted({max(int(budget * part), least) for part in BUDGETS})
        for curve in curves(problem, budgets, (seconds, joules)):
            points = [
                Trade(memory=p.memory, predicted_kl=p.predicted_kl, speed=1 / p.spent[0], joules=p.spent[1])
                for p in curve
                if p.predicted_kl >= min(NOTHING, decision.predicted_kl)
            ]
            if points and (not found or points[0].predicted_kl < 0.999 * found[-1][0].predicted_kl):
                found.append(points)
    return Forecast(
        device=device.name,
        backend=requirements.backend,
        requirements=requirements,
        binding=binding(problem, budget),
        platform=_platform(device, decision),
        curves=found,
        estimates=estimates(problem, decision, device, requirements),
    )


def _platform(device: Device, decision: Decision) -> str:
    rule, limit = device.memory, device.memory.limit
    charged = rule.charged(decision.memory)
    said = f"{RULES[rule.rule][1]}; here {megabytes(charged)} MB"
    if limit is None:
        return f"{said}, with no limit of its own"
    known = "about " if limit.estimated else ""
    over = ": too much" if charged > limit.value else ""
    return f"{said} of {known}{megabytes(limit.value)} MB that one app may have{over}"


def estimates(
    problem: Problem, decision: Decision, device: Device, requirements: Requirements
) -> list[Estimate]:
    """Speed, energy and battery of a decision, with intervals."""
    depth, specs, types = problem.context // 2, problem.specs, decision.types
    rates = speed.rates(device, requirements.backend)
    read = dict(speed.read_bytes(specs, types))
    for kind, size in problem.kv_read(decision.runtime, depth).items():
        read[kind] = read.get(kind, 0.0) + size
    decode = speed.decode(rates, read)
    own = speed.decode_known(rates, read)
    how = f"{requirements.backend}, after {depth:,} tokens, {'measured' if own else 'class'} bandwidths"
    out: list[Estimate] = []

    def add(name: str, of: Interval, conditions: str, known: bool = own) -> None:
        out.append(estimate(name, of, conditions, known=known))

    add("decode", decode, how)
    kept = rates.sustained
    if kept is not None:
        add("decode_sustained", decode.times(kept), f"after ten minutes: {kept:.0%}", known=False)
    slow = prefill_slowness(decision.runtime.n_ubatch, decision.runtime.repack)
    prompt = speed.prefill(rates, specs, types, slow)
    if prompt:
        add(
            "prefill",
            prompt,
            f"{requirements.backend}, batches of {decision.runtime.n_ubatch}",
            known=speed.prefill_known(rates, speed.prompt_weights(specs, types)),
        )
    for other in sorted(set(device.backends) - {requirements.backend}):
        there = speed.rates(device, other)
        add(
            f"decode_{other}",
            speed.decode(there, read),
            f"the same file on {other}",
            known=speed.decode_known(there, read),
        )
    load = decision.memory.weights / device.storage.value
    add("load", Interval(value=load, low=load / 2, high=load * 2), "file over storage speed", known=False)
    out += _power(problem, device, requirements, decode, sum(read.values()), rates.sustained, prompt)
    return out


def _power(
    problem: Problem,
    device: Device,
    requirements: Requirements,
    decode: Interval,
    read: float,
    kept: float | None,
    prompt: Interval | None,
) -> list[Estimate]:
    power = device.power
    known = power is not None and not power.decode.estimated
    out: list[Estimate] = []

    def add(name: str, of: Interval, conditions: str) -> None:
        out.append(estimate(name, of, conditions, known=known))

    def exact(value: float) -> Interval:
        return Interval(value=value, low=value, high=value)

    if power:
        basis = f"{power.decode.value:g} W over the sustained speed"
    else:
        per_byte, factor = energy.PER_BYTE[device.kind]
        basis = f"{per_byte * 1e12:.0f} pJ per byte read, as a {device.kind}; x/÷ {factor:g}"
    joules = energy.per_token(device, decode, read, kept)
    add("joules", joules, basis)
    weights = sum(spec.count for spec in speed.multiplied(problem.specs))
    memory = device.bandwidth.kind
    floor = energy.floor(read, weights, memory)
    add("joules_floor", exact(floor), f"DRAM ({memory or 'kind unknown'}) and arithmetic alone")
    if power and prompt:
        reading = energy.per_token(device, prompt, read, kept)
        add("joules_prefill", reading, f"{power.decode.value:g} W over the sustained prefill speed")
    seconds_per_token, sustained = requirements.min_speed or CHAT_SPEED, decode.value * (kept or 1.0)
    hours = energy.battery_hours(device, joules, sustained, seconds_per_token)
    if hours and device.battery:
        charge = f"{100 * energy.USABLE:.0f} % of {device.battery.value / 1e3:.1f} kJ"
        add("battery", hours, f"at {min(seconds_per_token, sustained):.3g} tokens/s, {charge}")
    share = joules.times(energy.share_of_charge(1.0))
    add("answer", share, f"{energy.ANSWER} tokens, of a charge of {energy.CHARGE / 1e3:.0f} kJ")
    if requirements.grid:
        grid = f"{requirements.grid:g} g/kWh"
        each = energy.grams(energy.ANSWER, requirements.grid)
        add("co2", joules.times(each), f"{energy.ANSWER} tokens at {grid}")
        cloud = energy.grams(energy.CLOUD_PROMPT, requirements.grid)
        add(
            "co2_cloud",
            exact(cloud),
            f"0.24 Wh, a median prompt of a large service (Google, 2025), at {grid}",
        )
    return out
