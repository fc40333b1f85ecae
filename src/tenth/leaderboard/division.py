"""What each division demands, checked from the files themselves; and a folder of safetensors as a GGUF."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from tenth.core import jobs
from tenth.core.ggml import FLOATS
from tenth.leaderboard.records import Division, Probe
from tenth.models.checkpoint import open_checkpoint
from tenth.models.formats.gguf import write_gguf
from tenth.models.formats.inspect import Header, Stored, read_header
from tenth.runtime import llama

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
            here, there = (str(list(shapes[name])) if name in shapes else "none" for shapes in (mine, theirs))
            return f"the division bits keeps every tensor: {name!r:.80} is {here}, in the original {there}"
    return ""


class CompareWeights(jobs.Job[dict[str, float]]):
    """Name -> cosine of a tensor's weights with the original's; NaN or zero weights give 0.

    A head that only `gguf` has is compared with the original's embedding.
    """

    gguf: Path
    original: Path

    def run(self, emit: jobs.Emit) -> dict[str, float]:  # noqa: ARG002
        """Compare every tensor of the submission with the original's; emits tensors done."""
        theirs = read_header(self.original).tensors
        return {
            name: self._cosine(tensor, theirs.get(name) or theirs[_EMBEDDING])
            for name, tensor in read_header(self.gguf).tensors.items()
        }

    def _cosine(self, mine: Stored, theirs: Stored) -> float:
        rows = mine.count // mine.shape[-1]
        step = max(1, _ROWS_BYTES // (4 * mine.shape[-1]))
        sums = np.zeros(3)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            a, b = _rows(self.gguf, mine, first, last), _rows(self.original, theirs, first, last)
            sums += [np.vdot(a, b), np.vdot(a, a), np.vdot(b, b)]
        product = math.sqrt(max(sums[1] * sums[2], 0.0)) if np.isfinite(sums).all() else 0.0
        return float(sums[0] / product) if product else float(sums[1] == sums[2])


def _rows(path: Path, tensor: Stored, first: int, last: int) -> np.ndarray:
    """Float64 rows of a tensor."""
    columns = tensor.shape[-1]
    width = tensor.bytes // (tensor.count // columns)
    raw = np.fromfile(path, np.uint8, (last - first) * width, offset=tensor.offset + first * width)
    return llama.dequantize(raw.reshape(-1, width), tensor.type, columns).astype(np.float64)


class Convert(jobs.Job[None]):
    """Write the Hugging Face folder `source` as a GGUF with the very types of its tensors."""

    source: Path
    destination: Path

    def run(self, emit: jobs.Emit) -> None:
        """Convert; emits the bytes done.

        Raises InputError for a folder that is broken, or of an architecture that llama.cpp or we do not know.
        """
        checkpoint = open_checkpoint(self.source)
        types = {s.name: checkpoint.tensors[s.source].dtype for s in checkpoint.specs() if s.linear}
        write_gguf(checkpoint, types, self.destination, progress=lambda done: emit({"done": done}))


def near(cosines: dict[str, float]) -> Probe:
    """Whether the tensor that is the furthest from the original's is near enough."""
    name = min(cosines, key=lambda key: cosines[key])
    return Probe(
        name="near",
        passed=cosines[name] >= LEAST_COSINE,
        value=cosines[name],
        allowed=LEAST_COSINE,
        detail=f"least cosine of {len(cosines)} tensors with the original's, of {name}",
    )
