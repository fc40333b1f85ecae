"""One submission: everything about it is computed here, in cells, and a Verdict comes out.

The first thing that is wrong ends it with a reason. What the artifact does to a child that opens it (hang,
crash, eat memory) is its own fault; a child that the system ends for no such reason is not, and raises.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tenth import __version__
from tenth.core import jobs
from tenth.core.errors import InputError, NativeError, TenthError
from tenth.core.format import megabytes
from tenth.core.metrics import reading, repeated
from tenth.core.records import Reading, Record, Runtime
from tenth.core.store import atomic, write_text
from tenth.devices import catalogue, machine
from tenth.evaluation.settings import EvalSettings
from tenth.leaderboard import division, estimates, exam, probes, text_chunk
from tenth.leaderboard.original import Original
from tenth.leaderboard.records import RULES, Conditions, Probe, TaskScore, Verdict, identity
from tenth.leaderboard.submission import Submission, open_submission
from tenth.measurement.memory import prove
from tenth.models.formats.inspect import Header, read_header
from tenth.runtime import llama, sandbox

PREFILL, DECODE = 256, 32  # tokens on the clock
_ALLOWANCE = 96 << 20  # bytes that a child of Python needs beside the artifact and its logits
_CONTROL = bytes({*range(32), 127} - {9, 10})  # of terminals; a file's own strings are in the log
_SLOWEST = 20e6  # bytes/s that the slowest machine reads


class Task(Record):
    """What a worker is told; JSON, so that it may be another machine with the same files."""

    folder: str
    results: str
    conditions: Conditions
    device: str  # as typed: a name, or a device file
    command: str
    text_chunks: str  # JSON list of texts
    original: Original | None = None
    asked: str = ""  # the original's outcomes
    data: str | None = None  # folder of the tasks' items
    seed: str = ""  # hex, of hidden items
    threads: int = 0
    seconds: float = 3600.0  # of one run in a cell


class Disqualified(Exception):  # noqa: N818
    """The submission is disqualified; the message is the reason."""


class JudgeError(TenthError):
    """The judge itself failed: no verdict."""


def run(emit: jobs.Emit, task: dict[str, Any]) -> dict[str, Any]:
    """In a child process of the judge, or on a cluster: the verdict, written to its folder."""
    import os

    emit({"pid": os.getpid()})
    return judge(Task.model_validate(task)).model_dump()


def judge(task: Task) -> Verdict:
    """Judge and write RESULTS/<id>.json and .log. Raises JudgeError, OutputError where the judge fails."""
    begin = time.monotonic()
    submission = open_submission(Path(task.folder), task.conditions.budget)
    name = identity(submission.name, submission.artifact, submission.manifest_hash, task.conditions)
    results = Path(task.results)
    log = results / f"{name}.log"
    log.write_bytes(b"")
    with tempfile.TemporaryDirectory(prefix="tenth-judge-") as scratch:
        case = Case(task, submission, Path(scratch), log)
        reason = ""
        try:
            case.run()
        except Disqualified as out:
            reason = str(out)
        except jobs.ChildDied as death:
            if death.killed:
                raise NativeError(
                    f"{submission.name}: the system ended the run ({death}); try again"
                ) from death
            reason = str(death)
        except (InputError, NativeError) as error:
            reason = str(error)
        reason = _clean(reason, submission, Path(scratch))
        case.note(f"disqualified: {reason}" if reason else "ranked")
    _publish(log, submission, Path(scratch))
    verdict = Verdict(
        rules=RULES,
        tenth=__version__,
        runtime=llama.build(),
        submission=submission.name,
        manifest=submission.manifest,
        artifact=submission.artifact,
        manifest_hash=submission.manifest_hash,
        conditions=task.conditions,
        status="disqualified" if reason else "ranked",
        reason=reason,
        log_line=_last_line(log) if reason else "",
        readings=case.readings,
        probes=case.probes,
        text_chunks=case.text_chunks,
        tasks=case.tasks,
        isolation=case.isolation.said,
        log=log.name,
        command=task.command,
        machine=f"{machine.processor()}, {llama.cores()} cores, {task.threads or llama.cores()} threads",
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - begin, 1),
    )
    write_text(results / f"{name}.json", verdict.model_dump_json(indent=1))
    return verdict


class Case:
    """A submission before the judge: its steps in order, and what they found."""

    def __init__(self, task: Task, submission: Submission, scratch: Path, log: Path) -> None:
        self.task, self.submission, self.scratch, self.log = task, submission, scratch, log
        self.readings: list[Reading] = []
        self.probes: list[Probe] = []
        self.text_chunks: list[float] = []
        self.tasks: list[TaskScore] = []
        self.isolation = sandbox.Isolation()
        self._begin = time.monotonic()

    def run(self) -> None:
        """All steps. Raises Out at the first thing wrong."""
        submission, task = self.submission, self.task
        if submission.trouble:
            raise Disqualified(submission.trouble)
        budget = task.conditions.budget
        self.readings.append(reading("size", submission.bytes, "all files of the artifact"))
        gguf = self._gguf()
        self.note("read the header")
        header = read_header(gguf)
        if header.weights > budget:
            raise Disqualified(
                f"over the budget: its weights alone are {megabytes(header.weights)} MB,"
                f" {task.conditions.device} allows {megabytes(budget)} MB"
            )
        if int(header.keys.get("split.count", 0) or 0) > 1:
            raise Disqualified("it is one part of a split GGUF; give a whole one")
        self._belongs(header, gguf)
        runtime = self._runtime(header)
        kv = self._proof(gguf, header, runtime)
        found = self._quality(gguf, header, runtime)
        self._timed(gguf, header, runtime, found)
        self.readings += estimates.expected(header, runtime, kv, catalogue.load(task.device))
        if task.conditions.tasks:
            self._tasks(gguf, header, runtime)

    def note(self, line: str) -> None:
        """A line of the judge in the log."""
        with self.log.open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"judge, {time.monotonic() - self._begin:.1f} s: {' '.join(line.split())}\n")

    def _mean(self, name: str, values: Sequence[float], conditions: str) -> None:
        spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        how = f"{conditions}; spread: standard error over passages"
        self.readings.append(reading(name, statistics.fmean(values), how, spread=spread, count=len(values)))

    def _call(
        self,
        function: str,
        arguments: dict[str, Any],
        limits: sandbox.Limits,
        readable: Sequence[Path],
        writable: Path | None = None,
    ) -> Any:
        self.note(f"run {function.partition(':')[2]}")
        return sandbox.call(function, arguments, limits, self.isolation, self.log, readable, writable)

    def _gguf(self) -> Path:
        """The artifact, or what a folder of safetensors becomes in llama.cpp."""
        submission = self.submission
        if submission.form == "gguf":
            return submission.files[0]
        destination = self.scratch / "model.gguf"
        limits = sandbox.Limits(
            memory=2 * submission.bytes + (512 << 20),
            seconds=self.task.seconds,
            file_bytes=2 * submission.bytes + (64 << 20),
        )
        asked = {"source": str(submission.folder), "destination": str(destination)}
        self._call("tenth.leaderboard.division:convert", asked, limits, [submission.folder], self.scratch)
        return destination

    def _belongs(self, header: Header, gguf: Path) -> None:
        """The division's demands."""
        manifest, original = self.submission.manifest, self.task.original
        assert manifest is not None
        if manifest.base_hash and original and manifest.base_hash not in original.hashes:
            raise Disqualified(
                f"its base_hash {manifest.base_hash[:12]}... is not the original's: {original.name} has"
                f" {' or '.join(known[:12] + '...' for known in original.hashes)}"
            )
        if wrong := division.stored(manifest.division, header):
            raise Disqualified(wrong)
        if manifest.division != "bits":
            return
        assert original is not None
        if wrong := division.same_model(header, read_header(Path(original.gguf))):
            raise Disqualified(wrong)
        limits = sandbox.Limits(memory=self.submission.bytes + (768 << 20), seconds=self.task.seconds)
        found = self._call(
            "tenth.leaderboard.division:cosines",
            {"path": str(gguf), "original": original.gguf},
            limits,
            [gguf, Path(original.gguf)],
        )
        self._ask(division.near(found))

    def _runtime(self, header: Header) -> Runtime:
        manifest = self.submission.manifest
        assert manifest is not None
        context = min(self.task.conditions.context, header.number("context_length") or (1 << 30))
        settings = manifest.runtime.model_dump()
        settings["n_ubatch"] = min(settings["n_ubatch"], context)
        return Runtime(n_ctx=context, threads=self.task.threads, **settings)

    def _proof(self, gguf: Path, header: Header, runtime: Runtime) -> int:
        """Full context within the budget; returns the bytes of the KV cache."""
        budget = self.task.conditions.budget
        self.note("fill the context within the budget")
        patience = min(self.task.seconds, 300 + header.size / _SLOWEST + 2 * runtime.n_ctx)
        proof = prove(gguf, runtime, budget, header.weights, self.log, None, patience, strict=True)
        self.isolation.note(f"memory of the proof: {proof.limit}; network: {proof.network}")
        above = f"above the interpreter's {megabytes(proof.interpreter)} MB"
        how = f"{runtime.n_ctx} tokens of context, {above}; {proof.limit}"
        self.readings.append(reading("peak", proof.peak, how))
        if not proof.fits:
            raise Disqualified(
                f"over the budget: it held {megabytes(proof.peak)} MB or more at full context,"
                f" {self.task.conditions.device} allows {megabytes(budget)} MB"
            )
        return int(proof.parts.get("kv", 0))

    def _limits(self, header: Header) -> sandbox.Limits:
        """The budget, and what the judge's own arithmetic needs."""
        logits = 12 * text_chunk.ROWS * 4 * max(header.vocabulary, 1)
        return sandbox.Limits(
            memory=self.task.conditions.budget + logits + _ALLOWANCE, seconds=self.task.seconds
        )

    def _quality(self, gguf: Path, header: Header, runtime: Runtime) -> dict[str, Any]:
        task, original = self.task, self.task.original
        readable = [gguf, Path(task.text_chunks)] + ([Path(original.answers)] if original else [])
        asked = {
            "path": str(gguf),
            "runtime": runtime.model_dump(),
            "threads": task.threads,
            "text": task.text_chunks,
            "reference": original.answers if original else None,
        }
        found: dict[str, Any] = self._call(
            "tenth.leaderboard.text_chunk:judge", asked, self._limits(header), readable
        )
        for probe in found["probes"]:
            self._ask(Probe.model_validate(probe))
        state = (
            f"KV {runtime.type_k}/{runtime.type_v}, {len(found['bits'])} passages of {text_chunk.BYTES} bytes"
        )
        self._mean("bits_per_byte", found["bits"], f"{state}, {found['tokens']} tokens")
        self.text_chunks = found["bits"]
        if original:
            self._mean("bits_per_byte_original", original.bits, "the same text; nothing rounded")
            lost = [mine - theirs for mine, theirs in zip(found["bits"], original.bits, strict=True)]
            self._mean("bits_lost", lost, f"more than {original.name}, passage by passage")
        for name in ("kl", "top1"):
            if name in found:
                self._mean(name, found[name], f"{state}; against {original.name if original else ''}")
        return found

    def _timed(self, gguf: Path, header: Header, runtime: Runtime, judged: dict[str, Any]) -> None:
        asked = {
            "path": str(gguf),
            "runtime": runtime.model_dump(),
            "threads": self.task.threads,
            "text": self.task.text_chunks,
            "prefill": PREFILL,
            "decode": DECODE,
        }
        with _clock(Path(self.task.results)):
            load = machine.load()
            found = self._call(
                "tenth.leaderboard.text_chunk:timed",
                asked,
                self._limits(header),
                [gguf, Path(self.task.text_chunks)],
            )
        busy = "" if load is None else f", load {load:g} before"
        where = f"{machine.processor()}, {self.task.threads or llama.cores()} threads{busy}"
        how = f"{where}; warm file; median, half range"
        self.readings += [
            repeated(name, found[name], how) for name in ("load", "prefill", "decode") if found[name]
        ]
        self._ask(probes.compare_timed(found["scored"], judged["timed"]))

    def _tasks(self, gguf: Path, header: Header, runtime: Runtime) -> None:
        task, conditions = self.task, self.task.conditions
        self.note(f"ask {', '.join(conditions.tasks)}")
        settings = EvalSettings(
            tasks=conditions.tasks,
            limit=conditions.limit,
            data=Path(task.data) if task.data else None,
            threads=task.threads,
            limits=exam.limits(conditions.budget, header.vocabulary, task.seconds),
        )
        asked = Path(task.asked) if task.asked else None
        try:
            self.tasks = exam.ask(gguf, runtime, settings, task.seed, asked, self.log)
        except InputError as error:  # the items are not the submission's
            raise JudgeError(str(error)) from error

    def _ask(self, probe: Probe) -> None:
        self.probes.append(probe)
        seen = "" if probe.value is None else f" ({probe.value:.3g}, allowed {probe.allowed or 0:g})"
        self.note(f"probe {probe.name}: {'passed' if probe.passed else 'FAILED'}{seen}: {probe.detail}")
        if not probe.passed:
            raise Disqualified(f"the probe {probe.name!r} failed{seen}: {probe.detail}")


@contextlib.contextmanager
def _clock(folder: Path) -> Iterator[None]:
    """One timed run at a time, of those that share this folder (and a file system with locks)."""
    import fcntl

    with (folder / ".clock").open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _clean(text: str, submission: Submission, scratch: Path) -> str:
    """One line without this machine's paths."""
    for path, name in ((str(submission.folder), submission.name), (str(scratch), "converted")):
        text = text.replace(path, name)
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:600]


def _publish(log: Path, submission: Submission, scratch: Path) -> None:
    """Take this machine's paths and all control characters out of the log, which is for everybody."""
    places = [(str(submission.folder), submission.name), (str(scratch), "converted")]
    with atomic(log) as partial, partial.open("wb") as out, log.open("rb") as source:
        for line in source:
            for path, name in places:
                line = line.replace(path.encode(), name.encode())
            out.write(line.translate(None, _CONTROL))


def _last_line(log: Path) -> str:
    """ "12: the log's last line"."""
    with log.open("rb") as file:
        count, last = deque(enumerate(file, 1), maxlen=1).pop()
    return f"{count}: {last.decode('utf-8', 'replace').strip()[:600]}"
