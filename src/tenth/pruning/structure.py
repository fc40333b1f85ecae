"""A smaller model: the original without what was chosen, what stays refitted in closed form.

The original and the smaller model are run together, block by block, and each o_proj and down_proj is chosen
and refitted on what it will really read,

    target = W x + SHARE (r - s),    r, s residual streams of the original and the smaller model there,

so that it makes good what was lost before it too. A block that is dropped whole is part of the target of the
down_proj before it: its closed-form patch, at no weight more (ReplaceMe, Shopkhoev et al. 2025, arXiv
2505.02819). q, k, v, gate and up move DRIFT of the way to giving on the smaller model's stream what they gave
on the original's, then lose rows. Where a norm stands between a matrix and the residual stream, or a block's
halves are parallel, both shares are 0.

Peak memory: one block, and for its widest matrix a few of [in, in] in float64; hidden states of every block
boundary of the original are on disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tenth.calibration.layerwise import Hidden, LayerwiseModel
from tenth.calibration.stats import Stats
from tenth.core import digests
from tenth.core.jobs import Emit
from tenth.core.records import Shape
from tenth.core.store import atomic, write_text
from tenth.models import edit
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.models.formats.folder import write_folder
from tenth.pruning import refit
from tenth.pruning.removal import ROUNDS
from tenth.pruning.residual import (
    Part,
    ResidualOutputs,
    Trace,
    read_windows,
    token_rows,
    traced,
    unit_columns,
    with_columns,
)
from tenth.pruning.settings import RefitSettings
from tenth.pruning.shape import resized

SHARE = 0.85  # of what was lost before; .7 and 1 are up to 1 % worse, .5 is 4 %
DRIFT = 0.75  # of what was lost before, that the matrices inside a block follow


@dataclass(frozen=True)
class _Refitting:
    """What the refit of every block works with."""

    layerwise: LayerwiseModel
    state: Hidden  # of both models
    shape: Shape
    stats: Stats
    share: float  # of what was lost before a matrix, that it makes good
    folder: Path


def refitted(settings: RefitSettings, emit: Emit) -> int:
    """Write the model of a `Shape` as a Hugging Face folder, float32; returns how many weights it has.

    Resumes by block. Emits {"done", "total"} in block passes.
    """
    folder, windows, shape = settings.folder, read_windows(settings.tokens), settings.shape
    checkpoint = open_checkpoint(settings.model)
    layerwise = LayerwiseModel(checkpoint, settings.threads, settings.device)
    state = layerwise.states(folder, windows)
    share = SHARE if checkpoint.arch.sequential else 0.0
    refitting = _Refitting(layerwise, state, shape, Stats(settings.calibration), share, folder)
    kept, blocks = shape.kept, len(layerwise.blocks)
    with torch.no_grad():
        start = next((n for n, i in enumerate(kept) if not _edit_file(folder, i).exists()), len(kept))
        if start < len(kept) and not (state.has(kept[start]) and state.has(_smaller(kept[start]))):
            start = 0
        if start == 0:
            layerwise.embed_windows(windows, state)
            state.write(_smaller(kept[0]), state.read(0))
            _run_original(layerwise, state, 0, kept[0])
        for index, after in list(zip(kept, (*kept[1:], blocks), strict=True))[start:]:
            _run_original(layerwise, state, index, after)
            _refit_block(refitting, index, after)
            for passed in range(index, after):
                state.drop(passed)
            state.drop(_smaller(index))
            emit({"done": after, "total": blocks})
    state.clear()
    smaller = assembled(checkpoint, shape, folder)
    write_folder(smaller, folder)
    for index in kept:
        digests.forget(_edit_file(folder, index))
        for source in _matrices(checkpoint, index):
            digests.forget(folder / f"{source}.npy")
    return sum(spec.count for spec in smaller.specs())


def assembled(checkpoint: Checkpoint, shape: Shape, folder: Path) -> Checkpoint:
    """The checkpoint in that shape with the edits that `refitted` left in the folder: the channels and KV
    heads that stay of a block, and its matrices, in their original sizes.
    """
    units, values = {}, {}
    for index in shape.kept:
        stay = json.loads(_edit_file(folder, index).read_text())
        units[index] = stay["ffn"], stay["kv_heads"]
        values.update({source: folder / f"{source}.npy" for source in _matrices(checkpoint, index)})
    return resized(edit.replaced(checkpoint, values), shape, units.__getitem__)


class _Passes(NamedTuple):
    """The same windows in the original's block and in the smaller model's."""

    original: Trace
    smaller: Trace
    original_stream: torch.Tensor  # [windows * T, width]: the residual stream that enters the block
    smaller_stream: torch.Tensor


class _BlockPair:
    """A filled block with the original's weights and with those of the smaller model, by module."""

    def __init__(self, refitting: _Refitting, index: int) -> None:
        self._layerwise, self._state, self._index = refitting.layerwise, refitting.state, index
        self.outputs = ResidualOutputs(self._layerwise, index)
        self.original = {module: module.weight for module in self._layerwise.linears(index)}
        self.smaller = dict(self.original)

    def passes(self, last: torch.nn.Linear) -> Iterator[_Passes]:
        """All windows through both, as far as the input of the module `last`."""
        modules = (self.outputs.out, self.outputs.down)
        streams = self._state.read(self._index), self._state.read(_smaller(self._index))
        for original, smaller in zip(*streams, strict=True):
            _set_weights(self.original)
            first = traced(self._layerwise, self._index, original, modules, last)
            _set_weights(self.smaller)
            second = traced(self._layerwise, self._index, smaller, modules, last)
            yield _Passes(first, second, token_rows(original), token_rows(smaller))

    def follow(self, readers: Sequence[torch.nn.Linear]) -> None:
        """Bring matrices that read the residual stream nearer to giving what they gave on the original's."""
        first = readers[0]
        gram = torch.zeros(first.in_features, first.in_features, device=first.weight.device)
        cross, tokens = torch.zeros_like(gram), 0
        for passes in self.passes(first):
            x, y = passes.original.inputs[first], passes.smaller.inputs[first]
            gram.addmm_(y.T, y)
            cross.addmm_((x - y).T, y)
            tokens += len(y)
        for module in readers:
            weight = self.smaller[module]
            best = refit.least_squares(weight, gram / tokens, tokens, weight @ cross / tokens).best.float()
            self.smaller[module] = torch.nn.Parameter(weight.lerp(best, DRIFT), requires_grad=False)

    def problem(self, part: Part, share: float, beyond: Iterator[torch.Tensor] | None) -> refit.LeastSquares:
        """What a part should give on what it reads in the smaller model; beyond: what dropped blocks behind
        this one gave, which it is to give as well.
        """
        out, module, weight = self.outputs.out, part.module, self.original[part.module]
        gram = torch.zeros(module.in_features, module.in_features, device=weight.device)
        cross, tokens = torch.zeros_like(weight), 0
        for passes in self.passes(module):
            x, y = passes.original.inputs[module], passes.smaller.inputs[module]
            lost = passes.original_stream - passes.smaller_stream
            if module is not out:
                lost = lost + passes.original.outputs[out] - passes.smaller.outputs[out]
            target = (x - y) @ weight.T + share * lost
            if beyond is not None:
                target = target + next(beyond)
            gram.addmm_(y.T, y)
            cross.addmm_(target.T, y)
            tokens += len(y)
        return refit.least_squares(weight, gram / tokens, tokens, cross / tokens)


