"""Attacks by a device: everything that it says is a lie, endless, or no number. Real shells, real pipes."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import liars
from bundles import write_bundle

from attacks.report import attack
from tenth.core.errors import TenthError
from tenth.leaderboard.exam import Quiet
from tenth.remote import llama, package, run
from tenth.remote._base import Folder
from tenth.runtime.bundle import open_bundle

PATIENCE = 30  # seconds for one answer


def _refused(work: Callable[[], object]) -> bool:
    """Whether it is one error of ours, of one line, in time."""
    begin = time.monotonic()
    try:
        work()
    except TenthError as error:
        return len(str(error)) < 2000 and time.monotonic() - begin < PATIENCE
    except Exception:
        return False
    return False


def _program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def _endless(there: Folder) -> dict[str, bool]:
    seen: list[str] = []
    outcomes = {
        how: _refused(partial(there.run, script, 60, seen.append)) for how, script in liars.ENDLESS.items()
    }
    there.run("ln -s /dev/zero endless; truncate -s 400000000 large; truncate -s 10 small", 60)
    for name in ("endless", "large"):
        outcomes[f"a file, {name}"] = _refused(partial(there.get, name, 10))
    outcomes["a file as it should be"] = there.get("small", 10) == bytes(10)
    outcomes["escape sequences"] = all(line.isprintable() for line in seen)
    return outcomes


def _facts(there: Folder, folder: Path) -> dict[str, bool]:
    outcomes, path = {}, os.environ["PATH"]
    for what, (name, script) in liars.FACTS.items():
        programs = folder / what.replace(" ", "-")
        _program(programs, name, script)
        os.environ["PATH"] = f"{programs}:{path}"
        begin = time.monotonic()
        try:
            facts = run.look(there)
            words = (facts.system, facts.machine, facts.title)
            held = 0 <= facts.memory < 1 << 80 and facts.space < 1 << 80 and all(map(str.isprintable, words))
        except Exception:
            held = False
        outcomes[what] = held and time.monotonic() - begin < PATIENCE
        os.environ["PATH"] = path
    for answer in liars.PYTHONS:
        outcomes[answer[:40]] = _refused(partial(package.platform, "liar", "Linux", "x86_64", answer))
    return outcomes


def _answers(there: Folder, folder: Path) -> dict[str, bool]:
    outcomes = {}
    for number, script in enumerate(liars.ANSWERS):
        there.put({"tenth": _program(folder, "tenth", script)}, lambda _: None)
        outcomes[f"tenth {number}"] = _refused(partial(run.run_there, there, ["measure", "OUT"], Quiet()))
    plan = open_bundle(write_bundle(folder / "bundle", n_ctx=128, n_ubatch=16, threads=1)).plan
    tests = llama.Tests(plan=plan, sha256="", device="liar", depths=(0,), repeats=1)
    for name, scripts in (("llama-bench", liars.BENCHES), ("llama-cli", liars.TIMINGS)):
        for what, script in scripts.items():
            tool = _program(folder, name, f"case $1 in --help) exit;; esac\n{script}")
            there.put({f"llama/{name}": tool}, lambda _: None)
            outcomes[f"{name}: {what}"] = _refused(partial(llama.measure, there, [f"llama/{name}"], tests))
    return outcomes


def attacks() -> Iterator[dict[str, object]]:
    """Half a minute."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with liars.Here().folder(str(folder / "there")) as there:
            yield attack("remote: endless and large answers", _endless(there))
            yield attack("remote: what a device says it is", _facts(there, folder))
            yield attack("remote: results that are none", _answers(there, folder))
        gone = not list((folder / "there").glob("*")) if (folder / "there").exists() else True
        yield attack("remote: nothing stays", {"folder": gone})


if __name__ == "__main__":
    for line in attacks():
        print(json.dumps(line))
