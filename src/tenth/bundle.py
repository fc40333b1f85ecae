"""The folder that a fit makes: what may lie in its place, and how it appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tenth.errors import OutputError

if TYPE_CHECKING:
    from tenth.records import Plan, Scorecard

BUNDLE_FILES = {"model.gguf", "plan.json", "scorecard.json", "report.html"}
LOG = "log.txt"
FOLDER = "hf"  # the model as a Hugging Face folder, where one was asked for
MEASUREMENT = "measure.json"  # of tenth measure
REMOTE = "measure-"  # begins the names of what tenth measure --on brings back: measure-<device>.json and .log
# A killed run leaves OUT.partial with nothing but these, whole or named *.partial themselves.
STEMS = {Path(name).stem for name in (*BUNDLE_FILES, LOG)} | {"baseline", "bits", "smaller", FOLDER}


def held_in(out: Path) -> set[str]:
    """Names in OUT, none where it does not exist yet; OutputError for a file and a link to nothing."""
    if not out.exists():
        if out.is_symlink():
            raise OutputError(f"{out} is a link to nothing; give -o a folder that does not exist yet")
        return set()
    if not out.is_dir():
        raise OutputError(f"{out} is a file; give -o a folder that does not exist yet")
    return {entry.name for entry in out.iterdir()}


def check_destination(out: Path, overwrite: bool) -> None:
    """OutputError when OUT is taken: not a folder, not empty, or a finished bundle without overwrite."""
    held = {name for name in held_in(out) if not name.startswith(REMOTE)} - {LOG, MEASUREMENT, FOLDER}
    if held == BUNDLE_FILES:
        if not overwrite:
            raise OutputError(f"{out} holds a finished result; give another -o, or --overwrite to replace it")
    elif held:
        raise OutputError(f"{out} is not empty and not a finished result; give -o an empty or new folder")


@contextmanager
def new(destination: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside the destination that takes its name at the end, and is removed where anything fails.

    What a killed run left there is removed first. OutputError when the destination is taken, at the start or
    by the end, or cannot be written.
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
    partial = destination.with_name(destination.name + ".partial")
    missing = [parent for parent in partial.parents if not parent.exists()]
    _clear(partial, stems)
    try:
        partial.mkdir(parents=True)
        yield partial
        check(destination)
        if destination.exists():
            shutil.rmtree(destination)
        partial.replace(destination)
    except OSError as error:
        what = f"{error.filename or destination}: {error.strerror or error}"
        raise OutputError(f"cannot write {what}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in missing:  # made above, and still empty
            with suppress(OSError):
                parent.rmdir()


def _clear(partial: Path, stems: Collection[str]) -> None:
    """Remove what a killed run left; OutputError for a folder that is no such thing."""
    if not os.path.lexists(partial):
        return
    ours = partial.is_dir() and not partial.is_symlink()
    if not ours or any(entry.name.split(".")[0] not in stems for entry in partial.iterdir()):
        raise OutputError(f"{partial} is in the way; rename it, or give another -o")
    shutil.rmtree(partial, ignore_errors=True)


def write(folder: Path, plan: Plan, card: Scorecard) -> None:
    """plan.json, scorecard.json and report.html."""
    from tenth import report
    from tenth.store import write_text

    write_text(folder / "plan.json", plan.model_dump_json(indent=1))
    write_text(folder / "scorecard.json", card.model_dump_json(indent=1))
    write_text(folder / "report.html", report.render(plan, card))
