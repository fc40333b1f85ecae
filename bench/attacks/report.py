"""The line that an attack makes."""

from __future__ import annotations

from collections.abc import Mapping


def attack(name: str, outcomes: Mapping[str, bool]) -> dict[str, object]:
    """A line of the report. outcomes: what was tried -> whether it was held off."""
    lost = [what for what, held in outcomes.items() if not held]
    held = len(outcomes) - len(lost)
    return {"name": name, "tried": len(outcomes), "held": held, "lost": len(lost), "which": lost}
