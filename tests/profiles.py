"""Devices of one's own for tests: a complete TOML, and what can be changed in it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FACT = 'source = "its label, read today", date = "2026-01-01"'
TOASTER = f"""
name = "toaster"
title = "A toaster"
kind = "board"
dram = {{ value = 2_000_000_000, {FACT} }}
isa = {{ value = ["neon"], {FACT} }}
storage = {{ value = 1e8, {FACT} }}
battery = {{ value = 36_000, {FACT} }}

[memory]
rule = "linux"
limit = {{ value = 1_900_000_000, {FACT} }}

[bandwidth]
spec = {{ value = 2e10, {FACT} }}

[backends.cpu]
kernels = "arm-cpu"
sustained = {{ value = 0.5, {FACT} }}

[backends.cpu.decode]
Q4_0 = {{ value = 8e9, {FACT} }}
Q8_0 = {{ value = 1e10, {FACT} }}

[backends.cpu.prefill]
Q4_0 = {{ value = 5e10, {FACT} }}

[power]
decode = {{ value = 5, {FACT} }}
idle = {{ value = 1, {FACT} }}
"""


def toaster(folder: Path, text: str = TOASTER) -> Path:
    """The file of that device in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "toaster.toml"
    file.write_text(text)
    return file


def script(path: str) -> ModuleType:
    """A script of the repository as a module: "bench/devices.py"."""
    file = Path(__file__).parent.parent / path
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
