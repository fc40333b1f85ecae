"""Which model is asked, and what."""

from __future__ import annotations

from pathlib import Path

from tenth.core.records import Record, Runtime
from tenth.core.store import sha256
from tenth.runtime.sandbox import Limits


class Subject(Record):
    """A model that is evaluated: its name, its file or folder, and how it is run."""

    name: str
    path: Path  # a GGUF or a Hugging Face folder
    runtime: Runtime | None = None  # of a bundle's plan
    bundle: Path | None = None  # its folder

    def digest(self) -> str:
        """SHA-256 of the GGUF, or of the folder's safetensors files one after the other."""
        files = [self.path] if self.path.is_file() else sorted(self.path.glob("*.safetensors"))
        return sha256(*files)


class EvalSettings(Record):
    """Which tasks a person wants evaluated, and how."""

    tasks: tuple[str, ...]
    limit: int | None = None  # items of each task; None for all
    data: Path | None = None  # folder of JSONL files; None for the hub
    seed: str = ""  # hex; draws other items than the fixed sample (hidden.py)
    threads: int = 0
    limits: Limits | None = None  # a stranger's file, which is run in a sandbox
