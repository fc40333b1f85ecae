"""One submission: everything about it is computed here, in sandboxes, and a Verdict comes out.

The first thing that is wrong ends it with a reason. What the artifact does to a child that opens it (hang,
crash, eat memory) is its own fault; a child that the system ends for no such reason is not, and raises.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tenth import __version__
from tenth.core import jobs
from tenth.core.errors import InputError, NativeError, TenthError
from tenth.core.format import megabytes
from tenth.core.metrics import reading, repeated
from tenth.core.records import Reading, Record, Runtime
from tenth.core.store import atomic, temporary_folder, write_text
from tenth.devices import catalogue, machine
from tenth.evaluation.settings import EvalSettings
from tenth.leaderboard import division, estimates, exam, probes, text_chunk
from tenth.leaderboard.original import Original
from tenth.leaderboard.records import RULES, Conditions, Probe, TaskScore, Verdict, identity
from tenth.leaderboard.submission import Submission, open_submission, printable
from tenth.measurement.memory import ProofSettings, prove
from tenth.models.formats.inspect import Header, read_header
from tenth.runtime import llama, sandbox

PREFILL, DECODE = 256, 32  # tokens on the clock
_ALLOWANCE = 96 << 20  # bytes that a child of Python needs beside the artifact and its logits
_CONTROL = bytes({*range(32), 127} - {9, 10})  # of terminals; a file's own strings are in the log
_SLOWEST = 20e6  # bytes/s that the slowest machine reads


class Disqualified(Exception):  # noqa: N818
    """The submission is disqualified; the message is the reason."""


class JudgeError(TenthError):
    """The judge itself failed: no verdict."""


class JudgingRound(Record):
    """What all submissions that are judged together have in common."""

    results: Path
    conditions: Conditions
    device: str  # as typed: a name, or a device file
    text_chunks: Path  # JSON list of texts
    original: Original | None = None
    asked: Path | None = None  # the original's outcomes
    data: Path | None = None  # folder of the tasks' items
    seed: str = ""  # hex, of hidden items
    threads: int = 0
    seconds: float = 3600.0  # of one run in a sandbox


class JudgeSubmission(jobs.Job[Verdict]):
    """Judge one submission, in a child process or on another machine with the same files."""

    submission: Path  # its folder
    command: str  # reproduces the verdict
    round: JudgingRound

    def run(self, emit: jobs.Emit) -> Verdict:
        """The verdict, written to its folder; emits the process, so that it can be ended."""
        emit({"pid": os.getpid()})
        return judge(self)


def judge_apart(job: JudgeSubmission, on_event: jobs.Emit | None = None) -> Verdict:
    """`judge` in a child process; whatever ends that, nothing of it stays in the temporary folder."""
    with temporary_folder() as folder:
        if printable(job.submission.name) != job.submission.name:  # no JSON could tell a child of it
            return judge(job)
        return jobs.run(job, on_event, jobs.Surroundings(env={"TMPDIR": str(folder)}))


def judge(job: JudgeSubmission) -> Verdict:
    """Judge and write RESULTS/<id>.json and .log. Raises JudgeError, OutputError where the judge fails."""
    begin = time.monotonic()
    conditions, threads = job.round.conditions, job.round.threads
    with temporary_folder() as folder:
        copies, scratch = folder / "submission", folder / "scratch"
        copies.mkdir()
        scratch.mkdir()
        submission = open_submission(job.submission, conditions.budget, copies)
        name = identity(submission.name, submission.artifact, submission.manifest_hash, conditions)
        log = job.round.results / f"{name}.log"
        log.write_bytes(b"")
        case = Case(job.round, submission, scratch, log)
        places = {job.submission: submission.name, copies: submission.name, scratch: "converted"}
        reason = _clean(_reason(case), places)
        case.note(f"disqualified: {reason}" if reason else "ranked")
    _publish(log, places)
    verdict = Verdict(
        rules=RULES,
        tenth=__version__,
        runtime=llama.build(),
        submission=submission.name,
        manifest=submission.manifest,
        artifact=submission.artifact,
        manifest_hash=submission.manifest_hash,
        conditions=conditions,
        status="disqualified" if reason else "ranked",
        reason=reason,
        log_line=_last_line(log) if reason else "",
        readings=case.readings,
        probes=case.probes,
        text_chunks=case.text_chunks,
        tasks=case.tasks,
        isolation=case.isolation.lines,
        log=log.name,
        command=job.command,
        machine=f"{machine.processor()}, {llama.cores()} cores, {threads or llama.cores()} threads",
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - begin, 1),
    )
    write_text(job.round.results / f"{name}.json", verdict.model_dump_json(indent=1))
    return verdict


def _reason(case: Case) -> str:
    """Why the submission is disqualified, or ""; NativeError where the system ended what ran."""
    try:
        case.examine()
    except jobs.ChildDied as death:
        if death.killed:
            raise NativeError(
                f"{case.submission.name}: the system ended the run ({death}); try again"
            ) from death
        return str(death)
    except (Disqualified, InputError, NativeError) as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class _Artifact:
    """The file that is judged, and how it is run."""

    gguf: Path
    header: Header
    runtime: Runtime


class Case:
    """A submission before the judge: its steps in order, and what they gave."""

    def __init__(self, of: JudgingRound, submission: Submission, scratch: Path, log: Path) -> None:
        self.round, self.submission, self.scratch, self.log = of, submission, scratch, log
        self.readings: list[Reading] = []
        self.probes: list[Probe] = []
        self.text_chunks: list[float] = []
        self.tasks: list[TaskScore] = []
        self.isolation = sandbox.Isolation()
        self._begin = time.monotonic()

    def examine(self) -> None:
        """All steps. Raises Disqualified at the first thing wrong."""
        conditions = self.round.conditions
        if self.submission.trouble:
            raise Disqualified(self.submission.trouble)
        self.readings.append(reading("size", self.submission.bytes, "all files of the artifact"))
        gguf = self._gguf()
        self.note("read the header")
        header = _read_header(gguf)
        if header.weights > conditions.budget:
            raise Disqualified(
                f"over the budget: its weights alone are {megabytes(header.weights)} MB,"
                f" {conditions.device} allows {megabytes(conditions.budget)} MB"
            )
        if wrong := division.declared(header, conditions.context):
            raise Disqualified(wrong)
        self._belongs(header, gguf)
        artifact = _Artifact(gguf, header, self._runtime())
        kv = self._proof(artifact)
        judged = self._quality(artifact)
        self._timed(artifact, judged)
        device = catalogue.load(self.round.device)
        self.readings += estimates.expected(header, artifact.runtime, kv, device)
        if conditions.tasks:
            self._tasks(artifact)

    def note(self, line: str) -> None:
        """A line of the judge in the log."""
        with self.log.open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"judge, {time.monotonic() - self._begin:.1f} s: {' '.join(line.split())}\n")

    def _mean(self, name: str, values: Sequence[float], conditions: str) -> None:
        spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        how = f"{conditions}; spread: standard error over passages"
        self.readings.append(reading(name, statistics.fmean(values), how, spread=spread, count=len(values)))

    def _run(
        self,
        job: jobs.Job[jobs.Result],
        limits: sandbox.Limits,
        readable: Sequence[Path],
        writable: Path | None = None,
    ) -> jobs.Result:
        self.note(f"run {type(job).__name__}")
        return sandbox.Sandbox(limits, self.isolation, self.log).run(job, readable, writable)

    def _gguf(self) -> Path:
        """The artifact, or what a folder of safetensors becomes in llama.cpp."""
        submission = self.submission
        if submission.form == "gguf":
            return submission.files[0]
        job = division.Convert(source=submission.files[0].parent, destination=self.scratch / "model.gguf")
        limits = sandbox.Limits(
            memory=2 * submission.bytes + (512 << 20),
            seconds=self.round.seconds,
            file_bytes=2 * submission.bytes + (64 << 20),
        )
        self._run(job, limits, [job.source], self.scratch)
        return job.destination

    def _belongs(self, header: Header, gguf: Path) -> None:
        """The division's demands."""
        manifest, original = self.submission.manifest, self.round.original
        assert manifest is not None
        if original is None and manifest.division != "scratch":
            raise Disqualified(f"it is made from {manifest.base!r:.100}, and this round has no original")
        if manifest.base_hash and original and manifest.base_hash not in original.hashes:
            raise Disqualified(
                f"its base_hash {manifest.base_hash[:12]}... is not the original's: {original.name} has"
                f" {' or '.join(known[:12] + '...' for known in original.hashes)}"
            )
        if wrong := division.stored(manifest.division, header):
            raise Disqualified(wrong)
        if manifest.division == "scratch":
            self._from_nothing(header, gguf)
        if manifest.division != "bits":
            return
        assert original is not None
        if wrong := division.same_model(header, read_header(original.gguf)):
            raise Disqualified(wrong)
        limits = sandbox.Limits(memory=self.submission.bytes + (768 << 20), seconds=self.round.seconds)
        job = division.CompareWeights(gguf=gguf, original=original.gguf)
        self._ask(division.near(self._run(job, limits, [gguf, original.gguf])))

    def _from_nothing(self, header: Header, gguf: Path) -> None:
        """No matrix is one of the original's; its answers are compared when it has read the text."""
        original = self.round.original
        if original is None:
            self.note("this round has no original that it could be a copy of")
            return
        samples = 16 * division.SAMPLE * (len(header.tensors) + len(read_header(original.gguf).tensors))
        limits = sandbox.Limits(memory=samples + (256 << 20), seconds=self.round.seconds)
        job = division.FindCopies(gguf=gguf, original=original.gguf)
        self._ask(division.own_weights(self._run(job, limits, [gguf, original.gguf])))

    def _runtime(self) -> Runtime:
        manifest = self.submission.manifest
        assert manifest is not None
        context = self.round.conditions.context
        settings = manifest.runtime.model_dump()
        settings["n_ubatch"] = min(settings["n_ubatch"], context)
        return Runtime(n_ctx=context, threads=self.round.threads, **settings)

    def _proof(self, artifact: _Artifact) -> int:
        """Full context within the budget; returns the bytes of the KV cache."""
        header, runtime = artifact.header, artifact.runtime
        budget = self.round.conditions.budget
        self.note("fill the context within the budget")
        patience = min(self.round.seconds, 300 + header.size / _SLOWEST + 2 * runtime.n_ctx)
        settings = ProofSettings(log=self.log, timeout=patience, strict=True)
        proof = prove(artifact.gguf, runtime, budget, header.weights, settings)
        self.isolation.note(f"memory of the proof: {proof.limit}; network: {proof.network}")
        above = f"above the interpreter's {megabytes(proof.interpreter)} MB"
        how = f"{runtime.n_ctx} tokens of context, {above}; {proof.limit}"
        self.readings.append(reading("peak", proof.peak, how))
        if not proof.fits:
            raise Disqualified(
                f"over the budget: it held {megabytes(proof.peak)} MB or more at full context,"
                f" {self.round.conditions.device} allows {megabytes(budget)} MB"
            )
        return int(proof.parts.get("kv", 0))

    def _limits(self, header: Header) -> sandbox.Limits:
        """The budget, and what the judge's own arithmetic needs."""
        logits = 12 * text_chunk.ROWS * 4 * max(header.vocabulary, 1)
        return sandbox.Limits(
            memory=self.round.conditions.budget + logits + _ALLOWANCE, seconds=self.round.seconds
        )

    def _quality(self, artifact: _Artifact) -> text_chunk.TextJudged:
        """Bits per byte, the distance from the original, and the probes that come with them."""
        original, runtime = self.round.original, artifact.runtime
        job = text_chunk.JudgeText(
            gguf=artifact.gguf,
            runtime=runtime,
            text=self.round.text_chunks,
            reference=original.answers if original else None,
        )
        readable = [artifact.gguf, self.round.text_chunks, *([original.answers] if original else [])]
        judged = self._run(job, self._limits(artifact.header), readable)
        for probe in judged.probes:
            self._ask(probe)
        passages = f"{len(judged.bits)} passages of {text_chunk.BYTES} bytes"
        state = f"KV {runtime.type_k}/{runtime.type_v}, {passages}"
        self._mean("bits_per_byte", judged.bits, f"{state}, {judged.tokens} tokens")
        self.text_chunks = judged.bits
        if original:
            self._mean("bits_per_byte_original", original.bits, "the same text; nothing rounded")
            lost = [mine - theirs for mine, theirs in zip(judged.bits, original.bits, strict=True)]
            self._mean("bits_lost", lost, f"more than {original.name}, passage by passage")
            for name, values in (("kl", judged.kl), ("top1", judged.top1)):
                if values:
                    self._mean(name, values, f"{state}; against {original.name}")
            if self.submission.manifest and self.submission.manifest.division == "scratch" and judged.kl:
                self._ask(division.own_answers(judged.kl))
        return judged

    def _timed(self, artifact: _Artifact, judged: text_chunk.TextJudged) -> None:
        """The speeds, with the machine to itself, and whether the answers are those that were judged."""
        job = text_chunk.TimeText(
            gguf=artifact.gguf,
            runtime=artifact.runtime,
            text=self.round.text_chunks,
            prefill=PREFILL,
            decode=DECODE,
        )
        with _clock(self.round.results):
            load = machine.load()
            readable = [artifact.gguf, self.round.text_chunks]
            timed = self._run(job, self._limits(artifact.header), readable)
        busy = "" if load is None else f", load {load:g} before"
        where = f"{machine.processor()}, {self.round.threads or llama.cores()} threads{busy}"
        how = f"{where}; warm file; median, half range"
        speeds = (("load", timed.load), ("prefill", timed.prefill), ("decode", timed.decode))
        self.readings += [repeated(name, values, how) for name, values in speeds if values]
        self._ask(probes.compare_timed(timed.scored, judged.timed))

    def _tasks(self, artifact: _Artifact) -> None:
        of, conditions = self.round, self.round.conditions
        self.note(f"ask {', '.join(conditions.tasks)}")
        settings = EvalSettings(
            tasks=conditions.tasks,
            limit=conditions.limit,
            data=of.data,
            threads=of.threads,
            limits=exam.limits(conditions.budget, artifact.header.vocabulary, of.seconds),
        )
        try:
            self.tasks = exam.ask(artifact.gguf, artifact.runtime, settings, of.seed, of.asked, self.log)
        except InputError as error:  # the items are not the submission's
            raise JudgeError(str(error)) from error

    def _ask(self, probe: Probe) -> None:
        self.probes.append(probe)
        seen = "" if probe.value is None else f" ({probe.value:.3g}, allowed {probe.allowed or 0:g})"
        self.note(f"probe {probe.name}: {'passed' if probe.passed else 'FAILED'}{seen}: {probe.detail}")
        if not probe.passed:
            raise Disqualified(f"the probe {probe.name!r} failed{seen}: {probe.detail}")


