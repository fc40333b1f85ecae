"""What a smaller KV cache costs this model, measured in llama.cpp itself.

The model is stored with 8-bit weights (the probe) and run once with an f16 cache, then with each other type
for the keys alone and for the values alone; the KL between the two runs is that type's sensitivity. Keys' and
values' sensitivities add up within the noise. The transforms that llama.cpp applies to quantised caches
(Hadamard rotation) are in the measurement.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tenth.core.divergence import divergence, log_softmax
from tenth.core.ggml import KV_TYPES, storage_type
from tenth.core.jobs import Emit
from tenth.core.records import Runtime
from tenth.models.checkpoint import open_checkpoint
from tenth.quantization.write import write_model
from tenth.runtime.llama import Session

PROBE = "Q8_0"


def probe_type(columns: int) -> str:
    """How the probe stores a row of that many weights."""
    return PROBE if storage_type(PROBE).holds(columns) else "F16"


def measure_kv(
    model: Path, tokens: Path, windows: int, head: int, context: int, folder: Path, threads: int, emit: Emit
) -> dict[str, float]:
    """{"k q8_0": nats per token, "v q8_0": ..., ...} on the first windows of tokens (npy, int32 [windows,
    T]).

    head: size of an attention head; types whose blocks do not divide it are left out. context: tokens that
    the cache has room for, as many as a window at least. The probe lies in `folder` meanwhile. Emits {"done":
    runs, "total": runs}.
    """
    probe = folder / "probe.gguf"
    specs = [spec for spec in open_checkpoint(model).specs() if spec.linear]
    write_model(model, {spec.name: probe_type(spec.columns) for spec in specs}, probe, threads=threads)
    texts = np.load(tokens, allow_pickle=False)[:windows]
    batch = min(texts.shape[1], 512)
    runtime = Runtime(n_ctx=context, n_ubatch=batch, type_k="f16", type_v="f16", threads=threads)
    kinds = [kind for kind in KV_TYPES if kind != "f16" and storage_type(kind).holds(head)]
    runs = [(side, kind) for kind in kinds for side in "kv"]
    total = len(runs) + 1
    original = _logprobs(probe, texts, runtime)
    emit({"done": 1, "total": total})
    kl_by_type = {}
    for number, (side, kind) in enumerate(runs):
        changed = _logprobs(probe, texts, runtime.model_copy(update={f"type_{side}": kind}))
        kls = [divergence(a, b).mean() for a, b in zip(original, changed, strict=True)]
        kl_by_type[f"{side} {kind}"] = float(np.mean(kls))
        emit({"done": number + 2, "total": total})
    probe.unlink()
    return kl_by_type


def _logprobs(gguf: Path, texts: np.ndarray, runtime: Runtime) -> list[np.ndarray]:
    out = []
    with Session.open(gguf, runtime, n_batch=texts.shape[1]) as session:
        for text in texts:
            session.clear()
            out.append(log_softmax(session.decode(text, 0, True)))
    return out
