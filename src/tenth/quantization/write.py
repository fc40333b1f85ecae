"""A plan carried out: the GGUF with every tensor stored as the plan says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tenth.calibration.stats import Stats
from tenth.models.checkpoint import open_checkpoint
from tenth.models.formats.gguf import write_gguf
from tenth.quantization.encode import Rounded, Rounding, trained_vectors


def write_model(
    model: Path,
    types: Mapping[str, str],
    destination: Path,
    calibration: Path | None = None,
    rounded: Sequence[Path] = (),
    threads: int = 0,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Write a Hugging Face folder as a GGUF, whole or not at all; types: GGUF tensor name -> ggml type.

    calibration: folder of statistics for the importance weights; None stores without any. rounded: folders of
    tensors that are rounded already (quantization/rounding.py), of which the first that has one counts; the
    rest is encoded here. progress: gets the bytes written.
    """
    stats = Stats(calibration) if calibration else None

    def importance(source: str) -> np.ndarray | None:
        return stats[source].cols if stats and source in stats else None

    checkpoint = open_checkpoint(model)
    write_gguf(
        checkpoint,
        types,
        destination,
        encode=Rounded(rounded, Rounding(importance, threads)),
        progress=progress,
        vectors=trained_vectors(rounded, checkpoint.specs()),
    )