def _read_header(gguf: Path) -> Header:
    """A header; Disqualified for whatever a stranger's can be that none should be."""
    try:
        return read_header(gguf)
    except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise Disqualified(f"its header cannot be read: {type(error).__name__}: {error!s:.200}") from error


@contextlib.contextmanager
def _clock(folder: Path) -> Iterator[None]:
    """One timed run at a time, of those that share this folder (and a file system with locks)."""
    import fcntl

    with (folder / ".clock").open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _clean(text: str, places: Mapping[Path, str]) -> str:
    """One line without this machine's paths."""
    for path, name in places.items():
        text = text.replace(str(path), name)
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:600]


def _publish(log: Path, places: Mapping[Path, str]) -> None:
    """Take this machine's paths and all control characters out of the log, which is for everybody."""
    with atomic(log) as partial, partial.open("wb") as out, log.open("rb") as source:
        for line in source:
            for path, name in places.items():
                line = line.replace(os.fsencode(path), name.encode())
            out.write(line.translate(None, _CONTROL))


def _last_line(log: Path) -> str:
    """ "12: the log's last line"."""
    with log.open("rb") as file:
        count, last = deque(enumerate(file, 1), maxlen=1).pop()
    return f"{count}: {last.decode('utf-8', 'replace').strip()[:600]}"
