"""Many submissions: which are to be judged, at the same time, here or on a cluster; what is left of each.

Every submission is judged in a process of its own (which opens the artifact in cells), so that a worker that
dies costs its own submission only: it has no verdict, is named at the end, and is judged the next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import signal
import threading
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenth.core import jobs as worker
from tenth.core.errors import InputError, OutputError, TenthError
from tenth.core.progress import Reporter
from tenth.core.store import Store, default_work, write_text
from tenth.devices import catalogue
from tenth.evaluation import evaluate, hidden
from tenth.evaluation.settings import EvalSettings
from tenth.leaderboard import exam, text_chunk
from tenth.leaderboard.judge import Task
from tenth.leaderboard.original import prepare
from tenth.leaderboard.records import SCRATCH, Conditions, Verdict, identity, read_verdict
from tenth.leaderboard.submission import Submission, found, open_submission
from tenth.models import text
from tenth.runtime import llama

CONTEXT = 2048
SEED_AT_MOST = 1000  # bytes of a seed's file


@dataclass(frozen=True)
class Options:
    """What a person asked for."""

    places: tuple[Path, ...]
    results: Path
    device: str
    share: str = "10%"
    against: str | None = None
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    data: Path | None = None
    text: Path | None = None
    text_chunks: int = text_chunk.PASSAGES
    context: int = CONTEXT
    seed: Path | None = None  # a file with the hex of the hidden items' seed
    jobs: int = 1
    threads: int = 0
    seconds: float = 3600.0
    cluster: str | None = None  # address of a Ray cluster; "local" starts one
    work: Path | None = None

    def evaluation(self) -> EvalSettings:
        """What the original is asked, and every submission."""
        return EvalSettings(tasks=self.tasks, limit=self.limit, data=self.data, threads=self.threads)

    def command(self, place: str) -> str:
        """What reproduces the verdict on one submission."""
        words = ["tenth", "judge", place, "--device", self.device, "--share", self.share]
        for option, value in (
            ("--against", self.against),
            ("--tasks", ",".join(self.tasks)),
            ("--limit", self.limit),
            ("--data", self.data),
            ("--text", self.text),
            ("--seed", self.seed),
        ):
            if value:
                words += [option, str(value)]
        for option, number, usual in (
            ("--passages", self.text_chunks, text_chunk.PASSAGES),
            ("--context", self.context, CONTEXT),
        ):
            if number != usual:
                words += [option, str(number)]
        return shlex.join(words)


@dataclass
class Judged:
    """What came of it."""

    verdicts: list[Verdict] = field(default_factory=list)
    kept: int = 0  # of them, from an earlier run
    failed: dict[str, str] = field(default_factory=dict)  # submission -> why it could not be judged


def judge_all(options: Options, reporter: Reporter) -> Judged:
    """Judge what has no verdict yet. Raises InputError, OutputError, NativeError for the judge's own."""
    folders = found(list(options.places))
    _check(options)
    llama.build()  # without a runtime nobody could be judged
    try:
        options.results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {options.results}: {error.strerror}; choose another -o") from error
    if not os.access(options.results, os.W_OK):
        raise OutputError(f"{options.results} cannot be written; choose another -o")
    budget = _budget(options)
    with reporter.step("look at the submissions", len(folders)) as advance:
        submissions = []
        for folder in folders:
            submissions.append(open_submission(folder, budget))
            advance(len(submissions))
    _needs_original(options, submissions)
    task = _prepared(options, reporter)
    done, waiting = Judged(), []
    for submission in submissions:
        if verdict := _known(options.results, submission, task.conditions):
            done.verdicts.append(verdict)
            done.kept += 1
        else:
            place = os.path.relpath(submission.folder)
            update = {"folder": str(submission.folder), "command": options.command(place)}
            waiting.append(task.model_copy(update=update))
    if done.kept:
        reporter.say(f"{done.kept} of {len(submissions)} have a verdict already")
    if waiting:
        if options.cluster is None:
            answers = here(waiting, options.jobs)
        else:
            from tenth.leaderboard.cluster import there

            answers = there(waiting, options.cluster)
        with contextlib.closing(answers), reporter.step("judge", len(waiting), "submissions") as advance:
            for count, (one, answer) in enumerate(answers, 1):
                name = Path(one.folder).name
                if isinstance(answer, Verdict):
                    done.verdicts.append(answer)
                    reporter.say(f"{name}: {answer.status}{f', {answer.reason}' if answer.reason else ''}")
                else:
                    done.failed[name] = answer
                    reporter.say(f"{name}: not judged, {answer}")
                advance(count)
    done.verdicts.sort(key=lambda verdict: verdict.submission)
    return done


