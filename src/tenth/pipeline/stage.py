"""A step of a fit whose result is a folder in the work folder, named after what it was made from."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, TypeVar, get_type_hints

from pydantic import JsonValue, TypeAdapter

from tenth.core.jobs import Compute, Emit, Job
from tenth.core.records import Record
from tenth.core.store import write_text

Result = TypeVar("Result")
Settings = TypeVar("Settings", bound=Record)
VERSION = 6  # raised whenever a stage's meaning changes, so that old results are not used
TORCH = ("torch", "transformers.models.llama.modeling_llama")  # the second has what all families share
RESULT = "result.json"  # in a stage's folder: what its `make` returned


class TextFile(Record):
    """A person's file of text, and what tells that it is still the same one."""

    path: Path
    size: int
    modified: int  # nanoseconds

    @classmethod
    def of(cls, path: Path | None) -> TextFile | None:
        """The file as it is now; None for no file."""
        if path is None:
            return None
        status = path.stat()
        return cls(path=path, size=status.st_size, modified=status.st_mtime_ns)

    @staticmethod
    def path_of(file: TextFile | None) -> Path | None:
        """The file's path; None for no file."""
        return None if file is None else file.path


class Stage(Job[Result]):
    """A frozen record of a step's inputs: its `key` names the folder, its `run` is what the child calls.

    A subclass gives `name` (of its folder), `label` (for the progress bar), fields, and `make`. Fields that
    do not change the result, or that another field stands for, are named in `unkeyed`.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    unkeyed: ClassVar[frozenset[str]] = frozenset({"model", "folder", "threads", "device"})

    model: Path
    model_hash: str = ""  # stands for `model` in the key
    threads: int = 0
    device: str = "cpu"  # of torch; results differ by float32's rounding only
    folder: Path = Path()  # where the result goes: the store sets it

    @property
    def compute(self) -> Compute:
        """Which threads and which device torch computes with."""
        return Compute(threads=self.threads, device=self.device)

    @property
    def imports(self) -> tuple[str, ...]:
        """What computes on a CPU; a GPU's driver does not survive a fork."""
        return TORCH if self.device == "cpu" else ()

    def settings(self, kind: type[Settings], **others: Path) -> Settings:
        """A record of settings whose fields are inputs of the same name, or are given."""
        shared = {name: getattr(self, name) for name in kind.model_fields if hasattr(self, name)}
        return kind(**shared | others)

    @abstractmethod
    def make(self, emit: Emit) -> Result:
        """Fill the folder; resumes in what a killed run left there."""

    def run(self, emit: Emit) -> Result:
        """In the child: make it, and leave what was returned beside it."""
        result = self.make(emit)
        write_text(self.folder / RESULT, json.dumps(self.returned().dump_python(result, mode="json")))
        return result

    def returned(self) -> TypeAdapter[Result]:
        """What `make` is annotated to return, and how that becomes JSON and back."""
        return TypeAdapter(get_type_hints(type(self).make)["return"])

    def result(self) -> Result:
        """What `make` returned when the folder was finished."""
        return self.returned().validate_python(json.loads((self.folder / RESULT).read_bytes()))

    def key(self) -> dict[str, JsonValue]:
        """What tells this result from others of its name.

        A folder of the store counts by its name, a file in one by its name and its folder's: they are named
        after what they were made from.
        """
        fields: dict[str, JsonValue] = {
            name: _named(getattr(self, name), value)
            for name, value in self.model_dump(mode="json", exclude=set(self.unkeyed)).items()
        }
        return fields | {"version": VERSION}


def _named(value: object, plain: JsonValue) -> JsonValue:
    if isinstance(value, Path):
        return "/".join(value.parts[-2:] if value.suffix else value.parts[-1:])
    if isinstance(value, tuple) and isinstance(plain, list):
        return [_named(each, one) for each, one in zip(value, plain, strict=True)]
    return plain
