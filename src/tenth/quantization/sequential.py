r"""Every matrix of one plan rounded on what it will really read: the blocks before it as they are stored.

    x = what a site reads in the original
    y = what it reads where the embedding and all blocks before its own are stored
    stored = round(W + SHARE W D),    W (1 + D) what comes nearest to W x on y (quantization/gram.py)

So a block makes good what the blocks before it lost. To read y without aiming at W x gains nothing, and half
of D is better than all of it, which fits the noise of the windows too (docs/log.md).

But a matrix then depends on the types of all that stand before it: the folder is of one plan alone. The
original and the stored model are run together, a block three times. Where the embedding is the head too, it
is rounded first, on the original's last hidden states, after a pass for that alone. Peak memory
is that of quantization/rounding.py and two more matrices per site; hidden states of two block boundaries of
both models are on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from tenth.calibration.layerwise import Hidden, LayerwiseModel
from tenth.calibration.stats import Stats
from tenth.core.jobs import Compute, Emit, Event
from tenth.core.records import TensorSpec
from tenth.models.checkpoint import HEAD, Checkpoint, open_checkpoint
from tenth.models.formats.gguf import source_rows
from tenth.quantization import gram, rounding
from tenth.quantization.encode import Rounding, keep, path_of
from tenth.quantization.gptq import decode
from tenth.quantization.grids import GRIDS

SHARE = 0.5  # of D


def round_sequentially(
    model: Path,
    tokens: Path,
    calibration: Path,
    types: Mapping[str, str],
    folder: Path,
    rounds: int,
    compute: Compute,
    emit: Emit,
) -> int:
    """Put what `types` asks for into `folder`, of this plan alone; resumes by block. See `round_plan`.

    Embeddings without a head are put there too, as the plain encoder stores them. Emits {"done": weights,
    "total": weights}. Returns how many tensors were rounded now, the embedding not among them.
    """
    stats, windows = Stats(calibration), np.load(tokens, allow_pickle=False)
    checkpoint = open_checkpoint(model)
    stored = _Stored(checkpoint, types, folder)
    total = rounding.Rounder(checkpoint, types, folder, stats, rounds, compute.threads, emit).total
    done = 0
    if not stored.has(stored.embedding):
        if checkpoint.shape.tied:
            alone = {stored.embedding.name: types[stored.embedding.name]}

            def of_all(event: Event) -> None:
                emit({**event, "total": total})

            rounding.round_plan(model, tokens, calibration, alone, folder, rounds, compute, of_all)
            done = stored.embedding.count
        else:
            stored.encode_embedding(stats, compute.threads)
    rounder = rounding.Rounder(checkpoint, types, folder, stats, rounds, compute.threads, emit)
    rounder.done, rounder.total = done, rounder.total + done
    layerwise = LayerwiseModel(checkpoint, compute.threads, compute.device)
    state = Hidden(folder, len(windows), windows.shape[1], layerwise.width, layerwise.device)
    depth = len(layerwise.blocks)
    with torch.no_grad():
        if rounder.missing:
            for index in range(_start(layerwise, state, windows, stored), depth):
                _block(layerwise, index, state, rounder, stats, stored)
        if HEAD in rounder.missing:
            with layerwise.head() as head, gram.Pairs({head: stats.energy(HEAD)}) as pairs:
                for original, own in _both(state, depth):
                    layerwise.logits(original)
                    layerwise.logits(own)
            _put(rounder, HEAD, head, pairs, stats)
    state.clear()
    return rounder.count


class _Stored:
    """The matrices of the folder as the model will have them."""

    def __init__(self, checkpoint: Checkpoint, types: Mapping[str, str], folder: Path) -> None:
        self._checkpoint, self._types, self._folder = checkpoint, types, folder
        self._specs = {spec.source: spec for spec in checkpoint.specs() if spec.linear}
        self.embedding = next(spec for spec in self._specs.values() if spec.role == "token_embd")

    def has(self, spec: TensorSpec) -> bool:
        """Whether it is there, or is stored as it is."""
        kind = self._types[spec.name]
        return kind not in GRIDS or path_of(self._folder, spec.name, kind).exists()

    def encode_embedding(self, stats: Stats, threads: int) -> None:
        """Put the embedding there, rounded to nearest."""
        spec, kind = self.embedding, self._types[self.embedding.name]
        encode = Rounding(lambda source: stats[source].cols, threads)
        parts = [encode(spec, kind, rows, first) for first, rows in source_rows(self._checkpoint, spec)]
        keep(self._folder, spec.name, kind, np.concatenate(parts))

    def show(self, module: torch.nn.Linear | torch.nn.Embedding, source: str) -> None:
        """Give a filled module the stored weight."""
        spec = self._specs[source]
        kind = self._types[spec.name]
        if kind in GRIDS:
            blocks = np.load(path_of(self._folder, spec.name, kind), allow_pickle=False)
            weight = decode(GRIDS[kind], blocks, module.weight.device)
            order = spec.row_order()
            if order is not None:
                where = torch.from_numpy(order).to(weight.device)
                weight = torch.empty_like(weight).index_copy_(0, where, weight)
            module.weight = torch.nn.Parameter(weight, requires_grad=False)


def _block(
    layerwise: LayerwiseModel,
    index: int,
    state: Hidden,
    rounder: rounding.Rounder,
    stats: Stats,
    stored: _Stored,
) -> None:
    """Round a block's matrices; leaves both models' hidden states behind it."""
    linears = layerwise.linears(index)
    wanted = {module: name for module, name in linears.items() if name in rounder.missing}
    with layerwise.block(index):
        with gram.Pairs({module: stats.energy(name) for module, name in wanted.items()}) as pairs:

            def originals() -> Iterator[torch.Tensor]:
                for original, own in _both(state, index):
                    yield layerwise.run(index, original)
                    layerwise.run(index, own)

            state.write(index + 1, originals())
        for module, name in wanted.items():
            _put(rounder, name, module, pairs, stats)
        for module, name in linears.items():
            stored.show(module, name)
        state.write(_own(index + 1), (layerwise.run(index, own) for own in state.read(_own(index))))
    state.drop(index)
    state.drop(_own(index))


def _put(
    rounder: rounding.Rounder, source: str, module: torch.nn.Linear, pairs: gram.Pairs, stats: Stats
) -> None:
    shift = SHARE * pairs.shift(module)
    rounder.put(source, pairs.take(module, stats[source].cols), shift)


def _both(state: Hidden, index: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Windows at a boundary of both models."""
    return zip(state.read(index), state.read(_own(index)), strict=True)


def _own(index: int) -> str:
    """The stored model's key of a boundary."""
    return f"own-{index}"


def _start(layerwise: LayerwiseModel, state: Hidden, windows: np.ndarray, stored: _Stored) -> int:
    """The last boundary of which a killed run left both models' hidden states, or 0 with them made."""
    known = [i for i in range(len(layerwise.blocks) + 1) if state.has(i) and state.has(_own(i))]
    if not known:
        with layerwise.embed() as embed:
            state.write(0, (embed(window) for window in windows))
            stored.show(layerwise.embedding, stored.embedding.source)
            state.write(_own(0), (embed(window) for window in windows))
    return max(known, default=0)
