"""Reconstruction by blocks, before healing as a whole: each learns to give what the original's gives, from
what the healed ones before it give.

The loss is the squared error as a share of the variance of the original's hidden states. A step needs no head
and no other block, and what a cut broke is mended where it was broken: a part of the tokens spent here heals
more than all of them spent on the KL (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch

from tenth.calibration.layerwise import LayerwiseModel
from tenth.core.store import atomic
from tenth.distillation.targets import translated
from tenth.distillation.training import CLIP, Schedule, adam


def reconstruct(
    student: LayerwiseModel,
    original: LayerwiseModel,
    beside: bool,
    windows: np.ndarray,
    kept: np.ndarray | None,
    schedule: Schedule,
    folder: Path,
    emit: Callable[[int], None],
) -> None:
    """Train the parameters of the student's blocks that require a gradient; emits blocks done.

    student: filled. original: filled too where it is `beside` it, else its blocks are filled one by one.
    windows: int32 [count, T]. folder: gets a file for every finished block, from which the same call resumes.
    Peak memory beside what is filled: a block of the original, 12 bytes a weight of one of the student's, and
    three hidden states of every window.
    """

    def filled(part: Callable[[], AbstractContextManager[object]]) -> AbstractContextManager[object]:
        return nullcontext() if beside else part()

    with torch.no_grad(), filled(original.embed):
        targets = [original.embedded(translated(window[None], kept)) for window in windows]
        inputs = [student.embedded(window[None]) for window in windows]
    for index, block in enumerate(student.blocks):
        with torch.no_grad(), filled(lambda number=index: original.block(number)):  # type: ignore[misc]
            targets = [original.run(index, state) for state in targets]
        parameters = _trained(block)
        path = folder / f"block-{index}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as data, torch.no_grad():
                for number, parameter in enumerate(parameters):
                    parameter.copy_(torch.from_numpy(data[f"weight{number}"]))
        else:
            _train_block(student, index, inputs, targets, schedule)
            arrays = {f"weight{number}": p.detach().cpu().numpy() for number, p in enumerate(parameters)}
            with atomic(path) as partial, partial.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
        with torch.no_grad():
            inputs = [student.run(index, state) for state in inputs]
        emit(index + 1)


def _trained(block: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters of a block that are trained."""
    return [parameter for parameter in block.parameters() if parameter.requires_grad]


def _train_block(
    student: LayerwiseModel,
    index: int,
    inputs: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    schedule: Schedule,
) -> None:
    """Train one block to give the targets on the inputs, a hidden state of each window."""
    parameters = _trained(student.blocks[index])
    optimiser = adam(parameters)
    scale = float(torch.stack([state.var() for state in targets]).mean())
    for step in range(schedule.steps):
        rows = schedule.rows(step, len(inputs))
        for row in rows:
            error = (student.run(index, inputs[row]) - targets[row]).square().mean()
            torch.autograd.backward(error / (scale * len(rows)))
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.param_groups[0]["lr"] = schedule.at(step)
        optimiser.step()
        optimiser.zero_grad()
