"""Joules, hours and grams: the founding sentence, the floor, and a battery emptied step by step."""

from __future__ import annotations

import pytest

from tenth.core.records import Interval
from tenth.devices import catalogue, energy


def exactly(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


def test_the_founding_sentence() -> None:
    """50 kJ, 7 B parameters, 8 bits, 10 tokens/s: 0.7 J per token, under two hours (MobileLLM)."""
    joules = energy.mobile_llm(7e9)
    assert joules == pytest.approx(0.7)
    assert energy.mobile_llm(1e9) == pytest.approx(0.1)
    assert energy.mobile_llm(350e6) == pytest.approx(0.035)
    hours = energy.hours_at(50_000, joules, 10)
    assert 1.9 < hours < 2
    # The sentence's "every 64 tokens draining 0.2 %" does not follow from it: it is 0.09 %.
    assert energy.share_of_charge(joules, 64) == pytest.approx(0.0009, rel=0.01)


def test_whole_phones_take_more_per_byte_than_the_sentence_and_the_floor_less() -> None:
    assert energy.PER_BYTE["phone"][0] / energy.MOBILE_LLM == pytest.approx(1.26)
    assert energy.floor(1e9, 0.0, "LPDDR5") == pytest.approx(0.056)
    # Llama-3.2-1B as Q4_0: 0.75 GB and 1.24 G weights; arithmetic is a few per cent.
    floor = energy.floor(0.75e9, 1.24e9, "LPDDR5")
    assert 0.042 < floor < 0.044
    assert energy.floor(1e9, 0.0) == min(energy.floor(1e9, 0.0, kind) for kind in energy.DRAM)


def test_power_over_sustained_speed() -> None:
    """Measured: 4.7 W at 18.2 tokens/s are 0.242 J on an iPhone 17 Pro (Qwen3-4B, MLX)."""
    found = energy.per_token(catalogue.load("iphone-17-pro"), exactly(18.2 / 0.43), 2.4e9, 0.43)
    assert found.value == pytest.approx(0.242, rel=0.1)
    assert (found.low / found.value, found.high / found.value) == pytest.approx((1 / 1.3, 1.3))
    other = energy.per_token(catalogue.load("pixel-9"), exactly(10.0), 1e9, None)
    assert (other.low / other.value, other.high / other.value) == pytest.approx((0.5, 2))
    wide = energy.per_token(catalogue.load("pixel-9"), Interval(value=10, low=5, high=20), 1e9, None)
    assert wide.high > other.high
    assert wide.low < other.low


def test_without_a_known_power_bytes_are_counted() -> None:
    car = catalogue.load("sa8295p")
    assert car.power is None
    found = energy.per_token(car, exactly(10.0), 2e9, None)
    each, factor = energy.PER_BYTE["car"]
    assert (found.value, found.low, found.high) == pytest.approx(
        (2e9 * each, 2e9 * each / factor, 2e9 * each * factor)
    )


@pytest.mark.parametrize(("asked", "sustained"), [(2.0, 8.0), (5.0, 8.0), (8.0, 8.0), (20.0, 8.0)])
def test_a_battery_emptied_second_by_second(asked: float, sustained: float) -> None:
    device = catalogue.load("pixel-8")
    assert device.power is not None
    assert device.battery is not None
    active, idle = device.power.decode.value, device.power.idle.value
    left, seconds, owed = 0.95 * device.battery.value, 0, 0.0
    while left > 0:
        owed = min(owed + asked, sustained)  # tokens to decode in this second, none carried over
        busy = owed / sustained
        left -= busy * active + (1 - busy) * idle
        owed, seconds = 0.0, seconds + 1
    found = energy.battery_hours(device, exactly(active / sustained), sustained, asked)
    assert found is not None
    assert found.value == pytest.approx(seconds / 3600, rel=1e-3)


def test_a_device_on_the_mains_has_no_hours() -> None:
    assert energy.battery_hours(catalogue.load("mac-mini-m4"), exactly(1.0), 10, 10) is None


def test_grams() -> None:
    assert energy.grams(3.6e6, 400) == pytest.approx(400)
    assert energy.grams(energy.CLOUD_PROMPT, 125) == pytest.approx(0.03)  # Google's own figure for both
