"""The structural edits: fewer entries of a named axis, fewer blocks; and other values. Lazy; they compose."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from tenth.core.errors import InputError
from tenth.models import arch as architectures
from tenth.models.arch import Axis
from tenth.models.arch._blocks import KEY, differ, with_sizes
from tenth.models.arch._config import Config
from tenth.models.checkpoint import Checkpoint
from tenth.models.formats.hf import LazyTensor
from tenth.models.shape import ModelShape

# Axis -> (its key in config.json, the axes of the table whose rows and columns go with it).
AXES = {
    "vocab": ("vocab_size", frozenset({"vocab"})),
    "ffn": ("intermediate_size", frozenset({"ffn"})),
    "kv_heads": ("num_key_value_heads", frozenset({"heads", "kv_heads"})),
}
LISTS = ("layer_types", "no_rope_layers")  # of config.json with an item a block
RULES = ("sliding_window_pattern", "no_rope_layer_interval", "max_window_layers")  # the same, by a rule


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
        """A copy of rows start..stop, float32, C-contiguous."""
        stop = len(self.values) if stop is None else stop
        if not 0 <= start <= stop <= len(self.values):
            raise ValueError(f"rows {start}..{stop} of {len(self.values)}")
        return np.array(self.values[start:stop], np.float32, order="C")


@dataclass(frozen=True)
class Padded(LazyTensor):
    """Another tensor, or none, with zeros behind its columns and behind the rows of each of its parts."""

    whole: LazyTensor | None
    parts: int  # fused along the rows

    def load(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop, float32, C-contiguous."""
        stop = self.shape[0] if stop is None else stop
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"rows {start}..{stop} of {self.shape[0]}")
        out = np.zeros((stop - start, *self.shape[1:]), np.float32)
        if self.whole is None:
            return out
        length, own = self.shape[0] // self.parts, self.whole.shape[0] // self.parts
        for part in range(self.parts):
            first, last = max(start, part * length), min(stop, part * length + own)
            if first < last:
                skipped = part * (length - own)
                rows = self.whole.load(first - skipped, last - skipped)
                out[(slice(first - start, last - start), *map(slice, rows.shape[1:]))] = rows
        return out


def replaced(checkpoint: Checkpoint, values: Mapping[str, np.ndarray | LazyTensor | Path]) -> Checkpoint:
    """The checkpoint with other values, by Hugging Face's name: an array, a lazy tensor, or a .npy file of
    float32, which is read when asked for.

    InputError for a name that the model does not have and a shape other than config.json implies.
    """
    shapes = {spec.source: spec.shape for spec in checkpoint.implied_specs()}
    tensors = dict(checkpoint.tensors)
    for name, value in values.items():
        if name not in shapes:
            raise InputError(f"tensor {name!r:.100} has no place in this model and cannot be replaced")
        if isinstance(value, Path):
            tensors[name] = _stored(name, value)
        elif isinstance(value, LazyTensor):
            tensors[name] = dataclasses.replace(value, name=name)
        else:
            tensors[name] = _given(checkpoint, name, value)
        if tensors[name].shape != shapes[name]:
            raise InputError(
                f"tensor {name!r} cannot become {list(tensors[name].shape)}:"
                f" config.json implies {list(shapes[name])}"
            )
    return dataclasses.replace(checkpoint, tensors=tensors)


def take(checkpoint: Checkpoint, axis: Axis, index: list[int], layer: int | None = None) -> Checkpoint:
    """The checkpoint with the entries index of an axis alone, in that order, in every block or in one.

    axis: "vocab", "ffn" or "kv_heads". An entry of "kv_heads" is a KV head with its query heads; a block
    without any has no attention. The tokenizer's files and hash() stay those of the folder. Blocks may differ
    in width on the way: whether the runtime has a graph for the result is checked as soon as all are equal,
    and by Checkpoint.specs. InputError for another axis, for an index that is empty, repeated or out of
    range, and for what the runtime has no graph for.
    """
    size = _size(checkpoint, axis, layer)
    _check_index(checkpoint, axis, index, layer, size)
    key, parts = AXES[axis]
    own = _own(checkpoint.shape)
    layers = range(checkpoint.shape.layers) if layer is None else [layer]
    tensors = dict(checkpoint.tensors)
    for role, entry, block in checkpoint.arch.entries(checkpoint.config):
        if entry.source not in tensors or (block is not None and block not in layers):
            continue
        if not index and role.startswith("attn_"):
            del tensors[entry.source]
            continue
        lengths = checkpoint.shape.axes(block)
        for number, name in enumerate((entry.rows, entry.columns)):
            if name and not parts.isdisjoint(name.split("+")):
                chosen = _chosen(entry.source, name, lengths, size, index)
                tensors[entry.source] = _taken(tensors[entry.source], chosen, number)
    if key not in own:
        return _edited(checkpoint, tensors, {**checkpoint.config, key: len(index)})
    for i in layers:
        own[key][i] = len(index)
    return _edited(checkpoint, tensors, _sized(checkpoint, own))


