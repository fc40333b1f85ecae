"""The folder that a fit makes: what may lie in its place, and how it appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from tenth.core.digests import empty
from tenth.core.errors import InputError, OutputError
from tenth.core.records import Bench, Measurement, Plan, Scorecard, read_record
from tenth.core.store import claimed, write_text

BUNDLE_FILES = {"model.gguf", "plan.json", "scorecard.json", "report.html"}
LOG = "log.txt"
FOLDER = "hf"  # the model as a Hugging Face folder, where one was asked for
MEASUREMENT = "measure.json"  # of tenth measure
REMOTE = "measure-"  # begins the names of what tenth measure --on brings back: measure-<device>.json and .log
# A killed run leaves OUT.partial with nothing but these, whole or named *.partial themselves.
STEMS = {Path(name).stem for name in (*BUNDLE_FILES, LOG)} | {"baseline", "bits", "smaller", FOLDER}


def held_in(out: Path) -> set[str]:
    """Names in OUT, none where it does not exist yet; OutputError for a file and a link to nothing."""
    try:
        out.stat()
        return {entry.name for entry in out.iterdir()}
    except NotADirectoryError:
        raise OutputError(f"{out} is a file; give -o a folder that does not exist yet") from None
    except FileNotFoundError:
        if out.is_symlink():
            raise OutputError(f"{out} is a link to nothing; give -o another folder") from None
        return set()
    except OSError as error:
        raise OutputError(f"cannot use {str(out)!r:.200} as -o: {error.strerror}; give another -o") from None


def check_destination(out: Path, overwrite: bool) -> None:
    """OutputError when OUT is taken: not a folder, not empty, or a finished bundle without overwrite."""
    held = {name for name in held_in(out) if not name.startswith(REMOTE)} - {LOG, MEASUREMENT, FOLDER}
    held -= {f"{name}.partial" for name in (MEASUREMENT, "report.html")}  # of a run that was killed
    if held == BUNDLE_FILES:
        if not overwrite:
            raise OutputError(f"{out} holds a finished result; give another -o, or --overwrite to replace it")
    elif held:
        raise OutputError(f"{out} is not empty and not a finished result; give -o an empty or new folder")


def check_apart(out: Path, work: Path, inputs: Iterable[Path] = ()) -> None:
    """OutputError where OUT and the work folder lie in each other, or an input lies in OUT."""
    try:
        place, shelf = out.resolve(), work.resolve()
        inside = [path for path in inputs if path.resolve().is_relative_to(place)]
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot use {str(out)!r:.200} as -o: {error}; give another -o") from None
    if shelf.is_relative_to(place):
        raise OutputError(f"the work folder {work} lies in {out}; give another --work")
    if place.is_relative_to(shelf):
        raise OutputError(f"{out} lies in the work folder {work}; give another -o")
    if inside:
        raise OutputError(f"{inside[0]} lies in {out}, which would be replaced; give another -o")


def check_unclaimed(out: Path) -> None:
    """OutputError where another run is making OUT, or works in it."""
    partial, message = _partial_of(out.resolve()), _taken(out)
    for folder in (partial, out):
        if folder.is_dir():
            with claimed(folder, message):
                pass


@contextmanager
def new(destination: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside the destination that takes its name at the end, and is removed where anything fails.

    What a killed run left there is removed first. OutputError when the destination is taken, at the start or
    by the end, is being made by another run, or cannot be written.
    """
    with whole(destination, lambda out: check_destination(out, overwrite), STEMS) as partial:
        yield partial


@contextmanager
def whole(destination: Path, check: Callable[[Path], None], stems: Collection[str]) -> Iterator[Path]:
    """As `new`, for any folder: `check` raises where the destination is taken; `stems` begin the names of all
    that a killed run may have left.
    """
    check(destination)
    destination = destination.resolve()
    partial, taken = _partial_of(destination), _taken(destination)
    missing = [parent for parent in partial.parents if not parent.exists()]
    with ExitStack() as stack:
        for parent in reversed(missing):  # made below; removed at the end where it is still empty
            stack.callback(_remove_empty, parent)
        try:
            made = stack.enter_context(_made(partial, taken, stems))
            if destination.exists():
                stack.enter_context(claimed(destination, taken))
            yield made
            check(destination)
            if destination.exists():
                shutil.rmtree(destination)
            partial.replace(destination)
        except OSError as error:
            what = f"{error.filename or destination}: {error.strerror or error}"
            raise OutputError(f"cannot write {what}; choose another folder") from error


