"""What each division demands, checked from the files themselves; and a folder of safetensors as a GGUF."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
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
# Of a model trained from nothing with the original. Two models of 7 M weights trained apart on one text: no
# two matrices correlate by more than 0.054, answers are 0.55 nats apart. Copies: 0.95 in Q2_K, 1 in Q8_0;
# answers 0.001 (Q8_0), 0.097 (Q4_0), 0.32 nats (Q3_K) apart. See docs/log.md.
MOST_ALIKE = 0.2
LEAST_KL = 0.1
SAMPLE = 1 << 16  # weights of a matrix that are compared
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


def declared(header: Header, context: int) -> str:
    """Why the header's own figures keep it out; "" where they do not. context: tokens of the division."""
    parts = header.keys.get("split.count", 0)
    if type(parts) is not int:
        return f"split.count in its header is of type {type(parts).__name__}; give a whole GGUF without it"
    if parts not in (0, 1):
        return f"it is one part of a split GGUF (of {parts}); give a whole one"
    length = header.number("context_length")
    if length is None:
        return "its header declares no length of the context"
    if length < context:
        return f"its header declares a context of {length} tokens, and {context} are asked for"
    return ""


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


class FindCopies(jobs.Job[dict[str, float]]):
    """Name of a matrix -> largest correlation, by size, of a sample of it with one of the original's.

    Matrices are compared with all of the same role and row length, whichever block they are in.
    """

    gguf: Path
    original: Path

    def run(self, emit: jobs.Emit) -> dict[str, float]:  # noqa: ARG002
        """Compare a sample of every matrix."""
        mine, theirs = (_by_role(read_header(path)) for path in (self.gguf, self.original))
        found: dict[str, float] = {}
        for role in mine.keys() & theirs.keys():
            rows = min(tensor.count // tensor.shape[-1] for tensor in (*mine[role], *theirs[role]))
            here, there = (
                np.array([_sample(path, tensor, rows) for tensor in tensors])
                for path, tensors in ((self.gguf, mine[role]), (self.original, theirs[role]))
            )
            alike = np.abs(here @ there.T).max(axis=1)
            found |= {tensor.name: float(value) for tensor, value in zip(mine[role], alike, strict=True)}
        return found


def _by_role(header: Header) -> dict[tuple[str, int], list[Stored]]:
    """(name without the block's number, length of a row) -> matrices."""
    roles: dict[tuple[str, int], list[Stored]] = {}
    for tensor in header.tensors.values():
        if len(tensor.shape) > 1 and tensor.shape[-2] > 1:
            role = re.sub(r"\.\d+\.", ".", tensor.name)
            roles.setdefault((_EMBEDDING if role == _HEAD else role, tensor.shape[-1]), []).append(tensor)
    return roles


def _sample(path: Path, tensor: Stored, rows: int) -> np.ndarray:
    """The first rows, less their mean, of length 1; zeros where they are no numbers."""
    values = _rows(path, tensor, 0, min(rows, max(1, SAMPLE // tensor.shape[-1]))).ravel()
    values -= values.mean()
    length = float(np.linalg.norm(values))
    return values / length if math.isfinite(length) and length else np.zeros_like(values)


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


def own_weights(alike: dict[str, float]) -> Probe:
    """Whether no matrix is one of the original's, for a model that is said to be trained from nothing."""
    if not alike:
        return Probe(name="own weights", passed=True, detail="no matrix is of a size of the original's")
    name = max(alike, key=lambda key: alike[key])
    return Probe(
        name="own weights",
        passed=alike[name] <= MOST_ALIKE,
        value=alike[name],
        allowed=MOST_ALIKE,
        detail=f"largest correlation of {len(alike)} matrices with the original's, of {name}",
    )


def own_answers(kl: Sequence[float]) -> Probe:
    """Whether its distributions are not the original's. kl: nats per token of each passage."""
    value = statistics.fmean(kl)
    detail = (
        "KL to the original, nats per token, at least; a model trained from nothing has answers of its own"
    )
    return Probe(name="own answers", passed=value >= LEAST_KL, value=value, allowed=LEAST_KL, detail=detail)
