"""The header of a stranger's GGUF, every size checked against the file before anything is allocated for it.

llama.cpp reads a file only after this did (layout: gguf.py). Nothing of the weights is read.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tenth.core.errors import InputError
from tenth.core.ggml import BY_NUMBER
from tenth.models.formats.hf import JsonObject

HEADER_LIMIT = 64 << 20  # bytes; the largest published vocabularies take 20 MB
KEYS, TENSORS = 4096, 65_536
NAME, STRING = 64, 4 << 20  # bytes: ggml's GGML_MAX_NAME; chat templates are the longest strings
ARRAY = 2 << 20  # elements of one array, and strings of all together
SIDES, WEIGHTS = 4, 1 << 48  # of one tensor
DEFAULT_ALIGNMENT, ALIGNMENTS = 32, (8, 1 << 16)
_STRING, _ARRAY, _BOOL = 8, 9, 7
_Info = tuple[str, tuple[int, ...], str, int, int]  # name, shape, ggml type, bytes, offset in the data
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    _BOOL: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclass(frozen=True)
class Stored:
    """Where and how a tensor lies in its file."""

    name: str
    type: str  # ggml type name
    shape: tuple[int, ...]  # numpy order: a row is last
    offset: int  # bytes from the beginning of the file
    bytes: int

    @property
    def count(self) -> int:
        """How many weights the tensor has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a GGUF says of itself. keys: arrays of numbers are numpy arrays, those of strings lists."""

    keys: JsonObject
    tensors: dict[str, Stored]
    size: int  # of the file

    @property
    def architecture(self) -> str:
        """The name of the family that the file's graph is of."""
        return str(self.keys["general.architecture"])

    @property
    def weights(self) -> int:
        """Bytes that all tensors take together."""
        return sum(tensor.bytes for tensor in self.tensors.values())

    def number(self, key: str) -> int | None:
        """A whole number of the architecture's own ("context_length"); None where there is none above 0."""
        value = self.keys.get(f"{self.architecture}.{key}")
        return int(value) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    @property
    def vocabulary(self) -> int:
        """How many tokens the vocabulary has."""
        tokens = self.keys.get("tokenizer.ggml.tokens")
        return len(tokens) if isinstance(tokens, list) else 0


