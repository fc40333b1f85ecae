"""Many submissions: which are to be judged, at the same time, here or on a cluster; what is left of each.

Every submission is judged in a process of its own (which opens the artifact in sandboxes), so that a worker
that dies costs its own submission only: it has no verdict, is named at the end, and is judged the next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import signal
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from tenth.core import jobs
from tenth.core.errors import InputError, OutputError, TenthError
from tenth.core.progress import Reporter
from tenth.core.store import Store, claimed, default_work, write_text
from tenth.devices import catalogue
from tenth.evaluation import evaluate, hidden
from tenth.evaluation.settings import EvalSettings
from tenth.leaderboard import exam, text_chunk
from tenth.leaderboard.cluster import judge_on_cluster
from tenth.leaderboard.judge import JudgeSubmission, JudgingRound, judge_apart
from tenth.leaderboard.original import prepare
from tenth.leaderboard.records import SCRATCH, Conditions, Verdict, identity, read_verdict
from tenth.leaderboard.submission import Submission, find_submissions, open_submission, printable
from tenth.models import text
from tenth.models.formats.inspect import read_header
from tenth.runtime import llama

CONTEXT = 2048
SEED_AT_MOST = 1000  # bytes of a seed's file


@dataclass(frozen=True)
class JudgeSettings:
    """Which submissions a person wants judged, and how."""

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
    """The verdicts on all submissions, and those that have none."""

    verdicts: list[Verdict] = field(default_factory=list)
    kept: int = 0  # of them, from an earlier run
    failed: dict[str, str] = field(default_factory=dict)  # submission -> why it could not be judged


def judge_all(settings: JudgeSettings, reporter: Reporter) -> Judged:
    """Judge what has no verdict yet. Raises InputError, OutputError, NativeError for the judge's own."""
    folders = find_submissions(list(settings.places))
    _check(settings)
    llama.build()  # without a runtime nobody could be judged
    try:
        settings.results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {settings.results}: {error.strerror}; choose another -o") from error
    if not os.access(settings.results, os.W_OK):
        raise OutputError(f"{settings.results} cannot be written; choose another -o")
    with claimed(settings.results, f"{settings.results} is written by another tenth judge; wait for it"):
        return _judge_into(settings, folders, reporter)


def _judge_into(settings: JudgeSettings, folders: list[Path], reporter: Reporter) -> Judged:
    """Judge those of the folders that have no verdict among the results."""
    budget = _budget(settings)
    with reporter.step("look at the submissions", len(folders)) as advance:
        submissions = []
        for folder in folders:
            submissions.append(open_submission(folder, budget))
            advance(len(submissions))
    _needs_original(settings, submissions)
    of = _round(settings, reporter)
    done, waiting = Judged(), []
    for submission in submissions:
        if verdict := _earlier(settings.results, submission, of.conditions):
            done.verdicts.append(verdict)
            done.kept += 1
        else:
            command = settings.command(printable(os.path.relpath(submission.folder)))
            waiting.append(JudgeSubmission(submission=submission.folder, command=command, round=of))
    if done.kept:
        reporter.say(f"{done.kept} of {len(submissions)} have a verdict already")
    if waiting:
        _judge_waiting(waiting, settings, done, reporter)
    done.verdicts.sort(key=lambda verdict: verdict.submission)
    return done


def _judge_waiting(
    waiting: list[JudgeSubmission], settings: JudgeSettings, done: Judged, reporter: Reporter
) -> None:
    """Judge here or on a cluster, and tell of each as it comes."""
    if settings.cluster is None:
        answers = judge_here(waiting, settings.jobs)
    else:
        answers = judge_on_cluster(waiting, settings.cluster)
    with (
        _terminable(),
        contextlib.closing(answers),
        reporter.step("judge", len(waiting), "submissions") as advance,
    ):
        for count, (job, answer) in enumerate(answers, 1):
            name = printable(job.submission.name)
            if isinstance(answer, Verdict):
                done.verdicts.append(answer)
                reporter.say(f"{name}: {answer.status}{f', {answer.reason}' if answer.reason else ''}")
            else:
                done.failed[name] = answer
                reporter.say(f"{name}: not judged, {answer}")
            advance(count)