def _size(checkpoint: Checkpoint, axis: Axis, layer: int | None) -> int:
    """Entries of an axis, in every block or in one; InputError where there is no one number."""
    if axis not in AXES:
        raise InputError(f"axis {axis!r} cannot be taken from; known: {', '.join(AXES)}")
    sizes = _own(checkpoint.shape).get(AXES[axis][0])
    if layer is not None:
        if sizes is None or not 0 <= layer < len(sizes):
            raise InputError(f"{axis} of block {layer} alone: there is no such thing in this model")
        return sizes[layer]
    if sizes is None:
        return checkpoint.shape.vocab
    if len(set(sizes)) > 1:
        raise InputError(f"blocks differ in {axis}: take from one layer at a time")
    return sizes[0]


def _check_index(checkpoint: Checkpoint, axis: Axis, index: list[int], layer: int | None, size: int) -> None:
    """InputError for an index of an axis of that size that nothing can be taken by."""
    emptied = axis == "kv_heads" and layer is not None
    if not index and emptied and "ffn_norm.weight" not in checkpoint.arch.table:
        raise InputError(f"block {layer} cannot lose its attention: its feed-forward part has the same norm")
    if len(set(index)) != len(index) or not (index or emptied) or any(not 0 <= i < size for i in index):
        raise InputError(f"the index of {axis} must be distinct numbers within 0..{size - 1}")


def _chosen(source: str, name: str, lengths: dict[Axis, int], size: int, index: list[int]) -> tuple[int, ...]:
    """Places along an axis, or along one fused with itself, that has the same number for each of `size`
    entries.
    """
    first, *others = name.split("+")
    if set(others) - {first}:
        raise InputError(f"{source}: {name} is fused with other axes and cannot be taken from")
    length = lengths[first]
    unit = length // size
    starts = range(0, length * (1 + len(others)), length)
    return tuple(start + i * unit + j for start in starts for i in index for j in range(unit))


def _sized(checkpoint: Checkpoint, own: dict[str, list[int]]) -> Config:
    """The config with these sizes of its blocks."""
    kept = max(own["num_key_value_heads"])
    if not kept:
        raise InputError("the last block with attention must keep a KV head")
    heads = {"num_attention_heads": checkpoint.shape.queries_per_kv * kept}
    return with_sizes(checkpoint.config | heads, own)


def _own(shape: ModelShape) -> dict[str, list[int]]:
    """Each block's sizes by config.json's names of them."""
    return {"intermediate_size": list(shape.ffn), "num_key_value_heads": list(shape.kv_heads)}


def _edited(checkpoint: Checkpoint, tensors: dict[str, LazyTensor], config: Config) -> Checkpoint:
    """The checkpoint with other tensors, its architecture that of the new config, checked if it is final."""
    arch = architectures.named(config)
    if not differ(config):
        arch.check(config)
    return dataclasses.replace(checkpoint, tensors=tensors, config=config, arch=arch)


def uniform(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with every block as wide as the widest: zeros are added, which changes no logit and
    gives the saved bytes back.
    """
    config = {key: value for key, value in checkpoint.config.items() if key != KEY}
    arch = architectures.named(config)
    tensors = dict(checkpoint.tensors)
    for spec, (_, entry, _) in zip(arch.specs(config), arch.entries(config), strict=True):
        tensor, parts = tensors.get(spec.source), 1 + entry.rows.count("+")
        if tensor is None or tensor.shape != spec.shape:
            tensors[spec.source] = Padded(spec.source, spec.shape, "F32", checkpoint.path, 0, tensor, parts)
    return _edited(checkpoint, tensors, config)


def keep_layers(checkpoint: Checkpoint, layers: list[int]) -> Checkpoint:
    """The checkpoint with these blocks alone, ascending; config.json's lists of one item a block follow.

    InputError for blocks that are not ascending or not there.
    """
    count = checkpoint.shape.layers
    if not layers or sorted(set(layers)) != layers or not 0 <= layers[0] <= layers[-1] < count:
        raise InputError(f"layers to keep must be ascending numbers within 0..{count - 1}")
    own = {key: [sizes[i] for i in layers] for key, sizes in _own(checkpoint.shape).items()}
    config = {key: value for key, value in _sized(checkpoint, own).items() if key not in RULES}
    config |= {key: [config[key][i] for i in layers] for key in LISTS if config.get(key)}
    new = {old: i for i, old in enumerate(layers)}
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        head, found, rest = name.partition("model.layers.")
        number, dot, tail = rest.partition(".")
        if head or not found:
            tensors[name] = tensor
        elif number.isdecimal() and int(number) in new:
            tensors[f"{found}{new[int(number)]}{dot}{tail}"] = tensor
    return _edited(checkpoint, tensors, {**config, "num_hidden_layers": len(layers)})


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


def _given(checkpoint: Checkpoint, name: str, values: np.ndarray) -> Given:
    return Given(name, values.shape, "F32", checkpoint.path / "(computed)", 0, values)


def _taken(whole: LazyTensor, index: tuple[int, ...], axis: int) -> Taken:
    shape = tuple(len(index) if i == axis else side for i, side in enumerate(whole.shape))
    return Taken(whole.name, shape, whole.dtype, whole.path, whole.offset, whole, index, axis)
