"""The structural edits: fewer entries of a named axis, fewer blocks; and other values. Lazy; they compose."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from tenth.arch._base import EMBEDDING, HEAD, Axis, Entry
from tenth.arch._config import Config
from tenth.checkpoint import Checkpoint
from tenth.errors import InputError
from tenth.formats.hf import LazyTensor

SIZES = {"vocab": "vocab_size", "ffn": "intermediate_size"}  # axis -> its key in config.json
RULES = (
    "sliding_window_pattern",
    "no_rope_layer_interval",
    "max_window_layers",
)  # what a block is, by number


@dataclass(frozen=True)
class Taken(LazyTensor):
    """Chosen rows, or columns, of another tensor, read when asked for."""

    whole: LazyTensor
    index: tuple[int, ...]
    axis: int  # 0: rows, 1: columns

    def load(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop of what was taken, float32, C-contiguous; neighbouring rows in one read."""
        stop = self.shape[0] if stop is None else stop
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"rows {start}..{stop} of {self.shape[0]}")
        if self.axis:
            return np.ascontiguousarray(self.whole.load(start, stop)[:, list(self.index)])
        out = np.empty((stop - start, *self.shape[1:]), np.float32)
        rows = np.array(self.index[start:stop], np.int64)
        breaks = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for a, b in pairwise(breaks):
            if a < b:
                out[a:b] = self.whole.load(int(rows[a]), int(rows[b - 1]) + 1)
        return out


@dataclass(frozen=True)
class Given(LazyTensor):
    """A tensor whose values are in memory."""

    values: np.ndarray = field(compare=False, repr=False)

    def load(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop, float32, C-contiguous."""
        stop = len(self.values) if stop is None else stop
        if not 0 <= start <= stop <= len(self.values):
            raise ValueError(f"rows {start}..{stop} of {len(self.values)}")
        return np.ascontiguousarray(self.values[start:stop], np.float32)


def replaced(checkpoint: Checkpoint, values: Mapping[str, np.ndarray | LazyTensor | Path]) -> Checkpoint:
    """The checkpoint with other values, by Hugging Face's name: an array, a lazy tensor, or a .npy file of
    float32, which is read when asked for.

    InputError for a name that the model does not have and a shape other than config.json implies.
    """
    shapes = {spec.source: spec.shape for spec in checkpoint.arch.specs(checkpoint.config)}
    tensors = dict(checkpoint.tensors)
    for name, value in values.items():
        if name not in shapes:
            raise InputError(f"tensor {name!r:.100} has no place in this model and cannot be replaced")
        if isinstance(value, Path):
            tensors[name] = _stored(name, value)
        elif isinstance(value, LazyTensor):
            tensors[name] = dataclasses.replace(value, name=name)
        else:
            tensors[name] = Given(name, value.shape, "F32", checkpoint.path / "(computed)", 0, value)
        if tensors[name].shape != shapes[name]:
            raise InputError(
                f"tensor {name!r} cannot become {list(tensors[name].shape)}:"
                f" config.json implies {list(shapes[name])}"
            )
    return dataclasses.replace(checkpoint, tensors=tensors)


def take(checkpoint: Checkpoint, axis: Axis, index: list[int], layer: int | None = None) -> Checkpoint:
    """The checkpoint with the entries index of "vocab" or "ffn" alone, in that order, in every block.

    The tokenizer's files and hash() stay those of the folder. InputError for another axis, for one layer
    (config.json has one width for all) and for an index that is empty, repeated or out of range.
    """
    if axis not in SIZES:
        raise InputError(f"axis {axis!r} cannot be taken from; known: {', '.join(SIZES)}")
    if layer is not None:
        raise InputError(f"{axis} of layer {layer} alone: config.json has one size for all, give no layer")
    size = checkpoint.arch.axes(checkpoint.config)[axis]
    if not index or len(set(index)) != len(index) or not 0 <= min(index) <= max(index) < size:
        raise InputError(f"the index of {axis} must be distinct numbers within 0..{size - 1}")
    tensors = dict(checkpoint.tensors)
    for source, entry in _entries(checkpoint).items():
        for number, name in enumerate((entry.rows, entry.columns)):
            parts = (name or "").split("+")
            if axis in parts and source in tensors:
                if set(parts) != {axis}:
                    raise InputError(f"{source}: {name} is fused with other axes and cannot be taken from")
                chosen = tuple(i + size * part for part in range(len(parts)) for i in index)
                tensors[source] = _taken(tensors[source], chosen, number)
    return dataclasses.replace(
        checkpoint, tensors=tensors, config={**checkpoint.config, SIZES[axis]: len(index)}
    )


def keep_layers(checkpoint: Checkpoint, layers: list[int]) -> Checkpoint:
    """The checkpoint with these blocks alone, ascending; config.json's lists of one item a block follow.

    InputError for blocks that are not ascending or not there, and where config.json says what a block is by
    its number.
    """
    count = checkpoint.arch.layers(checkpoint.config)
    if not layers or sorted(set(layers)) != layers or not 0 <= layers[0] <= layers[-1] < count:
        raise InputError(f"layers to keep must be ascending numbers within 0..{count - 1}")
    complete = checkpoint.arch.complete(checkpoint.config)
    if len(layers) < count and (rule := next(iter(_rules(complete)), None)):
        raise InputError(f"config.json: {rule} tells blocks apart by their number; none can be removed")
    config = {
        key: [value[i] for i in layers] if key in ("layer_types", "no_rope_layers") and value else value
        for key, value in checkpoint.config.items()
    }
    new = {old: i for i, old in enumerate(layers)}
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        head, found, rest = name.partition("model.layers.")
        number, dot, tail = rest.partition(".")
        if head or not found:
            tensors[name] = tensor
        elif number.isdecimal() and int(number) in new:
            tensors[f"{found}{new[int(number)]}{dot}{tail}"] = tensor
    return dataclasses.replace(
        checkpoint, tensors=tensors, config={**config, "num_hidden_layers": len(layers)}
    )


def _stored(name: str, path: Path) -> LazyTensor:
    """The array of a .npy file (format version 1), not mapped."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no readable .npy file: {error}") from None
    if version != (1, 0) or fortran or kind != np.dtype("<f4"):
        raise InputError(f"{path} must hold float32 rows, not {kind}{' in columns' if fortran else ''}")
    return LazyTensor(name, shape, "F32", path, offset)


def _rules(config: Config) -> list[str]:
    """Keys of config.json by which a block's kind depends on its number; windows that are off count not."""
    off = () if config.get("use_sliding_window") else ("max_window_layers",)
    return [key for key in RULES if key not in off and config.get(key) is not None]


def _taken(whole: LazyTensor, index: tuple[int, ...], axis: int) -> Taken:
    shape = tuple(len(index) if i == axis else side for i, side in enumerate(whole.shape))
    return Taken(whole.name, shape, whole.dtype, whole.path, whole.offset, whole, index, axis)


def _entries(checkpoint: Checkpoint) -> dict[str, Entry]:
    """Hugging Face name -> line of the architecture's table."""
    ends = [EMBEDDING, HEAD, *checkpoint.arch.final.values()]
    blocks = [
        entry._replace(source=entry.source.replace("{i}", str(i)))
        for i in range(checkpoint.arch.layers(checkpoint.config))
        for entry in checkpoint.arch.block(checkpoint.config).values()
    ]
    return {entry.source: entry for entry in ends + blocks}
