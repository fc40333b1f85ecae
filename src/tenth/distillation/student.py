"""The student and its teacher in memory: opened, filled, as functions of token ids, and what that takes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from tenth.calibration.layerwise import LayerwiseModel
from tenth.core.errors import InputError
from tenth.core.format import megabytes
from tenth.distillation.lora import adapt
from tenth.distillation.settings import TrainingSettings
from tenth.distillation.targets import chosen, translated
from tenth.distillation.training import Forward
from tenth.models.checkpoint import open_checkpoint

USABLE = 0.9  # of a GPU's memory: all of it, not what is free now, which differs from run to run
RANK = 16  # of adapters, where none is given
BATCH = 64  # windows of a step at most
HELD_BACK, HELD_SHARE = 16, 16  # windows to judge on: at most so many, and one in so many of those given
JUDGEMENTS = 20  # at most
FUSED = 20_000_000  # tokens from which on compiling a GPU's blocks pays: it takes 15 s, and halves a step


class Means(NamedTuple):
    """How a training uses the memory there is."""

    rank: int  # of adapters; 0 where all weights are trained
    beside: bool  # whether the original is computed beside the student; else its samples are put on disk
    micro_batch: int  # windows that go through the models together

    @classmethod
    def within(
        cls, memory: int, student: LayerwiseModel, original: LayerwiseModel, length: int, lora: int | None
    ) -> Means:
        """The means for windows of `length` tokens in so many bytes; lora: as in DistilSettings.

        More than one window goes through together only on a GPU. InputError where not even adapters find
        room.
        """
        weights, others = (
            sum(spec.count for spec in layerwise.checkpoint.specs()) for layerwise in (student, original)
        )
        window = activations(student, length)
        room = memory - window
        rank = (0 if 16 * weights <= room else RANK) if lora is None else lora
        adapters = sum(
            rank * (linear.in_features + linear.out_features)
            for index in range(len(student.blocks))
            for linear in student.linears(index)
        )
        needed = 4 * weights + 16 * adapters if rank else 16 * weights
        if needed > room:
            adapted = f" with adapters of rank {rank}" if rank else ""
            raise InputError(
                f"healing {student.checkpoint.path.name} needs {megabytes(needed + memory - room)} MB"
                f" of memory{adapted}; here are {megabytes(memory)} MB"
            )
        beside = needed + 4 * others <= room
        left = room - needed - 4 * others * beside
        cuda = student.device.type == "cuda"
        return cls(rank, beside, min(BATCH, 1 + left // window) if cuda else 1)


class Trainable:
    """The parameters of a filled student that are trained: all of its weights, or adapters beside them."""

    def __init__(self, student: LayerwiseModel, rank: int, seed: int) -> None:
        self._weights = parameters(student)
        self._adapters = adapt(student, rank, seed) if rank else []
        self.parameters = (
            [parameter for adapter in self._adapters for parameter in (adapter.down, adapter.up)]
            if rank
            else list(self._weights.values())
        )
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def values(self) -> dict[str, np.ndarray]:
        """The trained weights by the checkpoint's name; adapters are merged into them."""
        for adapter in self._adapters:
            adapter.merge()
        return {source: weight.detach().cpu().numpy() for source, weight in self._weights.items()}


def opened(settings: TrainingSettings) -> tuple[LayerwiseModel, LayerwiseModel]:
    """(the student, the original), not filled yet; a GPU's float32 products are rounded from here on."""
    student, original = (
        LayerwiseModel(open_checkpoint(path), settings.threads, settings.device)
        for path in (settings.model, settings.original)
    )
    if settings.device == "cuda":
        torch.set_float32_matmul_precision("high")
    return student, original


def split(windows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(windows to judge on, windows to train on), mixed."""
    order = np.random.default_rng(seed).permutation(len(windows))
    held = min(HELD_BACK, len(windows) // HELD_SHARE + 1)
    return windows[order[:held]], windows[order[held:]]


def forward_of(layerwise: LayerwiseModel, kept: np.ndarray | None = None) -> Forward:
    """A filled model as a function of the student's ids; on a GPU the blocks compute in bfloat16."""
    cuda = layerwise.device.type == "cuda"

    def forward(tokens: np.ndarray) -> torch.Tensor:
        hidden = layerwise.embedded(translated(tokens, kept))
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            for index in range(len(layerwise.blocks)):
                hidden = layerwise.run(index, hidden)
        return chosen(layerwise.logits(hidden.float()), kept)

    return forward


def parameters(layerwise: LayerwiseModel) -> dict[str, torch.nn.Parameter]:
    """Every weight of a filled model by the checkpoint's name; a tied matrix is one parameter."""
    if layerwise.checkpoint.shape.tied:
        layerwise.model.get_output_embeddings().weight = layerwise.embedding.weight
    sources = {spec.source for spec in layerwise.checkpoint.specs()}
    return {
        f"{name}.{part}": parameter
        for name, module in layerwise.named_modules()
        for part, parameter in module.named_parameters(recurse=False)
        if f"{name}.{part}" in sources
    }


def activations(layerwise: LayerwiseModel, tokens: int) -> int:
    """Bytes that a gradient of so many tokens takes beside the weights' own: what the blocks keep for it, and
    the vocabulary's logits and probabilities of both models.
    """
    kept = sum(
        linear.in_features + linear.out_features
        for index in range(len(layerwise.blocks))
        for linear in layerwise.linears(index)
    )
    return 4 * tokens * (2 * kept + 8 * layerwise.checkpoint.shape.vocab)


def even(batch: int, most: int) -> int:
    """Windows at once, at most `most`, that cut a batch into equal parts as far as can be."""
    return -(-batch // -(-batch // most))


def fuse(*models: LayerwiseModel) -> None:
    """Let torch's compiler join the small operations of filled blocks on a GPU; blocks of one shape share the
    code. Where it cannot (no Triton, no C compiler), they stay as they are.
    """
    settings = torch._dynamo.config
    settings.suppress_errors = True
    settings.recompile_limit = max(
        settings.recompile_limit, 8 * sum(len(layerwise.blocks) for layerwise in models)
    )
    for layerwise in models:
        for block in layerwise.blocks if layerwise.device.type == "cuda" else ():
            block.compile(dynamic=False)
