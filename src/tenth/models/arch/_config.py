"""Typed, bounded reading of config.json: what is there is hostile until it has passed through here.

A completed config (`Architecture.complete`) has every key of its family, so a key that is missing here is an
error, and so is a null.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tenth.core.errors import InputError
from tenth.models.formats.hf import JsonObject

Config = JsonObject


def integer(config: Config, key: str, low: int = 1, high: int = 1 << 24) -> int:
    """config[key] as an int within low..high."""
    value = _given(config, key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"config.json: {key} must be a whole number, not {value!r:.60}")
    if not low <= value <= high:
        raise InputError(f"config.json: {key} = {value} is outside {low}..{high}")
    return value


def number(config: Config, key: str, low: float = 0.0, high: float = 1e12) -> float:
    """config[key] as a finite float within low..high."""
    value = _given(config, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"config.json: {key} must be a finite number, not {value!r:.60}")
    if not low <= value <= high:
        raise InputError(f"config.json: {key} = {value} is outside {low}..{high}")
    return float(value)


def flag(config: Config, key: str) -> bool:
    """Read config[key] as a bool. InputError if it is none."""
    value = _given(config, key)
    if not isinstance(value, bool):
        raise InputError(f"config.json: {key} must be true or false, not {value!r:.60}")
    return value


def numbers(config: Config, key: str, length: int) -> list[float]:
    """config[key] as a list of that many finite floats."""
    value = config.get(key)
    if not isinstance(value, list) or len(value) != length:
        raise InputError(f"config.json: {key} must be a list of {length} numbers")
    return [number({key: v}, key, low=-1e12) for v in value]


def only(config: Config, key: str, allowed: Iterable[object], why: str) -> None:
    """Refuse a value of config[key] that the runtime's graph does not have; a missing one is None."""
    if config.get(key) not in (choices := list(allowed)):
        raise InputError(f"config.json: {key} = {config.get(key)!r:.60}, but {why}; supported: {choices}")


def _given(config: Config, key: str) -> Any:
    if config.get(key) is None:
        raise InputError(f"config.json: {key} is {'null' if key in config else 'missing'}; give its value")
    return config[key]
