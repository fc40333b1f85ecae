"""The original's log-probabilities on held-out windows, computed once by transformers in float32 and kept.

logprobs.npy is float16 [windows, T - 1, vocabulary]; readers normalise it again, so its rounding (a relative
2^-11) shows only as a floor of about 1e-6 nats under every KL. docs/log.md has that floor measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tenth.core.store import atomic, write_text

BYTES_AT_MOST = 2_000_000_000  # of logprobs.npy: fewer windows for large vocabularies


def windows_within(windows: int, length: int, vocabulary: int) -> int:
    """How many of the windows fit the space for their log-probabilities; at least one."""
    return max(1, min(windows, BYTES_AT_MOST // (2 * (length - 1) * vocabulary)))


def run(
    emit: Callable[[dict[str, Any]], None],
    model: str,
    tokens: str,
    text_bytes: int,
    folder: str,
    threads: int,
) -> dict[str, Any]:
    """In a child process: fill `folder` with tokens.npy, logprobs.npy and reference.json; resumes by block.

    text_bytes: UTF-8 bytes of the tokens predicted, for bits per byte. Emits {"done": blocks, "total":
    blocks}.
    """
    import torch

    from tenth.calibration.layerwise import Hidden, LayerwiseModel
    from tenth.models.checkpoint import open_checkpoint

    here, windows = Path(folder), np.load(tokens, allow_pickle=False)
    layerwise = LayerwiseModel(open_checkpoint(Path(model)), threads)
    depth, (count, length) = len(layerwise.blocks), windows.shape
    state = Hidden(here, count, length, layerwise.width)
    if not any(state.has(index) for index in range(depth + 1)):
        with layerwise.embed() as embed:
            state.write(0, (embed(window) for window in windows))
    with torch.no_grad():
        for index in range(depth):
            if state.has(index):
                with layerwise.block(index):
                    state.write(index + 1, (layerwise.run(index, hidden) for hidden in state.read(index)))
                state.drop(index)
            emit({"done": index + 1, "total": depth + 1})
        with layerwise.head() as head, atomic(here / "logprobs.npy") as partial:
            shape = (count, length - 1, head.out_features)
            with partial.open("wb") as file:
                header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for hidden in state.read(depth):
                    logprobs = layerwise.logits(hidden)[0, :-1].log_softmax(-1)
                    logprobs.to(torch.float16).numpy().tofile(file)
    np.save(here / "tokens.npy", windows.astype(np.int32), allow_pickle=False)
    write_text(
        here / "reference.json", json.dumps({"bytes": text_bytes, "windows": count, "context": length})
    )
    state.clear()
    emit({"done": depth + 1, "total": depth + 1})
    return {"windows": int(count), "vocabulary": shape[2]}
