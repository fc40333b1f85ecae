"""Hugging Face folders, read without trust: JSON with bounds, safetensors headers checked against the file's
size.

safetensors (github.com/huggingface/safetensors, "Format"):

    u64 little-endian N | N bytes of JSON: name -> {dtype, shape, data_offsets: [begin, end)} | data

Data is read with plain file reads, not mapped: mapped pages would count as this process's memory.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard, cast

import numpy as np

from tenth.core.errors import InputError

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library
JSON_LIMIT = 256_000_000  # bytes; the largest published tokenizer.json is about 40 MB
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
COMPARED = 1 << 22  # weights of two tensors that are compared at a time

FloatType = Literal["F32", "F16", "BF16"]
JsonObject = dict[str, Any]  # as somebody published it: nothing about its values is known


def read_json(path: Path, limit: int = JSON_LIMIT) -> JsonObject:
    """The JSON object in a file. InputError if it is missing, larger than limit bytes, not UTF-8, or not an
    object.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise InputError(f"{path} is {size} bytes, more than the {limit} that such a file may have")
        return _object(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; give a complete Hugging Face model folder") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def read_optional(path: Path) -> JsonObject:
    """As `read_json`; {} where there is no such file."""
    return read_json(path) if path.is_file() else {}


def _object(data: bytes, where: str) -> JsonObject:
    def pairs(items: list[tuple[str, Any]]) -> JsonObject:
        found = dict(items)
        if len(found) != len(items):
            raise InputError(f"{where} holds a key twice; get the file again")
        return found

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where} is not valid JSON ({str(error) or type(error).__name__:.80}); get the file again"
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{where} must hold a JSON object, not a {type(value).__name__}")
    return value


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that stays in its file until rows of it are asked for."""

    name: str
    shape: tuple[int, ...]
    dtype: FloatType
    path: Path
    offset: int  # bytes from the beginning of the file

    def load(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop of the first axis, float32, C-contiguous. InputError if the file has become
        shorter.
        """
        rows = self.shape[0] if self.shape else 1
        stop = rows if stop is None else stop
        if not 0 <= start <= stop <= rows:
            raise ValueError(f"rows {start}..{stop} of {rows}")
        width = int(np.prod(self.shape[1:], dtype=np.int64))
        kind: np.dtype[Any] = np.dtype({"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[self.dtype])
        try:
            at = self.offset + start * width * kind.itemsize
            raw: np.ndarray = np.fromfile(self.path, kind, count=(stop - start) * width, offset=at)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from None
        if raw.size != (stop - start) * width:
            raise InputError(f"{self.path} ends inside tensor {self.name!r}: it changed while it was read")
        if self.dtype == "BF16":
            wide = raw.astype("<u4")
            wide <<= 16
            raw = wide.view("<f4")
        rows_read: np.ndarray = raw.astype(np.float32, copy=False).reshape(stop - start, *self.shape[1:])
        return rows_read


@dataclass(frozen=True)
class Weights:
    """All tensors of a folder, by the names in its files."""

    tensors: dict[str, LazyTensor]
    other: dict[str, str]  # name -> dtype of tensors that are not plain floats
    headers: dict[Path, bytes]
    absent: dict[str, str] = field(default_factory=dict)  # name -> file of what the index names in vain


def read_header(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str], bytes]:
    """(float tensors, dtype of the others, raw header) of one safetensors file. InputError if anything
    contradicts.
    """
    again = "download it again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise InputError(f"{path} is truncated: {size} bytes hold no safetensors header; {again}")
            length = struct.unpack("<Q", start)[0]
            if length > min(HEADER_LIMIT, size - 8):
                raise InputError(
                    f"{path} is truncated or no safetensors file: its header claims {length} bytes; {again}"
                )
            raw = file.read(length)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {again}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    entries = _object(raw, f"the header of {path}")
    entries.pop("__metadata__", None)
    tensors: dict[str, LazyTensor] = {}
    other: dict[str, str] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in entries.items():
        dtype, shape, begin, end = _entry(path, name, entry)
        if 8 + length + end > size:
            raise InputError(
                f"{path} is truncated: tensor {name!r} ends at byte {8 + length + end},"
                f" the file at {size}; {again}"
            )
        spans.append((begin, end))
        if dtype in ("F32", "F16", "BF16"):
            tensors[name] = LazyTensor(name, shape, cast("FloatType", dtype), path, 8 + length + begin)
        else:
            other[name] = dtype
    position = 0
    for begin, end in sorted(spans):
        if begin < position:
            raise InputError(f"{path}: two tensors share bytes; the file is corrupt, {again}")
        position = end
    return tensors, other, raw


def _entry(path: Path, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    """A header entry's (dtype, shape, begin, end), its size checked."""
    wrong = InputError(f"{path}: the header's entry for {name!r:.100} is malformed; download it again")
    if not isinstance(entry, dict):
        raise wrong
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise wrong
    if dtype not in ITEM_BYTES:
        return dtype, tuple(shape), offsets[0], max(offsets)
    count = 1
    for side in shape:
        count *= side
    if offsets[1] - offsets[0] != count * ITEM_BYTES[dtype]:
        raise wrong
    return dtype, tuple(shape), offsets[0], offsets[1]


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


def same_values(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors hold the same numbers, read a few rows at a time."""
    if one.shape != other.shape or not one.shape:
        return one.shape == other.shape and bool(np.array_equal(one.load(), other.load()))
    step = max(1, COMPARED // max(1, int(np.prod(one.shape[1:], dtype=np.int64))))
    for start in range(0, one.shape[0], step):
        stop = min(start + step, one.shape[0])
        if not np.array_equal(one.load(start, stop), other.load(start, stop)):
            return False
    return True


def open_weights(folder: Path) -> Weights:
    """Headers of the safetensors that transformers reads: model.safetensors, or else every tensor of the
    shards that model.safetensors.index.json names. InputError where a second model lies beside it.
    """
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    shards = {p.name for p in folder.glob("*.safetensors") if SHARD.fullmatch(p.name)}
    _only_one_model(folder)
    if single.is_file():
        if shards:
            raise InputError(
                f"{folder} holds model.safetensors, which transformers reads, and also {min(shards)}, another"
                " saving of the model; remove the one that is older (the shards, with their index, or"
                " model.safetensors)"
            )
        tensors, other, raw = read_header(single)
        return Weights(tensors, other, {single: raw})
    if index.is_file():
        return _sharded(folder, index, shards)
    if shards:
        raise InputError(
            f"{folder} has {len(shards)} shards but no model.safetensors.index.json; download it again"
        )
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise InputError(
            f"{folder} holds its weights as pickle (*.bin, *.pt), which is never loaded"
            " because it can run code;"
            " convert them to safetensors first"
        )
    raise InputError(f"{folder} holds no model.safetensors; give a complete Hugging Face model folder")


def _only_one_model(folder: Path) -> None:
    """InputError for files that make transformers load more than the model's own weights, or others."""
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} holds an adapter (adapter_config.json), which transformers adds to the model where"
            " peft is installed; merge it into the weights, or remove the adapter's files"
        )
    if parts := sorted(p.name for p in folder.glob("shard-*.safetensors") if DISTRIBUTED.fullmatch(p.name)):
        raise InputError(
            f"{folder} holds {parts[0]}, a part of a distributed checkpoint, which transformers reads instead"
            " of model.safetensors; remove the parts, or save the model whole"
        )


def _sharded(folder: Path, index: Path, shards: set[str]) -> Weights:
    """All tensors of the shards, named in the index or not, as transformers reads them."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(v, str) for v in places.values()):
        raise InputError(f"{index} has no weight_map from tensor to file; download it again")
    named = sorted(set(places.values()))
    if outside := [name for name in named if Path(name).name != name or not name.endswith(".safetensors")]:
        raise InputError(f"{index} names {outside[0]!r:.100}, which is no safetensors file of this folder")
    if missing := [name for name in named if not (folder / name).is_file()]:
        raise InputError(
            f"{folder / missing[0]} is missing ({len(missing)} of {len(named)} shards are); download it again"
        )
    if stray := sorted(shards - set(named)):
        raise InputError(
            f"{folder / stray[0]} is a shard that {index.name} does not name; the folder mixes two downloads"
        )
    tensors: dict[str, LazyTensor] = {}
    other: dict[str, str] = {}
    headers: dict[Path, bytes] = {}
    for name in named:
        found, strange, headers[folder / name] = read_header(folder / name)
        for tensor in found.keys() & tensors.keys():
            agree(found[tensor], tensors[tensor], f"{index.name} does not say which of them counts")
        if twice := sorted(
            (found.keys() & other.keys()) | (strange.keys() & (other.keys() | tensors.keys()))
        ):
            raise InputError(f"{folder / name}: tensor {twice[0]!r:.100} is in another shard too; remove one")
        tensors |= found
        other |= strange
    absent = {
        tensor: name for tensor, name in places.items() if tensor not in tensors and tensor not in other
    }
    return Weights(tensors, other, headers, absent)


def agree(one: LazyTensor, other: LazyTensor, why: str) -> None:
    """InputError for two tensors that should be one and the same, and are not."""
    if not same_values(one, other):
        raise InputError(
            f"tensor {one.name!r:.100} in {one.path} and {other.name!r:.100} in {other.path.name} are one"
            f" tensor with different values, and {why}; remove one of them"
        )
