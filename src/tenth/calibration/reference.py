"""The original's log-probabilities on held-out windows, computed once by transformers in float32 and kept.

logprobs.npy is float16 [windows, T - 1, vocabulary]; readers normalise it again, so its rounding (a relative
2^-11) shows only as a floor of about 1e-6 nats under every KL. docs/log.md has that floor measured.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from tenth.calibration.layerwise import Hidden, LayerwiseModel
from tenth.core.jobs import Compute, Emit
from tenth.core.store import atomic, write_text
from tenth.models.checkpoint import open_checkpoint

LEAST = -60_000.0  # nats: a float16 has no less, and e to it is nothing


def run_original(
    model: Path, tokens: Path, text_bytes: int, plain: int, folder: Path, compute: Compute, emit: Emit
) -> None:
    """Fill `folder` with tokens.npy, logprobs.npy and reference.json; resumes by block.

    model: a Hugging Face folder. tokens: npy, int32 [windows, T]. plain: how many windows, the first ones,
    are plain text. text_bytes: UTF-8 bytes of the tokens that are predicted in those (all but the first of
    each window), for bits per byte. Emits {"done": blocks, "total": blocks}.
    """
    windows = np.load(tokens, allow_pickle=False)
    layerwise = LayerwiseModel(open_checkpoint(model), compute.threads, compute.device)
    depth, (count, length) = len(layerwise.blocks), windows.shape
    state = Hidden(folder, count, length, layerwise.width)
    if not any(state.has(index) for index in range(depth + 1)):
        layerwise.embed_windows(windows, state)
    with torch.no_grad():
        for index in range(depth):
            if state.has(index):
                with layerwise.block(index):
                    layerwise.advance(index, state)
                state.drop(index)
            emit({"done": index + 1, "total": depth + 1})
        with layerwise.head() as head, atomic(folder / "logprobs.npy") as partial, partial.open("wb") as file:
            shape = (count, length - 1, head.out_features)
            header = {"descr": "<f2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for hidden in state.read(depth):
                logprobs = layerwise.logits(hidden)[0, :-1].log_softmax(-1).clamp(min=LEAST)
                logprobs.to(torch.float16).numpy().tofile(file)
    np.save(folder / "tokens.npy", windows.astype(np.int32), allow_pickle=False)
    sizes = {"bytes": text_bytes, "windows": count, "context": length, "plain": plain}
    write_text(folder / "reference.json", json.dumps(sizes))
    state.clear()
    emit({"done": depth + 1, "total": depth + 1})
