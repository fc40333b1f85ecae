"""A bundle on another device: look at it, push, run, bring the results back, leave nothing.

<folder>/tenth      starts tenth from this folder alone       (a device with Python)
<folder>/lib/       the package and its dependencies, for PYTHONPATH (kit.py)
<folder>/llama/     a llama.cpp build                         (a device without: llama.py)
<folder>/bundle/    model.gguf, plan.json, scorecard.json
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from tenth.core.errors import DeviceError, InputError
from tenth.core.format import megabytes
from tenth.core.progress import Reporter
from tenth.core.records import MB, Bench, Measurement
from tenth.core.store import atomic, temporary_folder
from tenth.devices import foreign
from tenth.measurement.measure import usual_depths
from tenth.remote import Address, Folder, connect, llama, package, parse
from tenth.report import page
from tenth.runtime.bundle import REMOTE, Bundle, open_bundle, read_bundle

SLACK = 32 * MB  # beside what is pushed: logs, scratch, the results
_FACTS = 50  # lines that a device says of itself
_RESULT, _LOG = 16 << 20, 64 << 20  # bytes that are taken of a result, of a log
_LAUNCHER = """#!/bin/sh
# Made by tenth push: runs tenth from this folder; nothing is installed.
here=$(cd "$(dirname "$0")" && pwd)
# Bytecode is kept: compiling would leave free memory in the process, and less would be measured.
export PYTHONPATH="$here/lib" PYTHONPYCACHEPREFIX="$here/pycache"
exec {python} -s -P -m tenth "$@"
"""
_LOOK = rf"""
echo "system $(uname -s)"
echo "machine $(uname -m)"
echo "kind $(uname -o 2> /dev/null)"
echo "maker $(getprop ro.product.manufacturer 2> /dev/null) $(getprop ro.product.model 2> /dev/null)"
echo "memory $(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo)"
echo "space $(df -Pk . | tail -n 1)"
for p in python3 python3.14 python3.13 python3.12 python3.11; do
  command -v $p > /dev/null && echo "python $p $($p -c {shlex.quote(package.PROBE)} 2> /dev/null)"
