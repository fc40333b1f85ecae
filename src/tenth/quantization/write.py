"""A plan carried out: the GGUF with every tensor stored as the plan says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tenth.calibration.fisher import Stats
from tenth.models.checkpoint import open_checkpoint
from tenth.models.formats.gguf import write_gguf
from tenth.quantization.encode import Rounding
from tenth.quantization.rounding import Rounded, trained_vectors


def run(
    emit: Callable[[dict[str, Any]], None],
    model: str,
    types: dict[str, str],
    destination: str,
    calibration: str | None,
    rounded: list[str],
    threads: int,
) -> dict[str, Any]:
    """In a child process: write `destination`; types: GGUF tensor name -> ggml type.

    rounded: folders of tensors that are rounded already (quantization/rounding.py); the first that has one
    counts. The rest is encoded here. calibration: folder of stats for the importance weights; None stores
    without any. Emits {"done": bytes}.
    """
    stats = Stats(Path(calibration)) if calibration else None

    def importance(source: str) -> np.ndarray | None:
        return stats[source].cols if stats and source in stats else None

    checkpoint, folders = open_checkpoint(Path(model)), [Path(folder) for folder in rounded]
    size = write_gguf(
        checkpoint,
        types,
        Path(destination),
        encode=Rounded(folders, Rounding(importance, threads)),
        progress=lambda done: emit({"done": done}),
        vectors=trained_vectors(folders, checkpoint.specs()),
    )
    return {"bytes": size}
