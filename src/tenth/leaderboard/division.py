"""What each division demands, checked from the files themselves; and a folder of safetensors as a GGUF."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from tenth.core import jobs
from tenth.core.ggml import FLOATS
from tenth.leaderboard.records import Division, Probe
from tenth.models.formats.inspect import Header, Stored, read_header

# Of a tensor with the original's. A sign alone for each of Gaussian weights still gives sqrt(2 / pi) = 0.80.
LEAST_COSINE = 0.7
_ROWS_BYTES = 32 << 20  # of float32 rows at a time
_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"


def stored(division: Division, header: Header) -> str:
    """Why the tensors' types do not belong there; "" where they do."""
    if division != "structure":
        return ""
    wrong = [tensor for tensor in header.tensors.values() if tensor.type not in FLOATS]
    if not wrong:
        return ""
    return (
        f"the division structure takes no quantised weights, and {wrong[0].name!r:.80} ({len(wrong)} such) is"
        f" stored as {wrong[0].type}"
    )


def same_model(header: Header, original: Header) -> str:
    """Why these are not the original's tensors by name and shape; "" where they are."""
    theirs = {name: tensor.shape for name, tensor in original.tensors.items()}
    mine = {name: tensor.shape for name, tensor in header.tensors.items()}
    if _HEAD not in theirs and _HEAD in mine:  # of a tied model the head may be stored beside the embedding
        theirs[_HEAD] = theirs.get(_EMBEDDING, ())
    if header.architecture != original.architecture:
        return f"its architecture is {header.architecture:.40}, the original's {original.architecture:.40}"
    for name in sorted(theirs.keys() | mine.keys()):
        if theirs.get(name) != mine.get(name):
            here, there = (str(list(found[name])) if name in found else "none" for found in (mine, theirs))
            return f"the division bits keeps every tensor: {name!r:.80} is {here}, in the original {there}"
    return ""


def cosines(emit: jobs.Emit, path: str, original: str) -> dict[str, float]:  # noqa: ARG001
    """In a cell: name -> cosine of a tensor's weights with the original's; NaN or zero weights give 0.

    A head that only `path` has is compared with the original's embedding.
    """
    mine, theirs = read_header(Path(path)).tensors, read_header(Path(original)).tensors
    found = {}
    for name, tensor in mine.items():
        other = theirs.get(name) or theirs[_EMBEDDING]
        columns = tensor.shape[-1]
        step = max(1, _ROWS_BYTES // (4 * columns))
        sums = np.zeros(3)
        for first in range(0, tensor.count // columns, step):
            last = min(first + step, tensor.count // columns)
            a, b = (_rows(Path(p), t, first, last) for p, t in ((path, tensor), (original, other)))
            sums += [np.vdot(a, b), np.vdot(a, a), np.vdot(b, b)]
        product = math.sqrt(max(sums[1] * sums[2], 0.0)) if np.isfinite(sums).all() else 0.0
        found[name] = float(sums[0] / product) if product else float(sums[1] == sums[2])
    return found


def _rows(path: Path, tensor: Stored, first: int, last: int) -> np.ndarray:
    """Float64 rows of a tensor."""
    from tenth.runtime import llama

    columns = tensor.shape[-1]
    width = tensor.bytes // (tensor.count // columns)
    raw = np.fromfile(path, np.uint8, (last - first) * width, offset=tensor.offset + first * width)
    return llama.dequantize(raw.reshape(-1, width), tensor.type, columns).astype(np.float64)


def convert(emit: jobs.Emit, source: str, destination: str) -> dict[str, Any]:
    """In a cell: write the Hugging Face folder `source` as a GGUF with the very types of its tensors.

    Raises InputError for a folder that is broken, or of an architecture that llama.cpp or we do not know.
    """
    from tenth.models.checkpoint import open_checkpoint
    from tenth.models.formats.gguf import write_gguf

    checkpoint = open_checkpoint(Path(source))
    types = {s.name: checkpoint.tensors[s.source].dtype for s in checkpoint.specs() if s.linear}
    size = write_gguf(checkpoint, types, Path(destination), progress=lambda done: emit({"done": done}))
    return {"bytes": size}


def near(found: dict[str, float]) -> Probe:
    """Whether the tensor that is the furthest from the original's is near enough."""
    name = min(found, key=lambda key: found[key])
    return Probe(
        name="near",
        passed=found[name] >= LEAST_COSINE,
        value=found[name],
        allowed=LEAST_COSINE,
        detail=f"least cosine of {len(found)} tensors with the original's, of {name}",
    )
