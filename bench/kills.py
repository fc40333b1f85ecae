"""Kill a command at random moments and run it again to the end: one and the same result, nothing left behind.

    python bench/kills.py VERB --folder FOLDER [--kills 30] [--first 0] [--fresh 10] [--seed 0]
        [--model bundled] [--text FILE] [--expect DIGEST]

VERB is one of those in `CASES`: fit, normal (error feedback), smaller (parts removed, healed), tokens
(removed, healed), judge, measure. Each run is in FOLDER/run, which is emptied before. One JSON line a run,
and a last one that sums up. Kill number n of a seed is always at the same share of the time of a whole run,
so `--first 10 --kills 5` does five of the thirty; `--expect` takes the result of an earlier piece.

What is compared: of a fit model.gguf, and of every stage in the work folder each file; of a judge's and a
measurement's files what is not a time. What is looked for afterwards: processes, files in TMPDIR, in the
cache folder and beside the result, and unfinished stages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tenth.core.digests import LIST
from tenth.core.store import sha256

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from commands import MARK, running

COMMAND = [sys.executable, "-P", "-c", "from tenth.__main__ import main; main()"]
DIES_WITHIN = 10.0  # seconds, a child whose parent was killed
SMALL = ["--context", 256, "--windows", 8, "--threads", 1, "--baselines", 0]
FITS: dict[str, list[object]] = {
    "fit": ["--memory", "30MB", "--effort", "fast"],
    "normal": ["--memory", "26MB", "--effort", "normal"],
    "smaller": ["--memory", "24.2MB", "--effort", "fast", "--heal", "24ktok"],
    "tokens": ["--memory", "28MB", "--effort", "fast", "--vocabulary", "4k", "--heal", "24ktok"],
}
CASES = (*FITS, "judge", "measure")
# Readings, and keys of records, that differ from run to run.
TIMED = ("decode", "prefill", "load", "first", "seconds", "joules", "energy", "peak", "time", "power", "co2")
LEFT_OUT = {
    "date",
    "seconds",
    "machine",
    "depths",
    "over_time",
    "energy",
    "offline",
    "checks",
    "notes",
    "log",
}


@dataclass(frozen=True)
class Case:
    """What is run, and what of its result must be the same; `run` is the folder of one run."""

    words: list[object]
    result: Callable[[Path], str]
    before: Callable[[Path], object] = lambda _: None
    names: frozenset[str] = frozenset({"out", "work"})  # that may lie in the folder afterwards


@dataclass
class Runner:
    """Runs commands whose processes can be told from all others."""

    run: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def environment(self) -> dict[str, str]:
        """With a temporary and a cache folder of its own, and no hub."""
        own = {MARK: self.mark, "TMPDIR": str(self.run / "tmp"), "XDG_CACHE_HOME": str(self.run / "cache")}
        return {**os.environ, "HF_HUB_OFFLINE": "1", **own}

    def start(self, words: list[object], log: Path) -> subprocess.Popen[bytes]:
        """A command; what it says goes to the log."""
        with log.open("wb") as sink:
            return subprocess.Popen(
                [*COMMAND, *map(str, words)], stdout=sink, stderr=sink, env=self.environment, cwd=self.run
            )

    def running(self) -> list[int]:
        """Processes that it started, or they did, and that are alive."""
        return running(self.mark)

    def gone(self) -> bool:
        """Whether all of them end by themselves."""
        end = time.monotonic() + DIES_WITHIN
        while self.running():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True


def stages(work: Path) -> dict[str, str]:
    """Folder of a stage -> a digest of what is listed in it."""
    found = {}
    for listed in sorted(work.glob(f"*/{LIST}")):
        lines = sorted(line for line in listed.read_text().splitlines() if '"size":-1' not in line)
        found[listed.parent.name] = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    return found


def of_fit(run: Path) -> str:
    """model.gguf."""
    return sha256(run / "out" / "model.gguf")


def of_judge(run: Path) -> str:
    """Every verdict, without what was timed and when."""
    return _digest(sorted((run / "out").glob("*.json")))


def of_measurement(run: Path) -> str:
    """measure.json, without what was timed and when."""
    return _digest([run / "out" / "measure.json"])


def _digest(files: list[Path]) -> str:
    untimed = [_untimed(json.loads(file.read_text())) for file in files]
    return hashlib.sha256(json.dumps([len(files), untimed], sort_keys=True).encode()).hexdigest()


def _untimed(value: object) -> object:
    """A JSON value without the figures that differ from run to run."""
    if isinstance(value, dict):
        name = str(value.get("name", ""))
        if any(timed in name for timed in TIMED):
            return name
        return {key: _untimed(each) for key, each in value.items() if key not in LEFT_OUT}
    return [_untimed(each) for each in value] if isinstance(value, list) else value


def left_behind(runner: Runner, case: Case) -> list[str]:
    """What should not be there after a run that ended by itself."""
    run = runner.run
    left = [f"process {pid}" for pid in runner.running()]
    left += [path.name for path in run.iterdir() if path.name not in {*case.names, "tmp", "cache", "log"}]
    left += [f"tmp/{path.name}" for path in (run / "tmp").iterdir()]
    left += [str(path.relative_to(run)) for path in (run / "cache").rglob("*") if path.is_file()]
    unfinished = (".partial", ".gone")
    for folder in (run / "work", run / "out"):
        if folder.is_dir():
            left += [str(path.relative_to(run)) for path in folder.rglob("*") if path.suffix in unfinished]
    return left


def fresh(runner: Runner, case: Case) -> None:
    """Empty the folder of the runs."""
    shutil.rmtree(runner.run, ignore_errors=True)
    for name in ("tmp", "cache"):
        (runner.run / name).mkdir(parents=True)
    case.before(runner.run)


def to_the_end(runner: Runner, case: Case) -> float:
    """Run the command; its seconds."""
    begin = time.monotonic()
    log = runner.run / "log"
    if runner.start(case.words, log).wait():
        sys.exit(f"the command failed: {log.read_text(errors='replace')[-2000:]}")
    return time.monotonic() - begin


def killed(runner: Runner, case: Case, seconds: float) -> tuple[str, bool]:
    """Run the command and kill it; (what it said last, whether its children ended too)."""
    log = runner.run / "log"
    process = runner.start(case.words, log)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    said = log.read_text(errors="replace").strip().splitlines()
    return (said[-1] if said else ""), runner.gone()


def case_of(verb: str, folder: Path, model: str, text: str | None) -> Case:
    """The command of a verb; what it needs is made in FOLDER/made, once."""
    run, texts = folder / "run", ["--text", text] if text else []
    if verb in FITS:
        words = ["fit", model, *FITS[verb], *SMALL, *texts, "-o", run / "out", "--work", run / "work"]
        return Case(words, of_fit)
    made = folder / "made"
    if not (made / "out").is_dir():
        made.mkdir(parents=True, exist_ok=True)
        words = ["fit", model, *FITS["fit"], *SMALL, *texts, "-o", made / "out", "--work", made / "work"]
        subprocess.run([*COMMAND, *map(str, words)], check=True)
    if verb == "measure":

        def copied(run: Path) -> None:
            shutil.copytree(made / "out", run / "out")

        return Case(["measure", run / "out", "--repeats", 1, "--counter", "none"], of_measurement, copied)
    submission = made / "submissions" / "one"
    if not submission.is_dir():
        words = ["submit", made / "out", "-o", submission, "--data", "as above", "--licence", "none"]
        subprocess.run([*COMMAND, *map(str, words)], check=True)
    rules = ["--device", "pixel-8", "--share", "1%", "--context", 256, "--passages", 4, "--threads", 1]
    words = ["judge", submission, *rules, "--against", model, "-o", run / "out", "--work", run / "work"]
    return Case(words, of_judge)


def lines(given: argparse.Namespace) -> Iterator[Mapping[str, object]]:
    """Run everything; a line for each run, and one that sums up."""
    folder = given.folder.resolve()
    case, runner = case_of(given.verb, folder, given.model, given.text), Runner(folder / "run")
    fresh(runner, case)
    usual = to_the_end(runner, case)
    expected, of_stages = case.result(runner.run), stages(runner.run / "work")
    results, left, orphans = {given.expect or expected, expected}, left_behind(runner, case), 0

    def line(**more: object) -> dict[str, object]:
        result, now = case.result(runner.run), stages(runner.run / "work")
        results.add(result)
        behind = left_behind(runner, case)
        left.extend(behind)
        every = sorted(of_stages.keys() | now.keys())
        other = [name for name in every if of_stages.get(name) != now.get(name)]
        said = {"bench": "kills", "verb": given.verb, **more}
        return {**said, "result": result, "other_stages": other, "left": behind}

    yield line(run="first", seconds=round(usual, 1))
    for number in range(given.fresh):
        fresh(runner, case)
        yield line(run="from nothing", number=number, seconds=round(to_the_end(runner, case), 1))
    for number in range(given.first, given.first + given.kills):
        share = random.Random(f"{given.seed} {given.verb} {number}").random()
        fresh(runner, case)
        said, ended = killed(runner, case, share * usual)
        orphans += not ended
        seconds = round(to_the_end(runner, case), 1)
        when = {"number": number, "at": round(share, 3), "said": said}
        yield line(run="killed", **when, seconds=seconds, orphans=not ended)
    yield {
        "bench": "kills",
        "verb": given.verb,
        "fresh": given.fresh,
        "kills": given.kills,
        "results": len(results),
        "left": len(left),
        "orphans": orphans,
        "held": len(results) == 1 and not left and not orphans,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("verb", choices=CASES)
    parser.add_argument("--folder", type=Path, default=Path("out/bench-kills"))
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--fresh", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--text")
    parser.add_argument("--expect")
    for line in lines(parser.parse_args()):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
