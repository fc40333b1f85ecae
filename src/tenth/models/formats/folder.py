"""A checkpoint as a Hugging Face folder, streamed: what from_pretrained loads without code of its own.

config.json (of the text model alone), safetensors in pieces of rows, tokenizer files. config.json comes last:
a folder without one was interrupted and is no model.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tenth.core.errors import InputError, unwritten
from tenth.core.store import write_text
from tenth.models import edit
from tenth.models.checkpoint import TOKENIZER_FILES, Checkpoint
from tenth.models.formats.gguf import CHUNK_BYTES, to_bf16
from tenth.models.formats.hf import ITEM_BYTES, SHARD, FloatType, JsonObject, LazyTensor

SHARD_BYTES = 5_000_000_000  # of tensors in a file, as save_pretrained splits
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Of the folder that was read, not of the model.
FOREIGN = ("torch_dtype", "dtype", "auto_map", "_name_or_path", "transformers_version")


def text_config(checkpoint: Checkpoint) -> JsonObject:
    """config.json of the text model: edited sizes, the family's defaults written out, nothing nested."""
    config = {
        key: value
        for key, value in checkpoint.config.items()
        if key not in FOREIGN and not (key.endswith("_config") and isinstance(value, dict))
    }
    return {**config, **checkpoint.arch.standalone_config(config)}


def write_folder(
    checkpoint: Checkpoint,
    folder: Path,
    dtype: FloatType = "F32",
    tokenizer: Mapping[str, bytes] | None = None,
    progress: Callable[[float], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
    uniform: bool = False,
) -> int:
    """Write the model into a folder, which is made, or whose model is replaced; returns the weights' bytes.

    tokenizer: files, by name, to write instead of the checkpoint's or beside them. progress gets the number
    of weights written so far. A slice of a tensor is in memory at a time; BF16 rounds to nearest even; the
    same arguments give the same bytes. InputError for a weight that F16 cannot hold and for the checkpoint's
    own folder, OutputError where nothing can be written; then no file of it is left.

    Where blocks differ in width, only tenth loads the folder, unless `uniform`: then blocks are padded with
    zeros to the widest, which changes no logit, and saves no bytes.
    """
    checkpoint = edit.uniform(checkpoint) if uniform else checkpoint
    if folder.exists() and folder.resolve() == checkpoint.path.resolve():
        raise InputError(f"{folder} is the model that is read; give another folder to write to")
    tensors = [checkpoint.tensors[spec.source] for spec in checkpoint.specs()]
    names = [spec.source for spec in checkpoint.specs()]
    shards = _shards(dict(zip(names, tensors, strict=True)), ITEM_BYTES[dtype], shard_bytes)
    total = sum(_count(tensor) for tensor in tensors) * ITEM_BYTES[dtype]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        try:
            written = 0
            for name, held in shards.items():
                with (folder / name).open("wb") as file:
                    written = _write(file, held, dtype, written, progress)
            if SINGLE not in shards:
                places = {tensor: name for name, held in shards.items() for tensor in held}
                index = {"metadata": {"total_size": total}, "weight_map": places}
                write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")
            for name, data in (_tokenizer(checkpoint.path) | dict(tokenizer or {})).items():
                (folder / name).write_bytes(data)
            kind = {"dtype": TORCH[dtype], "torch_dtype": TORCH[dtype]}
            config = json.dumps(text_config(checkpoint) | kind, indent=2, sort_keys=True)
            write_text(folder / "config.json", config + "\n")
        except BaseException:
            _clear(folder)
            raise
    except OSError as error:
        raise unwritten(folder, total, error) from None
    return total


def _shards(tensors: dict[str, LazyTensor], item: int, limit: int) -> dict[str, dict[str, LazyTensor]]:
    """File name -> its tensors; a file takes tensors up to the limit, and always one."""
    groups: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        new = _count(tensor) * item
        if groups[-1] and size + new > limit:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += new
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": group
        for number, group in enumerate(groups, 1)
    }


def _write(
    file: BinaryIO,
    tensors: dict[str, LazyTensor],
    dtype: FloatType,
    written: int,
    progress: Callable[[float], None] | None,
) -> int:
    """One safetensors file (layout: hf.py); returns the weights written so far, of all files."""
    header: JsonObject = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + _count(tensor) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw = raw.ljust(-(-len(raw) // 8) * 8)
    file.write(struct.pack("<Q", len(raw)) + raw)
    for name, tensor in tensors.items():
        for rows in _rows(tensor):
            file.write(_stored(name, rows, dtype).data)
            written += rows.size
            if progress is not None:
                progress(written)
    return written


def _rows(tensor: LazyTensor) -> Iterator[np.ndarray]:
    """The tensor in float32 pieces of whole rows."""
    step = max(1, CHUNK_BYTES // (4 * max(1, _count(tensor) // tensor.shape[0])))
    for start in range(0, tensor.shape[0], step):
        yield tensor.load(start, min(start + step, tensor.shape[0]))


def _stored(name: str, rows: np.ndarray, dtype: FloatType) -> np.ndarray:
    """Rows as bytes, uint8."""
    if dtype == "BF16":
        return to_bf16(rows).reshape(-1).view(np.uint8)
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(rows, "<f4" if dtype == "F32" else "<f2")
    if dtype == "F16" and not np.isfinite(stored).all():
        raise InputError(f"{name} holds values beyond 65504, which F16 cannot; write the folder as BF16")
    return stored.reshape(-1).view(np.uint8)


def _tokenizer(folder: Path) -> dict[str, bytes]:
    paths = [folder / name for name in TOKENIZER_FILES]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def _clear(folder: Path) -> None:
    """Remove a model from the folder, config.json first; other files stay."""
    names = ["config.json", SINGLE, INDEX, *TOKENIZER_FILES]
    names += sorted(path.name for path in folder.iterdir() if SHARD.fullmatch(path.name))
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _count(tensor: LazyTensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))