def here(tasks: list[Task], jobs: int) -> Generator[tuple[Task, Verdict | str], None, None]:
    """Judge on this machine, so many at a time, as they come; a str says why there is no verdict."""
    children: dict[int, int] = {}  # place in tasks -> process
    stopped = threading.Event()

    def one(place: int) -> Verdict | str:
        def on_event(event: dict[str, Any]) -> None:
            children[place] = event["pid"]
            if stopped.is_set():
                _end(event["pid"])

        try:
            answer = worker.call("tenth.leaderboard.judge:run", {"task": tasks[place].model_dump()}, on_event)
            return Verdict.model_validate(answer)
        except TenthError as error:
            return str(error)
        finally:
            children.pop(place, None)

    pool = ThreadPoolExecutor(jobs)
    pending: dict[Future[Verdict | str], int] = {pool.submit(one, i): i for i in range(len(tasks))}
    try:
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield tasks[pending.pop(future)], future.result()
    finally:  # after Ctrl-C those that run are ended, and with them what they run
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for pid in list(children.values()):
            _end(pid)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _known(results: Path, submission: Submission, conditions: Conditions) -> Verdict | None:
    """A verdict of the same files, conditions and rules."""
    name = identity(submission.name, submission.artifact, submission.manifest_hash, conditions)
    file = results / f"{name}.json"
    if not file.is_file():
        return None
    try:
        verdict = read_verdict(file)
    except InputError:
        return None
    same = verdict.id == name and verdict.current and (results / verdict.log).is_file()
    return verdict if same else None


def _check(options: Options) -> None:
    """What can be known to be wrong before anything is read."""
    for name, number in (
        ("jobs", options.jobs),
        ("text_chunks", options.text_chunks),
        ("context", options.context),
    ):
        if number < 1:
            raise InputError(f"--{name} {number} is too few; give 1 or more")
    if options.tasks:
        evaluate.check(options.evaluation())


def _needs_original(options: Options, submissions: list[Submission]) -> None:
    if options.against is not None:
        return
    for submission in submissions:
        if submission.manifest and submission.manifest.base != SCRATCH:
            base = submission.manifest.base
            raise InputError(f"{submission.name} is made from {base!r}; give that original with --against")


def _prepared(options: Options, reporter: Reporter) -> Task:
    """What all submissions have in common: the text, the original's answers, the conditions."""
    text_chunks = text_chunk.cut(text.read(options.text), options.text_chunks)
    written = json.dumps(text_chunks)
    digest = hashlib.sha256(written.encode()).hexdigest()
    store = Store(options.work or default_work() / "judge", reporter.say)
    folder = store.stage(
        "text-chunks", {"text": digest}, lambda at: write_text(at / "text-chunks.json", written)
    )
    file = folder / "text-chunks.json"
    original = None
    if options.against is not None:
        original = prepare(options.against, file, digest, options.context, options.threads, store, reporter)
    seed = _seed(options.seed)
    asked = ""
    if options.tasks and original is not None:
        how = options.evaluation()
        asked = str(
            exam.original(original.name, Path(original.gguf), original.hashes[0], how, store, reporter)
        )
    threads = options.threads or max(1, llama.cores() // options.jobs)
    conditions = Conditions(
        device=catalogue.load(options.device).name,
        budget=_budget(options),
        context=options.context,
        original=original.name if original else "",
        original_hash=original.hashes[0] if original else "",
        text=digest,
        text_bytes=sum(len(p.encode()) for p in text_chunks),
        tasks=options.tasks,
        limit=options.limit,
        seed_hash=hidden.commitment(bytes.fromhex(seed)) if seed else "",
    )
    return Task(
        folder="",
        results=str(options.results.resolve()),
        conditions=conditions,
        device=options.device,
        command="",
        text_chunks=str(file.resolve()),
        original=original,
        asked=asked,
        data=str(options.data.resolve()) if options.data else None,
        seed=seed,
        threads=threads,
        seconds=options.seconds,
    )


def _budget(options: Options) -> int:
    return int(catalogue.load(options.device).bytes * catalogue.parse_share(options.share))


def _seed(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        with file.open("rb") as stream:
            raw = stream.read(SEED_AT_MOST).strip()
        seed = bytes.fromhex(raw.decode("ascii"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} holds no seed in hexadecimal digits: {error}") from None
    hidden.commitment(seed)
    return seed.hex()
