"""What a decision will do on a device: its speed, energy and battery, and what else could be had there.

Speed is that of decoding after half the context. Limits are held by the predictions themselves, not by the
ends of their intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tenth.core.format import megabytes
from tenth.core.metrics import estimate
from tenth.core.records import Estimate, Forecast, Interval, Requirements, Trade
from tenth.devices import energy, speed
from tenth.devices.profile import RULES, Device
from tenth.planning.plan import Decision, Problem, prefill_slowness, smallest_decision
from tenth.planning.requirements import CHAT_SPEED, token_costs
from tenth.planning.tradeoff import binding, curves

NOTHING = 1e-4  # nats per token; curves end where it is less
BUDGETS = (0.6, 1.0, 1.6, 2.5)  # of the budget, one curve each


def forecast(
    problem: Problem, decision: Decision, budget: int, device: Device, requirements: Requirements
) -> Forecast:
    """What the decision will do on the device, with the curves of what else could be had."""
    return Forecast(
        device=device.name,
        backend=requirements.backend,
        requirements=requirements,
        binding=binding(problem, budget),
        platform=_platform(device, decision),
        curves=_trades(problem, decision, budget, device, requirements.backend),
        estimates=estimates(problem, decision, device, requirements),
    )


def _trades(
    problem: Problem, decision: Decision, budget: int, device: Device, backend: str
) -> list[list[Trade]]:
    """Curves of quality against speed, one for each budget that is better than the smaller ones."""
    least = smallest_decision(problem).memory.total
    budgets = sorted({max(int(budget * part), least) for part in BUDGETS})
    trades: list[list[Trade]] = []
    for curve in curves(problem, budgets, token_costs(problem, device, backend)):
        points = [
            Trade(memory=p.memory, predicted_kl=p.predicted_kl, speed=1 / p.spent[0], joules=p.spent[1])
            for p in curve
            if p.predicted_kl >= min(NOTHING, decision.predicted_kl)
        ]
        if points and (not trades or points[0].predicted_kl < 0.999 * trades[-1][0].predicted_kl):
            trades.append(points)
    return trades


def _platform(device: Device, decision: Decision) -> str:
    """What the device's system charges the decision with, in words."""
    rule, limit = device.memory, device.memory.limit
    charged = rule.charged(decision.memory)
    charge = f"{RULES[rule.rule][1]}; here {megabytes(charged)} MB"
    if limit is None:
        return f"{charge}, with no limit of its own"
    about = "about " if limit.estimated else ""
    over = ": too much" if charged > limit.value else ""
    return f"{charge} of {about}{megabytes(limit.value)} MB that one app may have{over}"


