"""Architectures: one file per Hugging Face ``model_type``, found by its file name; to add one, add a file."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from tenth.core.errors import InputError, unknown
from tenth.models.arch._base import Architecture, Axis, Entry

__all__ = ["Architecture", "Axis", "Entry", "load", "names"]


def names() -> list[str]:
    """The model types that have a file here, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(config: dict[str, Any]) -> Architecture:
    """The architecture for a config with text_config merged up; refuses what the runtime cannot express.

    Raises InputError for an unknown model_type (naming the nearest) and for settings that a GGUF in stock
    llama.cpp has no place for.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(
            "config.json has no model_type; give a Hugging Face model folder of a known architecture"
        )
    if model_type not in names():
        raise unknown("architecture", model_type, names())
    architecture = named(config)
    architecture.check(config)
    return architecture


def named(config: dict[str, Any]) -> Architecture:
    """The architecture of a config that was checked, or is being edited: without another check."""
    family: Architecture = importlib.import_module(f"{__name__}.{config['model_type']}").ARCHITECTURE
    return family.of(config)
