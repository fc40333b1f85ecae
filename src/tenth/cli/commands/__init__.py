"""Verbs of the command line: one file each, found by its name; to add one, add a file.

A file named NAME.py here holds a function NAME, whose parameters are the options and whose docstring is the
help, and PLACE, a number: the help lists verbs by it. Options that belong together are a frozen record
(_options.py has those that several verbs share). A file loads nothing heavy: `tenth --help` reads them all.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

__all__ = ["known"]


def known() -> dict[str, Callable[..., int | None]]:
    """Name -> function of every verb, in the order of the help."""
    names = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    order = sorted(names, key=lambda name: (modules[name].PLACE, name))
    return {name: getattr(modules[name], name) for name in order}