def read_header(path: Path) -> Header:
    """Read and check a header. Raises InputError naming what is wrong."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            raw = file.read(min(size, HEADER_LIMIT))
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror or error}") from error
    cursor = _Cursor(path.name, raw, size)
    if cursor.take(4) != b"GGUF":
        raise cursor.wrong("it does not begin with GGUF")
    version = cursor.number("<I")
    if version not in (2, 3):
        raise cursor.wrong(f"it is of version {version}; 2 and 3 are known, little-endian")
    tensors = cursor.count("tensors", "<Q", TENSORS, 24)
    keys = _keys(cursor, cursor.count("keys", "<Q", KEYS, 13))
    if not isinstance(keys.get("general.architecture"), str):
        raise cursor.wrong("general.architecture is missing")
    alignment = keys.get("general.alignment", DEFAULT_ALIGNMENT)
    low, high = ALIGNMENTS
    if type(alignment) is not int or not low <= alignment <= high or alignment & (alignment - 1):
        raise cursor.wrong(f"general.alignment is {alignment!r:.40}, no power of two from {low} to {high}")
    infos = [_tensor(cursor) for _ in range(tensors)]
    start = -(-cursor.at // alignment) * alignment
    return Header(keys, _placed(cursor, infos, start, alignment, size), size)


class _Cursor:
    """Bytes of a header, taken one after the other."""

    def __init__(self, name: str, raw: bytes, size: int) -> None:
        self._name, self._raw, self._size, self.at, self.strings = name, raw, size, 0, 0

    def wrong(self, what: str) -> InputError:
        """Make the error that names the file, the place and what is wrong."""
        return InputError(f"{self._name} is no sound GGUF: {what}")

    @property
    def left(self) -> int:
        """Bytes that a header may still take."""
        return len(self._raw) - self.at

    def take(self, count: int) -> bytes:
        """Take the next bytes; InputError where the file ends before."""
        if count > self.left:
            end = "its end" if self._size <= HEADER_LIMIT else f"the {HEADER_LIMIT} bytes of a header"
            raise self.wrong(f"{count} bytes at {self.at} reach past {end}")
        found = self._raw[self.at : self.at + count]
        self.at += count
        return found

    def number(self, code: str) -> int:
        """Take the next whole number."""
        return int(struct.unpack(code, self.take(struct.calcsize(code)))[0])

    def count(self, what: str, code: str, most: int, least_bytes: int) -> int:
        """A number of things that follow, each of at least so many bytes."""
        found = self.number(code)
        if found > most or found * least_bytes > self.left:
            raise self.wrong(f"it claims {found} {what} at byte {self.at}")
        return found

    def string(self, most: int) -> str:
        """Take the next string; InputError where it is not UTF-8."""
        raw = self.take(self.count(f"bytes of a string (up to {most})", "<Q", most, 1))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return raw.decode("utf-8", "backslashreplace")


def _keys(cursor: _Cursor, count: int) -> JsonObject:
    found: JsonObject = {}
    for _ in range(count):
        key = cursor.string(256)
        if key in found:
            raise cursor.wrong(f"key {key!r:.80} is there twice")
        found[key] = _value(cursor, key, cursor.number("<I"))
    return found


def _value(cursor: _Cursor, key: str, kind: int) -> Any:
    if kind == _STRING:
        return cursor.string(STRING)
    if kind in _NUMBERS:
        return _numbers(cursor, kind, 1)[0].item()
    if kind != _ARRAY:
        raise cursor.wrong(f"{key!r:.80} is of the unknown type {kind}")
    inner = cursor.number("<I")
    if inner == _STRING:
        count = cursor.count(f"strings in {key!r:.80}", "<Q", ARRAY - cursor.strings, 8)
        cursor.strings += count
        return [cursor.string(STRING) for _ in range(count)]
    if inner not in _NUMBERS:
        raise cursor.wrong(f"{key!r:.80} is an array of type {inner}")
    width = np.dtype(_NUMBERS[inner]).itemsize
    return _numbers(cursor, inner, cursor.count(f"numbers in {key!r:.80}", "<Q", ARRAY, width))


def _numbers(cursor: _Cursor, kind: int, count: int) -> np.ndarray:
    dtype = np.dtype(_NUMBERS[kind])
    raw = cursor.take(dtype.itemsize * count)
    return np.frombuffer(raw, np.uint8) != 0 if kind == _BOOL else np.frombuffer(raw, dtype)


def _tensor(cursor: _Cursor) -> _Info:
    name = cursor.string(NAME)
    sides = cursor.number("<I")
    if not 1 <= sides <= SIDES:
        raise cursor.wrong(f"tensor {name!r:.80} has {sides} sides")
    shape = tuple(reversed([cursor.number("<Q") for _ in range(sides)]))
    if not all(shape) or math.prod(shape) > WEIGHTS:
        raise cursor.wrong(f"tensor {name!r:.80} has the absurd shape {list(shape)}")
    number = cursor.number("<I")
    kind = BY_NUMBER.get(number)
    if kind is None:
        raise cursor.wrong(f"tensor {name!r:.80} is of the unknown type {number}")
    if not kind.holds(shape[-1]):
        raise cursor.wrong(f"tensor {name!r:.80}: rows of {shape[-1]} are no whole blocks of {kind.name}")
    return name, shape, kind.name, kind.row_bytes(math.prod(shape)), cursor.number("<Q")


def _placed(cursor: _Cursor, infos: list[_Info], start: int, alignment: int, size: int) -> dict[str, Stored]:
    """The tensors by name, none past the end of the file, none over another."""
    found: dict[str, Stored] = {}
    for name, shape, kind, length, offset in infos:
        if name in found:
            raise cursor.wrong(f"tensor {name!r:.80} is there twice")
        if offset % alignment or start + offset + length > size:
            raise cursor.wrong(
                f"tensor {name!r:.80} lies at bytes {start + offset} to {start + offset + length} of a file"
                f" of {size}, at multiples of {alignment}"
            )
        found[name] = Stored(name, kind, shape, start + offset, length)
    end = 0
    for tensor in sorted(found.values(), key=lambda tensor: (tensor.offset, tensor.bytes)):
        if tensor.offset < end:
            raise cursor.wrong(f"tensor {tensor.name!r:.80} lies over another one")
        end = tensor.offset + tensor.bytes
    if not found:
        raise cursor.wrong("it holds no tensor")
    return found
