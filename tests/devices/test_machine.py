"""What a measurement says of the machine it ran on."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from tenth.devices import machine
from tenth.runtime.llama import cores


def test_the_hottest_sensor_counts_and_nonsense_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    chips = {"k10temp": [41.5, 148.25], "nvme": [0.0, -273.0, 65261.8]}
    groups = {name: [SimpleNamespace(current=each) for each in temps] for name, temps in chips.items()}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: groups, raising=False)
    assert machine.celsius() == 148.25


def test_machine_without_chips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "sensors_temperatures", raising=False)
    heat = machine.celsius()
    assert heat is None or 1 <= heat <= 150
    described = machine.describe(0, machine.load(), heat)
    assert described.threads == described.cores == cores()
    assert described.processor
