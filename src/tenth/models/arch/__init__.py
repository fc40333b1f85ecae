"""Architectures: one file per Hugging Face ``model_type``, found by its file name; to add one, add a file."""

from __future__ import annotations

import importlib
import pkgutil

from tenth.core.errors import InputError, unknown
from tenth.models.arch._base import OUTSIDE, Architecture, Axis, Entry
from tenth.models.arch._config import Config

__all__ = ["OUTSIDE", "Architecture", "Axis", "Entry", "load", "names"]


def names() -> list[str]:
    """The model types that have a file here, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(config: Config) -> tuple[Config, Architecture]:
    """(the completed config, the architecture) of what config.json holds.

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
    completed = family(model_type).complete(config)
    architecture = named(completed)
    architecture.check(completed)
    return completed, architecture


def named(config: Config) -> Architecture:
    """The architecture of a completed config that was checked, or is being edited: without another check."""
    return family(config["model_type"]).of(config)


def family(model_type: str) -> Architecture:
    """The architecture of a model type that has a file here."""
    found: Architecture = importlib.import_module(f"{__name__}.{model_type}").ARCHITECTURE
    return found
