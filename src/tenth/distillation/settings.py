"""What each stage of distillation is given, and what it returns: records, without torch."""

from __future__ import annotations

from pathlib import Path

from tenth.core.records import Record
from tenth.distillation.budget import TrainingBudget


class CorpusSettings(Record):
    """A text, and how many windows of it are wanted to train on."""

    model: Path  # a folder with the tokenizer
    text: Path | None  # a UTF-8 file, also compressed (.zst); None for the bundled one
    destination: Path  # the file to write
    length: int  # tokens of a window
    tokens: int  # wanted in all
    seed: int
    held_out: Path | None = None  # a file of windows whose text is left out
    frame: tuple[str, ...] = ()  # what the chat template puts around turns; empty for none


class TrainingSettings(Record):
    """A student, its teacher, and how long the student is trained."""

    model: Path  # the student: the edited model's folder
    original: Path  # the teacher's folder
    tokens: Path  # a file of int32 [windows, T]: some are judged on, the others trained on
    folder: Path  # for the trained model, and for what a killed run resumes from
    training_budget: TrainingBudget
    seed: int
    threads: int
    device: str = "cpu"  # of torch
    rate: float | None = None  # of learning; None for the usual one


class DistilSettings(TrainingSettings):
    """How a model with parts removed is trained; its windows are in its own ids."""

    memory: int  # bytes that may be used; on a GPU, what is free there counts instead
    kept: Path | None = None  # a file of int64: the original's id of each of the model's; None: the same ids
    lora: int | None = None  # rank of the adapters, 0 for all weights, None to decide by memory


class TrainingResult(Record):
    """How a training went: divergences are in nats per token, on the windows judged on; infinite where a run
    diverges.
    """

    before: float
    after: float
    judged: tuple[tuple[int, float], ...]  # (step, divergence there)
    step: int  # the best one, which is kept
    steps: int  # that were made
    tokens: int  # trained on
    notes: tuple[str, ...]  # for the person


class DistilResult(TrainingResult):
    """How the training of a model with parts removed went."""

    local: int  # windows spent block by block
    lora: int  # rank of the adapters, 0 for all weights
    original: str  # how the targets were had: "computed beside it" or "sampled"
