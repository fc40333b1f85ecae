"""What each stage of pruning is given, and what it returns: records, without torch."""

from __future__ import annotations

from pathlib import Path

from tenth.core.records import Record, Shape
from tenth.models.formats.hf import FloatType


class RemovalSettings(Record):
    """The model whose parts may be removed, and what its calibration left."""

    model: Path  # a Hugging Face folder
    tokens: tuple[Path, ...]  # files of int32 [windows, T]
    calibration: Path  # a folder of calibration/fisher.py
    folder: Path  # for the result, and for what a killed run resumes from
    threads: int
    device: str = "cpu"  # of torch


class RefitSettings(RemovalSettings):
    """A model, and the shape that it is to have."""

    shape: Shape


class TrimSettings(Record):
    """A model, and which of its tokens are to stay."""

    model: Path
    text: Path | None  # a file to count tokens in, None for the bundled text
    size: int  # tokens at the most
    folder: Path  # for the trimmed model
    languages: tuple[str, ...] = ()  # codes; where there are any and no text is given, nothing is counted
    dtype: FloatType = "F32"  # of the weights that are written


class TrimResult(Record):
    """The size of a trimmed vocabulary, and how many tokens the text takes in it."""

    vocabulary: int
    before: int  # the original's vocabulary
    tokens: int  # of the text
    tokens_before: int