done
"""
TERMUX = (
    "in Termux on the phone: pkg install openssh llama-cpp; passwd; sshd; whoami"
    " - then here: tenth push OUT NAME@PHONE -p 8022"
)


@dataclass(frozen=True)
class Facts:
    """What a device says of itself. space: bytes free there; memory: bytes available, 0 for unknown."""

    system: str
    machine: str
    android: bool
    title: str
    memory: int
    space: int
    pythons: list[tuple[str, str]]  # (command, what `kit.PROBE` printed)


@dataclass(frozen=True)
class Pushed:
    """Where a bundle lies now, and what to type."""

    target: str
    folder: str
    size: int  # bytes
    commands: list[str]


@dataclass(frozen=True)
class Place:
    """A device as a person names it on the command line."""

    words: str
    port: int | None = None
    build: Path | None = None  # of llama.cpp, for a device without Python


def push(out: Path, place: Place, reporter: Reporter, overwrite: bool = False) -> Pushed:
    """Leave the bundle in OUT, and what runs it, in a folder of the device.

    Raises InputError (no bundle, no such target), DeviceError (all that can be wrong there).
    """
    bundle, target = open_bundle(out), parse(place.words)
    build = _build(target, place)
    if build and not any(_names(build, program) for program in llama.PROGRAMS[1:]):
        raise InputError(f"{place.build} has llama-bench but no llama-cli to talk with; build that, too")
    with connect(target, place.port) as device:
        final = target.folder or _usual_folder(device.folders, target, out)
        with device.folder(final=final, replace=overwrite) as there:
            facts = look(there)
            files, python = _needed(bundle, facts, build, target)
            size = _send(there, files, python, facts, reporter)
            path = there.keep()
        if python:
            ready, model = shlex.quote(f"{path}/tenth"), shlex.quote(f"{path}/bundle")
            commands = [device.shell(f"{ready} {verb} {model}") for verb in ("chat", "measure")]
        else:
            program = next((p for p in llama.PROGRAMS[1:] if _names(files, p)), llama.PROGRAMS[1])
            words = f"{llama.start(list(files), program)} -m bundle/model.gguf"
            words += f" {shlex.join(llama.settings(bundle.plan.runtime))}"
            commands = [device.shell(f"cd {shlex.quote(path)} && {words}")]
    return Pushed(place.words, path, size, commands)


def measure(
    out: Path,
    place: Place,
    verb: Sequence[str],
    reporter: Reporter,
    depths: Sequence[int] = (),
    repeats: int = 3,
) -> tuple[Measurement | Bench, list[Path]]:
    """(what the device measured, the files it left in OUT here, report.html last); nothing stays there.

    verb: the words after `tenth` there, "OUT" for the bundle's folder, as in ("measure", "OUT", "--json").
    Where llama.cpp's own programs measure, depths and repeats are used instead. Raises as `push` does, and
    what tenth on the device said as a DeviceError.
    """
    bundle, target = open_bundle(out), parse(place.words)
    card = read_bundle(out)[1]
    build = _build(target, place)
    name = f"{REMOTE}{target.slug}"
    with connect(target, place.port) as device, device.folder(target.folder) as there:
        facts = look(there)
        files, python = _needed(bundle, facts, build, target)
        _send(there, files, python, facts, reporter)
        if facts.memory and facts.memory < bundle.plan.memory.total:
            reporter.say(
                f"{target.address} has {megabytes(facts.memory)} MB of memory to give, the bundle wants"
                f" {megabytes(bundle.plan.memory.total)} MB: its pages will be dropped and read again"
            )
        if python:
            measured: Measurement | Bench = _validated(run_there(there, verb, reporter), target)
            log = there.get("bundle/log.txt", _LOG)
        elif "--minutes" in verb:
            raise InputError("--minutes needs tenth on the device; llama.cpp's own programs measure bursts")
        else:
            tests = llama.Tests(
                plan=bundle.plan,
                sha256=card.sha256,
                device=facts.title or target.address,
                depths=depths or usual_depths(bundle.plan.runtime.n_ctx),
                repeats=repeats,
            )
            with reporter.step(f"measure on {target.address}, with llama.cpp's own program", 1.0):
                names = [file for file in files if file.startswith("llama/")]
                measured, log = llama.measure(there, names, tests)
    kept = [out / f"{name}.json", out / f"{name}.log"]
    for path, data in zip(kept, (measured.model_dump_json(indent=1).encode(), log), strict=True):
        with atomic(path) as partial:
            partial.write_bytes(data)
    return measured, [*kept, page.write(out)]


def look(there: Folder) -> Facts:
    """Ask the device what it is; nothing is written there."""
    said = foreign.lines(there.run(_LOOK, 60).out)[:_FACTS]
    lines = [foreign.shown(line).partition(" ") for line in said]
    facts = {key: rest.strip() for key, _, rest in lines}
    space = re.search(r"(-?[0-9]{1,18})\s+[0-9]{1,3}%", facts.get("space", ""))
    return Facts(
        system=facts.get("system", "")[:40],
        machine=facts.get("machine", "")[:40],
        android=facts.get("kind") == "Android" or bool(facts.get("maker")),
        title=facts.get("maker", "")[:100],
        memory=max(0, foreign.whole(facts.get("memory", "")) or 0) * 1024,
        space=int(space[1]) * 1024 if space else 0,
        pythons=[(r.partition(" ")[0], r.partition(" ")[2]) for key, _, r in lines if key == "python"],
    )


def run_there(there: Folder, verb: Sequence[str], reporter: Reporter) -> dict[str, JsonValue]:
    """Run a command of tenth in the pushed folder; its JSON object. What it says on stderr is passed on."""
    words = shlex.join("bundle" if word == "OUT" else word for word in verb)
    script = f'mkdir -p tmp && export TMPDIR="$PWD/tmp" XDG_CACHE_HOME="$PWD/tmp" && ./tenth {words}'
    done = there.run(script, on_line=lambda line: reporter.say(f"  {line}"))
    try:
        answer = foreign.parsed(done.out)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and done.status == 0:
        return answer
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    last = message or done.last_line or "it said nothing"
    if done.status in (137, -9):
        last = f"ended by SIGKILL, as when memory runs out; its last words: {last}"
    raise DeviceError(
        f"tenth {verb[0]} failed on {there.device.name} (status {done.status}): {str(last)[:500]}"
    )


def _build(target: Address, place: Place) -> dict[str, Path]:
    """The files of the llama.cpp build that was named; InputError where a phone over adb got none."""
    if place.build is not None:
        return llama.collect(place.build)
    if target.transport == "adb":
        raise InputError(
            f"adb gives no Python: name a llama.cpp built for Android with --llama-cli PATH (docs/guide.md),"
            f" or use Termux: {TERMUX}"
        )
    return {}


def _usual_folder(folders: str, target: Address, out: Path) -> str:
    name = re.sub(r"[^\w.-]+", "-", out.resolve().name) or "bundle"
    return f"tenth/{name}" if target.transport == "ssh" else f"{folders}/tenth/{name}"


def _needed(
    bundle: Bundle, facts: Facts, build: dict[str, Path], target: Address
) -> tuple[dict[str, Path], str]:
    """(name there -> local file, the Python that runs it; "" for llama.cpp's own programs)."""
    files = {f"bundle/{name}": bundle.folder / name for name in ("model.gguf", "plan.json", "scorecard.json")}
    files = {name: path for name, path in files.items() if path.is_file()}
    if build:
        llama.check_machine(build, facts.machine, target.address)
    if build or facts.android:
        return files | build, ""
    refused: DeviceError | None = None
    for python, answer in facts.pythons or [("", "")]:
        try:
            platform = package.platform(target.address, facts.system, facts.machine, answer)
        except DeviceError as error:
            refused = refused or error
            continue
        return files | {f"lib/{name}": path for name, path in package.files(platform).items()}, python
    assert refused
    raise refused


def _send(there: Folder, files: Mapping[str, Path], python: str, facts: Facts, reporter: Reporter) -> int:
    """Copy everything; returns the bytes. DeviceError where there is no space for it."""
    size = sum(path.stat().st_size for path in files.values())
    if facts.space < size + SLACK:
        name = there.device.name
        raise DeviceError(
            f"{name} has {megabytes(facts.space)} MB free in {Path(there.path).parent}, and"
            f" {megabytes(size + SLACK)} MB are needed; free some, or name another folder: {name}:FOLDER"
        )
    with reporter.step(f"push to {there.device.name}", size, "B") as advance, temporary_folder() as folder:
        if python:
            launcher = folder / "tenth"
            launcher.write_text(_LAUNCHER.format(python=python))
            launcher.chmod(0o755)
            files = {**files, "tenth": launcher}
        there.put(files, advance)
    return size


def _validated(answer: Mapping[str, object], target: Address) -> Measurement:
    """A measurement as this version writes it; the device is not trusted."""
    try:
        return Measurement.model_validate(answer)
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise DeviceError(f"{target.address} sent something that is no measurement: {first}") from None


def _names(files: Mapping[str, Path], program: str) -> bool:
    return any(Path(name).name == program for name in files)
