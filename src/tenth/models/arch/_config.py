"""Typed, bounded reading of config.json: what is there is hostile until it has passed through here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tenth.core.errors import InputError

Config = dict[str, Any]


def integer(config: Config, key: str, default: int | None = None, low: int = 1, high: int = 1 << 24) -> int:
    """config[key] as an int within low..high; a missing or null one is the default."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise InputError(f"config.json lacks {key!r}; the model's folder is not complete")
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"config.json: {key} must be a whole number, not {value!r:.60}")
    if not low <= value <= high:
        raise InputError(f"config.json: {key} = {value} is outside {low}..{high}")
    return value


def number(
    config: Config, key: str, default: float | None = None, low: float = 0.0, high: float = 1e12
) -> float:
    """config[key] as a finite float within low..high; a missing or null one is the default."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise InputError(f"config.json lacks {key!r}; the model's folder is not complete")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"config.json: {key} must be a finite number, not {value!r:.60}")
    if not low <= value <= high:
        raise InputError(f"config.json: {key} = {value} is outside {low}..{high}")
    return float(value)


def flag(config: Config, key: str, default: bool = False) -> bool:
    """config[key] as a bool; a missing or null one is the default."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InputError(f"config.json: {key} must be true or false, not {value!r:.60}")
    return value


def numbers(config: Config, key: str, length: int) -> list[float]:
    """config[key] as a list of that many finite floats."""
    value = config.get(key)
    if not isinstance(value, list) or len(value) != length:
        raise InputError(f"config.json: {key} must be a list of {length} numbers")
    return [number({key: v}, key, low=-1e12) for v in value]


def only(config: Config, key: str, allowed: Iterable[Any], default: Any, why: str) -> None:
    """Refuse a value of config[key] that the runtime's graph does not have."""
    value = config.get(key)
    if (default if value is None else value) not in (choices := list(allowed)):
        raise InputError(f"config.json: {key} = {value!r:.60}, but {why}; supported: {choices}")