@contextmanager
def _made(partial: Path, taken: str, stems: Collection[str]) -> Iterator[Path]:
    """The folder, new or emptied of what a killed run left, claimed for this process, and removed at the end
    where it has no other name then.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    while True:
        if not os.path.lexists(partial):
            partial.mkdir(exist_ok=True)
        _check_ours(partial, stems)
        with claimed(partial, taken):
            if not partial.is_dir():  # it took its name while we looked
                continue
            try:
                empty(partial)
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            return


def _partial_of(destination: Path) -> Path:
    """The folder in which a folder is made."""
    return destination.with_name(destination.name + ".partial")


def _taken(out: Path) -> str:
    return f"{out} is being made or measured by another run of tenth; wait for it, or give another -o"


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _check_ours(partial: Path, stems: Collection[str]) -> None:
    """OutputError for a folder that no killed run has left."""
    ours = partial.is_dir() and not partial.is_symlink()
    if not ours or any(entry.name.split(".")[0] not in stems for entry in partial.iterdir()):
        raise OutputError(f"{partial} is in the way; rename it, or give another -o")


def write(folder: Path, plan: Plan, card: Scorecard) -> None:
    """Write plan.json and scorecard.json into a folder; OutputError where it cannot be written."""
    write_text(folder / "plan.json", plan.model_dump_json(indent=1))
    write_text(folder / "scorecard.json", card.model_dump_json(indent=1))


MAX_PLAN_BYTES = 16 * 1024 * 1024


HEADER_LIMIT = 64 * 1024 * 1024


# A GGUF entry is: uint64 length of the key, the key, uint32 type of the value (8 is string); little-endian.
TEMPLATE_KEY = b"tokenizer.chat_template"


TEMPLATE_ENTRY = len(TEMPLATE_KEY).to_bytes(8, "little") + TEMPLATE_KEY + (8).to_bytes(4, "little")


@dataclass(frozen=True)
class Bundle:
    """A finished output folder, opened for running."""

    folder: Path
    gguf: Path
    plan: Plan
    has_template: bool  # the model brings a chat template; without one it can only continue a text


def open_bundle(folder: Path) -> Bundle:
    """Open OUT/. InputError when it is not a bundle or its plan.json is not a plan."""
    gguf, plan_file = folder / "model.gguf", folder / "plan.json"
    for file in (gguf, plan_file):
        if not file.is_file():
            raise InputError(f"{folder} is not a finished bundle (no {file.name}); make one with tenth fit")
    return Bundle(folder, gguf, read_plan(plan_file), _has_template(gguf))


def read_plan(file: Path) -> Plan:
    """Read and validate a plan.json; InputError names the first wrong field."""
    return read_record(file, TypeAdapter(Plan), "a plan", MAX_PLAN_BYTES)


def _has_template(gguf: Path) -> bool:
    with gguf.open("rb") as stream:
        head = stream.read(4)
        if head != b"GGUF":
            raise InputError(f"{gguf} is not a GGUF file; make the bundle again with tenth fit")
        # Metadata comes first; the window keeps this from reading gigabytes of weights.
        return TEMPLATE_ENTRY in stream.read(HEADER_LIMIT)


R = TypeVar("R")


Measured = Measurement | Bench


MAX_CARD_BYTES = 16 * 1024 * 1024


def read_bundle(folder: Path) -> tuple[Plan, Scorecard]:
    """plan.json and scorecard.json of a finished bundle; InputError when they are missing or wrong."""
    card = _record(folder / "scorecard.json", TypeAdapter(Scorecard), "scorecard", "tenth fit")
    return read_plan(folder / "plan.json"), card


def read_measurements(folder: Path, card: Scorecard) -> dict[str, Measured]:
    """Device -> what measure.json ("this device") and each measure-<device>.json of a bundle say.

    InputError when one is wrong or about another model.gguf.
    """
    here = folder / MEASUREMENT
    files = {"this device": here} if here.exists() else {}
    files |= {file.stem.removeprefix(REMOTE): file for file in sorted(folder.glob(f"{REMOTE}*.json"))}
    adapter: TypeAdapter[Measured] = TypeAdapter(Measurement | Bench)
    measurements = {}
    for device, file in files.items():
        measurements[device] = _record(file, adapter, "measurement", "tenth measure")
        if measurements[device].sha256 != card.sha256:
            raise InputError(f"{file} is about another model.gguf; run tenth measure again, or remove it")
    return measurements


def _record(file: Path, adapter: TypeAdapter[R], what: str, maker: str) -> R:
    """A record out of a file of a bundle; InputError when it is missing or wrong."""
    if not file.is_file():
        raise InputError(f"{file.parent} is not a finished bundle (no {file.name}); make one with {maker}")
    return read_record(file, adapter, f"a {what}", MAX_CARD_BYTES)
