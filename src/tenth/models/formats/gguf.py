"""GGUF out, streamed: the header by the gguf package, then the data, at most one chunk of a tensor in memory.
The room for all of it is taken before the first tensor is encoded.

Layout (github.com/ggml-org/ggml, docs/gguf.md), little-endian, version 3:

    "GGUF" | u32 version | u64 tensors | u64 keys
    keys:    string key | u32 type | value            string = u64 length | UTF-8
    tensors: string name | u32 dimensions | u64 sides, fastest first | u32 ggml type | u64 offset in data
    zeros to a multiple of 32 | data: every tensor followed by zeros to a multiple of 32
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from tenth.core.errors import InputError, unwritten
from tenth.core.ggml import STORAGE_TYPES, storage_type
from tenth.core.records import TensorSpec
from tenth.models.formats.hf import JsonObject

if TYPE_CHECKING:
    from tenth.models.checkpoint import Checkpoint
    from tenth.models.formats.vocabulary import TokenizerInfo

ALIGNMENT = 32
CHUNK_BYTES = 64_000_000  # of float32 rows in memory at a time
QUANTIZATION_VERSION = 2  # of ggml's block formats
UNKNOWN_FILE_TYPE = 1024  # LLAMA_FTYPE_GUESSED

Encode = Callable[[TensorSpec, str, np.ndarray, int], np.ndarray]


def tensor_bytes(spec: TensorSpec, type_name: str) -> int:
    """Bytes of the tensor's data in that ggml type, without padding. InputError if its rows are no whole
    blocks.
    """
    return spec.count // spec.columns * row_bytes(spec, type_name)


def row_bytes(spec: TensorSpec, type_name: str) -> int:
    """Bytes that one row takes as it is stored."""
    kind = STORAGE_TYPES.get(type_name)
    if kind is None:
        raise InputError(f"{spec.name}: {type_name!r} is no ggml type")
    if not kind.holds(spec.columns):
        raise InputError(
            f"{spec.name}: rows of {spec.columns} do not divide into {type_name}'s blocks of {kind.weights}"
        )
    return kind.row_bytes(spec.columns)


def storage(spec: TensorSpec, types: Mapping[str, str]) -> str:
    """The ggml type of a tensor: what types says for a matrix that may be chosen, else F32."""
    return types.get(spec.name, "F32") if spec.linear else "F32"


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of a tensor."""

    name: str
    shape: tuple[int, ...]
    type: str  # ggml type name
    bytes: int  # without padding


def tensor_infos(
    specs: Sequence[TensorSpec], types: Mapping[str, str], extra: Mapping[str, np.ndarray]
) -> list[TensorInfo]:
    """The tensors in file order; extra ones (float32) come before the others."""
    first = [TensorInfo(name, array.shape, "F32", array.size * 4) for name, array in extra.items()]
    kinds = [(spec, storage(spec, types)) for spec in specs]
    return first + [TensorInfo(s.name, s.shape, kind, tensor_bytes(s, kind)) for s, kind in kinds]


def data_bytes(infos: Iterable[TensorInfo]) -> int:
    """Bytes of all tensors with their padding."""
    return sum(_padded(info.bytes) for info in infos)


def model_metadata(
    checkpoint: Checkpoint, types: Mapping[str, str], more: Mapping[str, Any] | None = None
) -> JsonObject:
    """All keys of the file: general, the architecture's, the tokenizer's, and more. The same in every run."""
    from tenth.models.formats.tokenizer import tokenizer_metadata

    tokenizer = tokenizer_metadata(checkpoint.path, checkpoint.config)
    return {
        "general.architecture": checkpoint.arch.gguf_arch,
        "general.type": "model",
        "general.name": tokenizer.named(checkpoint.name),
        "general.file_type": _file_type(checkpoint.implied_specs(), types),
        "general.quantization_version": QUANTIZATION_VERSION,
        **checkpoint.arch.metadata(checkpoint.config),
        **tokenizer.keys,
        **(more or {}),
    }


