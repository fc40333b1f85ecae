"""A model in another shape by surgery alone: which shapes the runtime has a graph for, and their sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tenth.core.errors import InputError
from tenth.core.records import Shape
from tenth.models import edit
from tenth.models.checkpoint import Checkpoint
from tenth.pruning.shape import STEP, PruningLimits


def pruning_limits(checkpoint: Checkpoint, multiple: int, homogeneous: bool = False) -> PruningLimits:
    """What can go from this model so that the runtime still has a graph for the rest.

    multiple: of a width, where the original's is one too. homogeneous: blocks stay alike.
    """
    model = checkpoint.shape
    groups, blocks, width = max(model.kv_heads), model.layers, max(model.ffn)
    step = multiple if width % multiple == 0 else STEP

    def possible(ffn: Sequence[int], kv_heads: Sequence[int]) -> bool:
        try:
            uniform_shape(checkpoint, Shape(ffn=tuple(ffn), kv_heads=tuple(kv_heads))).specs()
        except InputError:
            return False
        return True

    heads = groups > 1 and possible([width] * blocks, [groups - 1] * blocks)
    depth = blocks > 1 and possible([0, *[width] * (blocks - 1)], [0, *[groups] * (blocks - 1)])
    narrow = [width - step, *[width] * (blocks - 1)]
    uneven = not homogeneous and blocks > 1 and width > step and possible(narrow, [groups] * blocks)
    return PruningLimits(step, uneven, heads, depth)


def smallest(checkpoint: Checkpoint, free: PruningLimits) -> Shape:
    """The least that would be left."""
    groups = 1 if free.heads else max(checkpoint.shape.kv_heads)
    stay = [i == 0 or not free.depth for i in range(checkpoint.shape.layers)]
    return Shape(
        ffn=tuple(free.multiple if kept else 0 for kept in stay),
        kv_heads=tuple(groups if kept else 0 for kept in stay),
    )


def uniform_shape(checkpoint: Checkpoint, wanted: Shape) -> Checkpoint:
    """The checkpoint in that shape, of the first channels and groups: right in its sizes alone."""
    return resized(
        checkpoint, wanted, lambda i: (list(range(wanted.ffn[i])), list(range(wanted.kv_heads[i])))
    )


def resized(
    checkpoint: Checkpoint, wanted: Shape, which: Callable[[int], tuple[list[int], list[int]]]
) -> Checkpoint:
    """The checkpoint in that shape; which: of a block, the channels and the KV heads that stay."""
    count, groups = max(checkpoint.shape.ffn), max(checkpoint.shape.kv_heads)
    smaller = edit.keep_layers(checkpoint, wanted.kept)
    for number, index in enumerate(wanted.kept):
        ffn, shared = which(index)
        if len(ffn) < count:
            smaller = edit.take(smaller, "ffn", ffn, number)
        if len(shared) < groups:
            smaller = edit.take(smaller, "kv_heads", shared, number)
    return smaller
