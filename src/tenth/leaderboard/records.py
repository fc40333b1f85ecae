"""What the judge says: one Verdict for each submission, device and budget; RESULTS/<id>.json.

A verdict holds as long as the rules are these and the files and conditions are the same (`Verdict.id`);
otherwise the submission is judged again. Every attempt stays: other files make another id.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter, model_validator

from tenth.core.errors import InputError
from tenth.core.records import Reading, Record, read_record, reading_of
from tenth.core.scores import Comparison, ScoreInterval

RULES = 2  # raised with whatever changes a figure or an admission; older verdicts are judged again
VERDICT_AT_MOST = 4_000_000  # bytes of a verdict's file
SCRATCH = "scratch"  # as a base: trained from nothing

Division = Literal["bits", "structure", "open", "scratch"]
DIVISIONS: dict[Division, str] = {
    "bits": "the original's weights, stored in fewer bits",
    "structure": "fewer weights in 16 or 32 bits, nothing quantised",
    "open": "anything made from the original",
    "scratch": "trained from nothing, data declared",
}
# The reading that submissions are ranked by; less is better, and every tokenizer can be compared by it.
QUALITY = "bits_per_byte"


class Settings(Record):
    """How llama.cpp is to run a submission; llama.cpp's own defaults unless the manifest says otherwise."""

    n_ubatch: int = Field(default=512, ge=1, le=4096)
    type_k: Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"] = "f16"
    type_v: Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"] = "f16"
    flash_attention: bool = True
    repack: bool = False


class Manifest(Record):
    """submission.toml. It reports no number; unknown keys are refused."""

    name: str = Field(min_length=1, max_length=80)
    base: str = Field(min_length=1, max_length=200)  # name of the original model, or `SCRATCH`
    base_hash: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")  # see submission.TEMPLATE
    division: Division
    method: str = Field(min_length=1, max_length=4000)
    data: str = Field(min_length=1, max_length=4000)  # for calibration and training
    licence: str = Field(min_length=1, max_length=100)
    url: str = Field(default="", max_length=300, pattern=r"^(https?://[^\s<>\"']*)?$")
    runtime: Settings = Settings()

    @model_validator(mode="after")
    def _scratch_has_no_base(self) -> Manifest:
        if (self.base == SCRATCH) != (self.division == "scratch"):
            raise ValueError(f"base is {SCRATCH!r} in the division {SCRATCH}, and there alone")
        return self


class Probe(Record):
    """One question whether figures of this artifact mean anything."""

    name: str
    passed: bool
    value: float | None = None  # what was seen; None where nothing could be
    allowed: float | None = None  # the bound that it was held against
    detail: str  # what was done, and what value and bound are


class TaskScore(Record):
    """One task, by its first metric; shares."""

    task: str
    title: str
    metric: str
    score: ScoreInterval  # of 95 %
    chance: float
    informative: bool  # above chance
    against: Comparison | None = None  # with the original on the same items
    hidden: ScoreInterval | None = None  # score on items of a secret seed
    gap: ScoreInterval | None = None  # public minus hidden


class Conditions(Record):
    """Under what a submission was judged. Another one makes another verdict."""

    device: str
    budget: int = Field(gt=0)  # bytes
    context: int = Field(ge=1)  # tokens; a header that declares fewer is out
    original: str = ""  # name of what --against gave
    original_hash: str = ""
    text: str  # SHA-256 of the held-out text
    text_bytes: int  # of it that were read
    tasks: tuple[str, ...] = ()
    limit: int | None = None  # items of a task
    seed_hash: str = ""  # of the hidden items' seed, published before the round


class Verdict(Record):
    """All that is known of a submission, or why it is out."""

    version: Literal[1] = 1
    rules: int
    tenth: str
    runtime: str  # llama.cpp build
    submission: str  # name of its folder
    manifest: Manifest | None  # None where it cannot be read
    artifact: str  # SHA-256 over all its files but the manifest; empty where they cannot be read
    manifest_hash: str  # SHA-256 of submission.toml
    conditions: Conditions
    status: Literal["ranked", "disqualified"]
    reason: str = ""  # of a disqualification
    log_line: str = ""  # of the log, where it happened
    readings: list[Reading] = Field(default_factory=list)
    probes: list[Probe] = Field(default_factory=list)
    # Bits per byte of each passage of the text, in order: two verdicts are paired by them.
    text_chunks: list[float] = Field(default_factory=list)
    tasks: list[TaskScore] = Field(default_factory=list)
    isolation: list[str] = Field(default_factory=list)  # what shut the runs in, or could not here
    log: str  # name of the log's file beside this one
    command: str  # reproduces this verdict
    machine: str
    date: str  # UTC, ISO 8601
    seconds: float = Field(ge=0)

    @property
    def id(self) -> str:
        """Names the files of this verdict."""
        return identity(self.submission, self.artifact, self.manifest_hash, self.conditions)

    @property
    def current(self) -> bool:
        """Whether it was judged by today's rules."""
        return self.rules == RULES

    def reading(self, name: str) -> Reading | None:
        """The reading of that name, or None. A disqualified verdict may lack any of them."""
        return reading_of(self.readings, name)


def identity(submission: str, artifact: str, manifest_hash: str, conditions: Conditions) -> str:
    """NAME-0123456789ab: the same for the same files under the same conditions, whatever the rules."""
    what = "\n".join((submission, artifact, manifest_hash, conditions.model_dump_json()))
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in submission)[:60]
    return f"{safe.lstrip('.') or 'submission'}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


def read_verdict(file: Path) -> Verdict:
    """A verdict's file. Raises InputError for anything else."""
    return read_record(file, TypeAdapter(Verdict), "a verdict", VERDICT_AT_MOST)


def read_results(folder: Path) -> list[Verdict]:
    """All verdicts of a folder, oldest first. Raises InputError for what is no such folder or file."""
    if not folder.is_dir():
        raise InputError(f"no folder of results at {folder}; make one with tenth judge")
    verdicts = [read_verdict(file) for file in sorted(folder.glob("*.json"))]
    return sorted(verdicts, key=lambda verdict: (verdict.date, verdict.id))