def judge_here(
    submissions: list[JudgeSubmission], at_a_time: int
) -> Generator[tuple[JudgeSubmission, Verdict | str], None, None]:
    """Judge on this machine, so many at a time, as they come; a str says why there is no verdict."""
    children: dict[int, int] = {}  # place in submissions -> process
    stopped = threading.Event()

    def judge_one(place: int) -> Verdict | str:
        def on_event(event: jobs.Event) -> None:
            children[place] = event["pid"]
            if stopped.is_set():
                _end(event["pid"])

        try:
            return judge_apart(submissions[place], on_event)
        except TenthError as error:
            return str(error)
        finally:
            children.pop(place, None)

    pool = ThreadPoolExecutor(at_a_time)
    pending: dict[Future[Verdict | str], int] = {
        pool.submit(judge_one, place): place for place in range(len(submissions))
    }
    try:
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield submissions[pending.pop(future)], future.result()
    finally:  # after Ctrl-C those that run are ended, and with them what they run
        stopped.set()
        for pid in list(children.values()):
            _end(pid)
        pool.shutdown(wait=True, cancel_futures=True)  # until their temporary folders are gone


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the round as Ctrl-C does: with nothing left behind."""
    if threading.current_thread() is not threading.main_thread():  # where no signal can be caught
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _earlier(results: Path, submission: Submission, conditions: Conditions) -> Verdict | None:
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


def _check(settings: JudgeSettings) -> None:
    """What can be known to be wrong before anything is read."""
    for name, number in (
        ("jobs", settings.jobs),
        ("passages", settings.text_chunks),
        ("context", settings.context),
    ):
        if number < 1:
            raise InputError(f"--{name} {number} is too few; give 1 or more")
    if settings.tasks:
        evaluate.check(settings.evaluation())


def _needs_original(settings: JudgeSettings, submissions: list[Submission]) -> None:
    """InputError where no submission could be ranked without an original; one alone would be out."""
    read = [(submission.name, submission.manifest.base) for submission in submissions if submission.manifest]
    if settings.against is None and read and all(base != SCRATCH for _, base in read):
        name, base = read[0]
        raise InputError(f"{name} is made from {base!r}; give that original with --against")


def _round(settings: JudgeSettings, reporter: Reporter) -> JudgingRound:
    """What all submissions have in common: the text, the original's answers, the conditions."""
    passages = text_chunk.cut(text.read(settings.text), settings.text_chunks)
    written = json.dumps(passages)
    digest = hashlib.sha256(written.encode()).hexdigest()
    store = Store(settings.work or default_work() / "judge", reporter.say)
    folder = store.stage(
        "text-chunks", {"text": digest}, lambda at: write_text(at / "text-chunks.json", written)
    )
    file = folder / "text-chunks.json"
    original = asked = None
    if settings.against is not None:
        original = prepare(
            settings.against, file, digest, settings.context, settings.threads, store, reporter
        )
    seed = _seed(settings.seed)
    longest = read_header(original.gguf).number("context_length") if original else None
    if settings.tasks and original is not None:
        identity, questions = original.hashes[0], settings.evaluation()
        asked = exam.original(original.name, original.gguf, identity, questions, store, reporter)
    conditions = Conditions(
        device=catalogue.load(settings.device).name,
        budget=_budget(settings),
        context=min(settings.context, longest or settings.context),
        original=original.name if original else "",
        original_hash=original.hashes[0] if original else "",
        text=digest,
        text_bytes=sum(len(passage.encode()) for passage in passages),
        tasks=settings.tasks,
        limit=settings.limit,
        seed_hash=hidden.commitment(bytes.fromhex(seed)) if seed else "",
    )
    return JudgingRound(
        results=settings.results.resolve(),
        conditions=conditions,
        device=settings.device,
        text_chunks=file.resolve(),
        original=original,
        asked=asked,
        data=settings.data.resolve() if settings.data else None,
        seed=seed,
        threads=settings.threads or max(1, llama.cores() // settings.jobs),
        seconds=settings.seconds,
    )


def _budget(settings: JudgeSettings) -> int:
    return int(catalogue.load(settings.device).bytes * catalogue.parse_share(settings.share))


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
