"""What each removal costs: the original is run once, block by block.

For each block the costs of removing FFN channels and KV groups (pruning/refit.py) are scaled half the way to
what removing half of them did to the output; what removing its attention or all of it did is measured
(pruning/variants.py).

Peak memory: one block, and for its widest matrix a few of [in, in] in float64; hidden states of two block
boundaries of the original are on disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from tenth.calibration.layerwise import Hidden, LayerwiseModel
from tenth.calibration.stats import Stats
from tenth.core import digests
from tenth.core.jobs import Emit
from tenth.core.store import write_text
from tenth.models.checkpoint import open_checkpoint
from tenth.pruning import refit, shape
from tenth.pruning.residual import InputGrams, Part, ResidualOutputs, read_windows, unit_columns, with_columns
from tenth.pruning.settings import RemovalSettings
from tenth.pruning.shape import BlockCosts, PruningCosts
from tenth.pruning.variants import Variants

ROUNDS = 48  # of removing channels
FEW = 8  # windows that removals are measured on
VARIANTS = 4  # measured for each block
TRUST = 4.0  # how far a measured cost may be from the predicted one


def removal_costs(settings: RemovalSettings, emit: Emit) -> PruningCosts:
    """What removing each part of the model costs, also written as pruning-costs.json; resumes by block.

    Emits {"done", "total"} in block passes.
    """
    folder, windows = settings.folder, read_windows(settings.tokens)
    layerwise = LayerwiseModel(open_checkpoint(settings.model), settings.threads, settings.device)
    shape, blocks = layerwise.checkpoint.shape, len(layerwise.blocks)
    stats, state = Stats(settings.calibration), layerwise.states(folder, windows)
    few = min(FEW, len(windows))
    variants = Variants(layerwise, Hidden(folder, few, windows.shape[1], layerwise.width, layerwise.device))

    def work(blocks: int) -> float:
        """Passes of blocks over all windows; a variant runs on few."""
        return blocks + few / len(windows) * (VARIANTS * blocks * (blocks + 1) / 2)

    with torch.no_grad():
        start = max((i for i in range(blocks) if state.has(i) and _predicted(folder, i)), default=None)
        if start is None:
            layerwise.embed_windows(windows, state)
        for index in range(start or 0, blocks):
            with layerwise.block(index):
                costs = _predict(layerwise, index, state, variants, stats)
                variants.step(index)
            write_text(_file(folder, index), json.dumps(costs))
            variants.drop(index)
            state.drop(index)
            emit({"done": work(index + 1), "total": work(blocks)})
        measured = variants.divergences(variants.state.read(blocks))
    channels, groups = max(shape.ffn), max(shape.kv_heads)
    scaled = tuple(_block_costs(folder, index, measured, channels) for index in range(blocks))
    pruning_costs = PruningCosts(channels=channels, groups=groups, blocks=scaled)
    write_text(folder / "pruning-costs.json", pruning_costs.model_dump_json())
    state.clear()
    for index in range(blocks):
        digests.forget(_file(folder, index))
    return pruning_costs


def _predict(
    layerwise: LayerwiseModel, index: int, state: Hidden, variants: Variants, stats: Stats
) -> dict[str, list[float]]:
    """Run a filled block on all windows; returns the predicted costs of removing 0, 1, 2, ... units of its
    parts, and begins the variants by which they are measured.
    """
    outputs = ResidualOutputs(layerwise, index)
    with InputGrams([part.module for part in outputs.parts]) as grams:
        layerwise.advance(index, state)
    tokens = state.windows * state.length
    variants.begin(index, "whole", variants.state.read(index), run=False)
    costs = {}
    for part in outputs.parts:
        problem = refit.least_squares(part.module.weight, grams.sums.pop(part.module) / tokens, tokens)
        removal = refit.cheapest_first(problem, outputs.moment(part, stats), part.unit, ROUNDS)
        costs[part.name] = removal.cost
        removed = {part.name: len(removal.order) // 2}
        if part.module is outputs.out:
            removed["attention"] = len(removal.order)
        for variant, count in removed.items():
            with _only(part, removal.order[count:], problem):
                variants.begin(index, variant, variants.state.read(index))
    return costs


@contextmanager
def _only(part: Part, units: Sequence[int], problem: refit.LeastSquares) -> Iterator[None]:
    """The part with those units alone, refitted, for the length of the with statement."""
    original = part.module.weight
    columns = unit_columns(units, part.unit, original.device)
    part.module.weight = with_columns(original, columns, refit.refitted(problem, columns))
    try:
        yield
    finally:
        part.module.weight = original


def _block_costs(
    folder: Path, index: int, measured: Mapping[tuple[int, str], float], channels: int
) -> BlockCosts:
    """The costs of a block, scaled so that half of it costs the geometric mean of predicted and measured."""
    costs = json.loads(_file(folder, index).read_text())

    def scaled(name: str) -> list[float]:
        predicted = costs[name][(len(costs[name]) - 1) // 2]
        factor = measured[index, name] / predicted if predicted > 0 else 1.0
        return [math.sqrt(min(max(factor, 1 / TRUST), TRUST)) * cost for cost in costs[name]]

    groups = scaled("kv_heads")
    attention = max(groups[-2], measured[index, "attention"])
    return BlockCosts(
        ffn=shape.sampled(scaled("ffn"), channels),
        kv_heads=(*groups[:-1], attention),
        whole=measured[index, "whole"],
    )


def _predicted(folder: Path, index: int) -> bool:
    """Whether the costs of all blocks before are there."""
    return all(_file(folder, before).exists() for before in range(index))


def _file(folder: Path, index: int) -> Path:
    """Where a block's predicted costs are kept until all are measured."""
    return folder / f"costs-{index:04d}.json"