@dataclass(frozen=True)
class _Prediction:
    """A decision on a device: what its estimates are made of."""

    device: Device
    requirements: Requirements
    rates: speed.Rates
    read: Mapping[str, float]  # bytes that a decoded token reads, by ggml type
    decode: Interval  # tokens/s
    prefill: Interval | None  # tokens/s; None where nothing is known

    @classmethod
    def of(
        cls, problem: Problem, decision: Decision, device: Device, requirements: Requirements
    ) -> _Prediction:
        """The prediction at half the context."""
        rates, runtime = speed.rates(device, requirements.backend), decision.runtime
        read = dict(speed.read_bytes(problem.specs, decision.types))
        for kind, size in problem.kv_read(runtime, problem.context // 2).items():
            read[kind] = read.get(kind, 0.0) + size
        slowness = prefill_slowness(runtime.n_ubatch, runtime.repack)
        prefill = speed.prefill(rates, problem.specs, decision.types, slowness)
        return cls(device, requirements, rates, read, speed.decode(rates, read), prefill)


def estimates(
    problem: Problem, decision: Decision, device: Device, requirements: Requirements
) -> list[Estimate]:
    """Speed, energy and battery of a decision, with intervals."""
    prediction = _Prediction.of(problem, decision, device, requirements)
    multiplied = sum(spec.count for spec in speed.multiplied(problem.specs))
    return [*_speeds(prediction, problem, decision), *_energy(prediction, multiplied)]


def _speeds(prediction: _Prediction, problem: Problem, decision: Decision) -> list[Estimate]:
    """Decoding, now, when the device is warm and on its other backends; reading a prompt; loading."""
    device, rates, read = prediction.device, prediction.rates, prediction.read
    backend, measured = rates.backend, speed.decode_known(rates, read)
    basis = "measured" if measured else "class"
    conditions = f"{backend}, after {problem.context // 2:,} tokens, {basis} bandwidths"
    speeds = [estimate("decode", prediction.decode, conditions, known=measured)]
    if rates.sustained is not None:
        sustained = prediction.decode.times(rates.sustained)
        conditions = f"after ten minutes: {rates.sustained:.0%}"
        speeds.append(estimate("decode_sustained", sustained, conditions, known=False))
    if prediction.prefill:
        conditions = f"{backend}, batches of {decision.runtime.n_ubatch}"
        known = speed.prefill_known(rates, speed.prompt_weights(problem.specs, decision.types))
        speeds.append(estimate("prefill", prediction.prefill, conditions, known=known))
    for other in sorted(set(device.backends) - {backend}):
        there = speed.rates(device, other)
        decode, known = speed.decode(there, read), speed.decode_known(there, read)
        speeds.append(estimate(f"decode_{other}", decode, f"the same file on {other}", known=known))
    load = decision.memory.weights / device.storage.value
    loading = Interval(value=load, low=load / 2, high=load * 2)
    return [*speeds, estimate("load", loading, "file over storage speed", known=False)]


def _energy(prediction: _Prediction, multiplied: int) -> list[Estimate]:
    """Joules of a token and what follows from them; multiplied: weights that a token is multiplied with."""
    device, decode, sustained = prediction.device, prediction.decode, prediction.rates.sustained
    power, read = device.power, sum(prediction.read.values())
    known = power is not None and not power.decode.estimated
    if power:
        basis = f"{power.decode.value:g} W over the sustained speed"
    else:
        per_byte, factor = energy.PER_BYTE[device.kind]
        basis = f"{per_byte * 1e12:.0f} pJ per byte read, as a {device.kind}; x/÷ {factor:g}"
    joules = energy.per_token(device, decode, read, sustained)
    memory = device.bandwidth.kind
    floor = energy.floor(read, multiplied, memory)
    conditions = f"DRAM ({memory or 'kind unknown'}) and arithmetic alone"
    energies = [
        estimate("joules", joules, basis, known=known),
        estimate("joules_floor", _exact(floor), conditions, known=known),
    ]
    if power and prediction.prefill:
        reading = energy.per_token(device, prediction.prefill, read, sustained)
        conditions = f"{power.decode.value:g} W over the sustained prefill speed"
        energies.append(estimate("joules_prefill", reading, conditions, known=known))
    return [*energies, *_battery(prediction, joules, known), *_answer(prediction, joules, known)]


def _battery(prediction: _Prediction, joules: Interval, known: bool) -> list[Estimate]:
    """Hours of decoding on one charge; none on the mains."""
    device = prediction.device
    rate = prediction.requirements.min_speed or CHAT_SPEED  # tokens/s
    sustained = prediction.decode.value * (prediction.rates.sustained or 1.0)
    hours = energy.battery_hours(device, joules, sustained, rate)
    if not hours or not device.battery:
        return []
    charge = f"{100 * energy.USABLE:.0f} % of {device.battery.value / 1e3:.1f} kJ"
    return [estimate("battery", hours, f"at {min(rate, sustained):.3g} tokens/s, {charge}", known=known)]


def _answer(prediction: _Prediction, joules: Interval, known: bool) -> list[Estimate]:
    """What one answer takes of a charge, and the CO2 of it where the grid is known."""
    tokens, grid = energy.ANSWER, prediction.requirements.grid
    share = joules.times(energy.share_of_charge(1.0))
    conditions = f"{tokens} tokens, of a charge of {energy.CHARGE / 1e3:.0f} kJ"
    answer = [estimate("answer", share, conditions, known=known)]
    if grid:
        grams = joules.times(energy.grams(tokens, grid))
        cloud = _exact(energy.grams(energy.CLOUD_PROMPT, grid))
        large = f"0.24 Wh, a median prompt of a large service (Google, 2025), at {grid:g} g/kWh"
        answer.append(estimate("co2", grams, f"{tokens} tokens at {grid:g} g/kWh", known=known))
        answer.append(estimate("co2_cloud", cloud, large, known=known))
    return answer


def _exact(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)
