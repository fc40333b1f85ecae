"""Energy counters, one file each: what a machine itself says about the energy it takes.

A file named NAME.py here holds ``find(root)``: the `Source` of that name, or `Unavailable` with the reason in
one line. `root` stands for / (tests lay out the files of a device below a folder of their own). A counter
that is not `automatic` is used only where a person asks for it by name.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from tenth.core.errors import InputError, unknown
from tenth.measurement.counters._base import Meter, Source, Unavailable

__all__ = ["Meter", "Source", "Unavailable", "choose", "known"]

ROOT = Path("/")


def known() -> list[str]:
    """List the names of all energy counters."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def choose(name: str = "auto", root: Path = ROOT) -> tuple[Source | None, str]:
    """(the counter to use, why none of the others).

    name: "auto" takes one that sees the whole device before one that sees the processor only; "none" takes
    none; else that counter, and its absence is an InputError.
    """
    if name == "none":
        return None, "switched off"
    if name != "auto":
        if name not in known():
            raise unknown("energy counter", name, [*known(), "auto", "none"])
        try:
            return _find(name, root), ""
        except Unavailable as reason:
            raise InputError(f"the energy counter {name} cannot be used: {reason}") from None
    sources, reasons = [], []
    for each in known():
        try:
            source = _find(each, root)
        except Unavailable as reason:
            reasons.append(f"{each}: {reason}")
        else:
            sources.append(source)
    usable = [source for source in sources if source.automatic]
    best = min(usable, key=lambda source: (not source.whole, source.name), default=None)
    return best, "; ".join(reasons)


def _find(name: str, root: Path) -> Source:
    source: Source = importlib.import_module(f"{__name__}.{name}").find(root)
    return source