def write_vocabulary(tokenizer: TokenizerInfo, architecture: str, name: str, destination: Path) -> None:
    """Write a file with a tokenizer's keys and what else llama.cpp looks at to tokenise, and no tensor."""
    keys = {"general.architecture": architecture, "general.name": tokenizer.named(name), **tokenizer.keys}
    _write_header(destination, keys, [])


def write_hollow(tokenizer: TokenizerInfo, destination: Path) -> None:
    """Write the least model that llama.cpp runs with that tokenizer: one small block, every weight zero.

    The zeros take no room where the file system stores none.
    """
    size, width, a = len(tokenizer.keys["tokenizer.ggml.tokens"]), 32, "llama"
    keys = {
        "general.architecture": a,
        "general.name": "",
        f"{a}.block_count": 1,
        f"{a}.context_length": 256,
        f"{a}.embedding_length": width,
        f"{a}.feed_forward_length": width,
        f"{a}.attention.head_count": 1,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{a}.rope.dimension_count": width,
        f"{a}.vocab_size": size,
        **tokenizer.keys,
    }
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (size, width)}
    shapes |= {f"{name}.weight": (width,) for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")}
    shapes |= {f"blk.0.{name}.weight": (width, width) for name in square}
    infos = [
        TensorInfo(name, shape, "F32", 4 * int(np.prod(shape, dtype=np.int64)))
        for name, shape in shapes.items()
    ]
    header = _write_header(destination, keys, infos)
    os.truncate(destination, _padded(header) + data_bytes(infos))


def write_gguf(
    checkpoint: Checkpoint,
    types: Mapping[str, str],
    destination: Path,
    encode: Encode | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Callable[[float], None] | None = None,
    vectors: Mapping[str, np.ndarray] | None = None,
) -> int:
    """Write the model; returns the file's size in bytes. The same arguments give the same bytes.

    types: GGUF tensor name -> ggml type name for linear tensors; all else is F32. encode turns float32 rows
    [n, columns] of a block type into uint8 [n, row_bytes]; F32, F16 and BF16 are written without it. progress
    gets the bytes written so far. vectors: float32 values [n] to write instead of the checkpoint's, by GGUF
    name. Writes beside the destination and renames. OutputError if it cannot be
    written; InputError for a type that does not hold a tensor or an unknown name in types.
    """
    specs = checkpoint.specs()
    names = {spec.name for spec in specs if spec.linear}
    if strange := sorted(set(types) - names):
        raise InputError(f"the plan gives a type to {strange[0]!r}, which is no matrix of this model")
    extra = checkpoint.arch.extra_tensors(checkpoint.config)
    infos = tensor_infos(specs, types, extra)
    partial, total = destination.with_suffix(".partial"), data_bytes(infos)
    try:
        try:
            header = _write_header(partial, model_metadata(checkpoint, types, metadata), infos)
            total += _padded(header)
            with partial.open("r+b") as file:
                _reserve(file, total)
                file.seek(header)
                file.write(bytes(_padded(header) - header))
                for piece in _data(checkpoint, specs, types, extra, encode, vectors or {}):
                    file.write(piece)
                    if progress is not None:
                        progress(file.tell())
                if file.tell() != total:
                    raise AssertionError(f"wrote {file.tell()} bytes where {total} were predicted")
            partial.replace(destination)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise unwritten(destination, total, error) from None
    return total


def _write_header(path: Path, metadata: Mapping[str, Any], infos: Iterable[TensorInfo]) -> int:
    """Write all that comes before the data, without its padding; returns the bytes."""
    writer = GGUFWriter(path, metadata["general.architecture"])
    with closing(writer):
        for key, value in metadata.items():
            if key != "general.architecture":  # which the writer puts first itself
                writer.add_key_value(key, value, *_value_type(value))
        for info in infos:
            kind = GGMLQuantizationType(storage_type(info.type).number)
            writer.add_tensor_info(info.name, info.shape, np.dtype(np.float32), info.bytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    return path.stat().st_size


def _value_type(value: object) -> tuple[GGUFValueType, GGUFValueType | None]:
    """The types of a key's value and of its elements. int: u32 alone, i32 in lists, as llama.cpp expects
    them.
    """
    if isinstance(value, list | tuple):
        return GGUFValueType.ARRAY, GGUFValueType.get_type(value[0]) if value else None
    kind = GGUFValueType.get_type(value)
    return GGUFValueType.UINT32 if kind is GGUFValueType.INT32 else kind, None


def _data(
    checkpoint: Checkpoint,
    specs: Iterable[TensorSpec],
    types: Mapping[str, str],
    extra: Mapping[str, np.ndarray],
    encode: Encode | None,
    vectors: Mapping[str, np.ndarray],
) -> Iterator[bytes | memoryview]:
    """The data region, piece by piece."""
    for array in extra.values():
        raw = array.astype("<f4").tobytes()
        yield raw.ljust(_padded(len(raw)), b"\0")
    for spec in specs:
        type_name = storage(spec, types)
        given = vectors.get(spec.name)
        for first, rows in source_rows(checkpoint, spec) if given is None else [(0, given[None])]:
            yield _encoded(spec, type_name, rows, first, encode).data
        size = tensor_bytes(spec, type_name)
        yield bytes(_padded(size) - size)


def source_rows(
    checkpoint: Checkpoint, spec: TensorSpec, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[int, np.ndarray]]:
    """(index of the first row, float32 rows [n, columns]) in the GGUF's row order, about chunk_bytes at a
    time.
    """
    tensor = checkpoint.tensors[spec.source]
    total = spec.shape[0] if len(spec.shape) > 1 else 1
    order = spec.row_order()
    if len(spec.shape) == 1:
        values = tensor.load()
        yield 0, ((values if order is None else values[order]) + np.float32(spec.add))[None, :]
        return
    # Rows are reordered within a head only, so chunks are whole heads.
    unit = total // spec.heads if spec.heads else 1
    step = max(1, chunk_bytes // (4 * spec.columns * unit)) * unit
    for first in range(0, total, step):
        last = min(first + step, total)
        rows = tensor.load(first, last)
        if order is not None:
            rows = rows[order[first:last] - first]
        yield first, rows + np.float32(spec.add) if spec.add else rows


def _encoded(
    spec: TensorSpec, type_name: str, rows: np.ndarray, first: int, encode: Encode | None
) -> np.ndarray:
    """Rows as bytes, uint8 [n, row_bytes]."""
    if type_name == "F32":
        return np.ascontiguousarray(rows, "<f4").view(np.uint8)
    if type_name == "F16":
        with np.errstate(over="ignore"):
            half = rows.astype("<f2")
        if not np.isfinite(half).all():
            raise InputError(f"{spec.name} holds values beyond 65504, which F16 cannot; store it as BF16")
        return half.view(np.uint8)
    if type_name == "BF16":
        return to_bf16(rows).view(np.uint8)
    if encode is None:
        raise InputError(f"{spec.name} is to be stored as {type_name}, but no encoder was given")
    blocks = encode(spec, type_name, rows, first)
    if blocks.dtype != np.uint8 or blocks.shape != (rows.shape[0], row_bytes(spec, type_name)):
        raise ValueError(
            f"the encoder of {type_name} gave {blocks.dtype} {blocks.shape} for {rows.shape} of {spec.name}"
        )
    return np.ascontiguousarray(blocks)


def to_bf16(rows: np.ndarray) -> np.ndarray:
    """float32 -> the upper half of its bits, uint16, rounded to nearest even (finite values)."""
    bits = np.ascontiguousarray(rows, "<f4").view("<u4")
    return np.asarray((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16, "<u2")


def _reserve(file: BinaryIO, size: int) -> None:
    """Find out now, not after an hour of encoding, that the disk is too small."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _file_type(specs: Iterable[TensorSpec], types: Mapping[str, str]) -> int:
    """llama.cpp's number for the type that holds most weights; a label without effect."""
    weights: Counter[str] = Counter()
    for spec in specs:
        if spec.linear:
            weights[storage(spec, types)] += spec.count
    name = max(sorted(weights), key=lambda n: weights[n])
    number = storage_type(name).file_type
    return UNKNOWN_FILE_TYPE if number is None else number