def _refit_block(refitting: _Refitting, index: int, after: int) -> None:
    """Choose and refit the parts of a block; leaves its matrices, and the smaller model's hidden states where
    block `after` begins.
    """
    layerwise, state, share, folder = refitting.layerwise, refitting.state, refitting.share, refitting.folder
    with layerwise.block(index):
        pair, stay = _BlockPair(refitting, index), {}
        outputs = pair.outputs
        counts = refitting.shape.kv_heads[index], refitting.shape.ffn[index]
        for part, keep in zip(outputs.parts, counts, strict=True):
            if share:
                pair.follow(outputs.readers[part.name])
            last = part.module is outputs.down
            problem = pair.problem(part, share, _beyond(state, index + 1, after) if last and share else None)
            removal = refit.cheapest_first(
                problem, outputs.moment(part, refitting.stats), part.unit, ROUNDS, keep
            )
            weight = pair.original[part.module]
            stay[part.name] = sorted(set(range(part.units)) - set(removal.order))
            columns = unit_columns(stay[part.name], part.unit, weight.device)
            pair.smaller[part.module] = with_columns(weight, columns, refit.refitted(problem, columns))
        _set_weights(pair.smaller)
        state.write(_smaller(after), (layerwise.run(index, hidden) for hidden in state.read(_smaller(index))))
        for module, source in layerwise.linears(index).items():
            with atomic(folder / f"{source}.npy") as partial, partial.open("wb") as file:
                np.save(file, pair.smaller[module].cpu().numpy(), allow_pickle=False)
        write_text(_edit_file(folder, index), json.dumps(stay))


def _beyond(state: Hidden, first: int, after: int) -> Iterator[torch.Tensor] | None:
    """What the blocks first..after - 1 added to the residual stream of the original; None where none are."""
    if first == after:
        return None
    ends = zip(state.read(first), state.read(after), strict=True)
    return (token_rows(end - begin) for begin, end in ends)


def _run_original(layerwise: LayerwiseModel, state: Hidden, first: int, after: int) -> None:
    """Leave the original's hidden states at the boundaries first + 1..after."""
    for index in range(first, after):
        if not state.has(index + 1):
            with layerwise.block(index):
                layerwise.advance(index, state)


def _set_weights(weights: dict[torch.nn.Linear, torch.Tensor]) -> None:
    for module, weight in weights.items():
        module.register_parameter("weight", torch.nn.Parameter(weight, requires_grad=False))


def _matrices(checkpoint: Checkpoint, index: int) -> list[str]:
    """Hugging Face names of a block's matrices."""
    return [spec.source for spec in checkpoint.specs() if spec.layer == index and spec.linear]


def _smaller(index: int) -> str:
    """The smaller model's key of a boundary."""
    return f"smaller-{index}"


def _edit_file(folder: Path, index: int) -> Path:
    """Where the units that stay of a block are kept until the model is written."""
    return folder / f"edit-{index:04d}.json"
