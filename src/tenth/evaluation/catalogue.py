"""The tasks that are known: one file each in sets/, found by its name.

A task is lm-eval's own configuration (`source`) with what we change of it; here it is pointed to local files
or left to the hub. Fields of sets/NAME.toml are those of `Definition`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, ValidationError

from tenth.core.errors import InputError, unknown
from tenth.core.records import Record

SPLITS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
PREFIX = "tenth_"  # of the names under which lm-eval knows ours


class Definition(Record):
    """One task of lm-eval: its name, how it is scored, and what chance gives."""

    title: str
    source: str = ""  # lm-eval's file below lm_eval/tasks, with {member}; empty where `settings` says all
    members: tuple[str, ...] = ("",)  # parts that are scored together, as the 27 of BBH
    files: dict[str, str]  # split -> file of --data, with {member}
    metrics: list[str] = Field(min_length=1)  # lm-eval's; the first one is compared
    filter: str = "none"  # lm-eval's way to find the answer in a text
    # What an empty head gets. choices: 1 / number of choices; majority: that, or the likeliest answer of all
    # items if better; none: nothing; else where the item has its list of 0 and 1 for each choice.
    chance: str
    mark: str = "\0"  # an item's answer proper is what follows its last mark
    scorer: Literal["lm-eval", "program", "f1"] = "lm-eval"
    settings: dict[str, JsonValue] = Field(default_factory=dict)  # of lm-eval, in place of the source's
    unset: tuple[str, ...] = ()  # settings of the source that local files do not need


def known() -> dict[str, Definition]:
    """Name -> task, in order. InputError names the file that is no task."""
    definitions = {}
    for file in sorted(resources.files("tenth.evaluation").joinpath("sets").iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".toml"):
            continue
        try:
            definitions[file.name[:-5]] = Definition(**tomllib.loads(file.read_text(encoding="utf-8")))
        except (ValidationError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"{file.name} is no task: {' '.join(str(error).split()):.200}") from None
    return definitions


def load(name: str) -> Definition:
    """A task by its name; InputError lists all for an unknown one."""
    tasks = known()
    if name not in tasks:
        raise unknown("task", name, tasks)
    return tasks[name]


def missing(task: Definition, data: Path) -> list[str]:
    """The files that a folder of data lacks for a task."""
    names = (file.format(member=member) for member in task.members for file in task.files.values())
    return [name for name in names if not (data / name).is_file()]


def write(name: str, task: Definition, data: Path | None, folder: Path, shelf: Path) -> list[str]:
    """Write a task's configurations for lm-eval into `folder`; returns the names that it knows them by.

    data: where the files are, None for the hub; shelf: lm-eval's own tasks.
    """
    names = []
    for member in task.members:
        label = PREFIX + (f"{name}_{member}" if member else name)
        settings: dict[str, object] = {}
        if task.source:
            settings["include"] = str(shelf / task.source.format(member=member))
        settings |= {"task": label, "tag": None, **task.settings}
        if data is not None:
            settings |= _local(task, member, data)
        # JSON is YAML.
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in settings.items()]
        (folder / f"{label}.yaml").write_text("\n".join(lines), encoding="utf-8")
        names.append(label)
    return names


def _local(task: Definition, member: str, data: Path) -> Mapping[str, object]:
    files = {split: str(data.resolve() / file.format(member=member)) for split, file in task.files.items()}
    splits = {key: split if split in files else None for split, key in SPLITS.items()}
    return {
        **dict.fromkeys(task.unset),
        **splits,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }
