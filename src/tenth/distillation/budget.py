"""How much to heal: "10min" of time or "5Mtok" of tokens."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tenth.core.errors import InputError

_SECONDS = {"s": 1, "min": 60, "h": 3600}
_TOKENS = {"tok": 1, "ktok": 10**3, "Mtok": 10**6, "Gtok": 10**9}
_UNITS = {unit.lower(): unit for unit in (*_SECONDS, *_TOKENS)}


@dataclass(frozen=True)
class TrainingBudget:
    """One of the two, the other is 0."""

    seconds: float = 0.0
    tokens: int = 0

    @classmethod
    def parse(cls, text: str) -> TrainingBudget:
        """From a number and a unit: s, min, h; tok, ktok, Mtok, Gtok. InputError for anything else."""
        match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{0,6})?)\s*([a-zA-Z]+)\s*", text)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise InputError(
                f"healing of {text!r:.60} is not understood; give a time or tokens: 10min, 2h, 5Mtok"
            )
        value = float(match[1]) * (_SECONDS.get(unit) or _TOKENS[unit])
        if not (math.isfinite(value) and value >= 1):
            raise InputError(
                f"healing of {text!r:.60} is nothing; give a time or tokens such as 10min or 5Mtok"
            )
        return cls(seconds=value) if unit in _SECONDS else cls(tokens=round(value))
