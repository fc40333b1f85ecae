"""GGUF headers spelt by hand, as strangers might, and submissions of them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny_gguf


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


ARCHITECTURE = key("general.architecture", 8, string("llama"))


def tensor(name: str = "a", sides: Sequence[int] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, offset)


def header(
    keys: Sequence[bytes] = (ARCHITECTURE,),
    tensors: Sequence[bytes] = (tensor(),),
    data: int = 128,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    n_tensors, n_keys = counts or (len(tensors), len(keys))
    raw = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(keys) + b"".join(tensors)
    return raw.ljust(-(-len(raw) // 32) * 32, b"\0") + bytes(data)


LIES = {
    "no-gguf": b"PK\x03\x04" + bytes(60),
    "empty": b"",
    "cut": header()[:40],
    "version": header(version=99),
    "big-endian": header(version=3 << 24),
    "many-tensors": header(counts=(1 << 60, 1)),
    "many-keys": header(counts=(1, 1 << 60)),
    "no-architecture": header(keys=()),
    "twice": header(keys=(ARCHITECTURE, ARCHITECTURE)),
    "long-string": header(keys=(ARCHITECTURE, key("a", 8, struct.pack("<Q", 1 << 60)))),
    "many-strings": header(keys=(ARCHITECTURE, key("a", 9, struct.pack("<IQ", 8, 1 << 60)))),
    "many-numbers": header(keys=(ARCHITECTURE, key("a", 9, struct.pack("<IQ", 4, 1 << 62)))),
    "nested": header(keys=(ARCHITECTURE, key("a", 9, struct.pack("<IQ", 9, 1) * 100))),
    "unknown-key-type": header(keys=(ARCHITECTURE, key("a", 77, b""))),
    "alignment-zero": header(keys=(ARCHITECTURE, key("general.alignment", 4, struct.pack("<I", 0)))),
    "alignment-text": header(keys=(ARCHITECTURE, key("general.alignment", 8, string("32")))),
    "past-the-end": header(tensors=(tensor(offset=1 << 40),)),
    "offset-wraps": header(tensors=(tensor(offset=(1 << 64) - 32),)),
    "unaligned": header(tensors=(tensor(offset=3),)),
    "absurd-side": header(tensors=(tensor(sides=(32, 1 << 62)),)),
    "product-wraps": header(tensors=(tensor(sides=(1 << 32, 1 << 32)),)),
    "no-sides": header(tensors=(tensor(sides=()),)),
    "many-sides": header(tensors=(tensor(sides=(1,) * 9),)),
    "zero-side": header(tensors=(tensor(sides=(0,)),)),
    "unknown-type": header(tensors=(tensor(kind=200),)),
    "half-a-block": header(tensors=(tensor(sides=(33,), kind=8),)),
    "overlap": header(tensors=(tensor("a"), tensor("b"))),
    "same-name": header(tensors=(tensor("a"), tensor("a", offset=128)), data=512),
    "long-name": header(tensors=(tensor("a" * 65),)),
    "no-tensors": header(tensors=()),
}

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
# Every type of key, two tensors: a header that is sound.
SOUND = header(
    keys=(
        ARCHITECTURE,
        *(
            key(f"number.{kind}", kind, struct.pack(code, 1))
            for kind, code in ((0, "<B"), (1, "<b"), (2, "<H"), (3, "<h"), (4, "<I"), (5, "<i"), (6, "<f"))
        ),
        *(
            key(f"number.{kind}", kind, struct.pack(code, 1))
            for kind, code in ((10, "<Q"), (11, "<q"), (12, "<d"))
        ),
        key("switch", 7, b"\x01"),
        key("numbers", 9, struct.pack("<IQ3i", 5, 3, 1, -2, 3)),
        key("switches", 9, struct.pack("<IQ2?", 7, 2, True, False)),
        key("texts", 9, struct.pack("<IQ", 8, 2) + string("one") + string("zwölf")),
    ),
    tensors=(tensor("a", (32, 2)), tensor("b", (32, 3), 8, 256)),
    data=256 + 128,
)

# What a field of a header must not hold where the file is small, and how that is refused.
_HOSTILE = {
    "version": ((0, 1, 4, 3 << 24), "it is of version"),
    "count": ((1 << 32, 1 << 60, (1 << 64) - 1), "it claims"),
    "length": ((1 << 32, 1 << 60, (1 << 64) - 1), "it claims"),
    "key type": ((13, 77, (1 << 32) - 1), "is of the unknown type"),
    "element type": ((9, 13, (1 << 32) - 1), "is an array of type"),
    "sides": ((0, 5, (1 << 32) - 1), "sides"),
    "side": ((0, 1 << 62, (1 << 64) - 1), "absurd shape"),
    "tensor type": ((9, 200, (1 << 32) - 1), "is of the unknown type"),
    "offset": ((1, 1 << 40, (1 << 64) - 32), "lies at bytes"),
}


class _Walk:
    """The fields of a header that is known to be sound: (what it says, place, bytes)."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at, self.fields = raw, 4, list[tuple[str, int, int]]()
        self.field("version", 4)
        tensors, keys = self.field("count", 8), self.field("count", 8)
        for _ in range(keys):
            self.string()
            self.value(self.field("key type", 4))
        for _ in range(tensors):
            self.string()
            for _ in range(self.field("sides", 4)):
                self.field("side", 8)
            self.field("tensor type", 4)
            self.field("offset", 8)

    def field(self, what: str, width: int) -> int:
        self.fields.append((what, self.at, width))
        self.at += width
        return int.from_bytes(self.raw[self.at - width : self.at], "little")

    def string(self) -> None:
        length = self.field("length", 8)
        self.at += length

    def value(self, kind: int) -> None:
        if kind == 8:
            self.string()
        elif kind == 9:
            inner, count = self.field("element type", 4), self.field("count", 8)
            for _ in range(count):
                self.value(inner)
        else:
            self.at += struct.calcsize("?" if kind == 7 else _NUMBERS[kind])


def corpus() -> dict[str, tuple[bytes, str]]:
    """Files that differ from the sound one in one field, or end in the middle of one; with the refusal."""
    files = {}
    for number, (what, at, width) in enumerate(_Walk(SOUND).fields):
        name, (values, refusal) = f"{number}-{what.replace(' ', '-')}", _HOSTILE[what]
        files[f"{name}-cut"] = SOUND[: at + width - 1], "it claims|reach past its end"
        for value in values:
            raw = SOUND[:at] + value.to_bytes(width, "little") + SOUND[at + width :]
            files[f"{name}-{value:x}"] = raw, refusal
    return files


MANIFEST: dict[str, Any] = {
    "name": "a stranger's",
    "base": "tiny",
    "division": "open",
    "method": "none",
    "data": "none",
    "licence": "MIT",
}


def submission(place: Path, folder_name: str, artifact: bytes | None = None, **changes: Any) -> Path:
    """A folder with a manifest, and model.gguf where bytes are given."""
    folder = place / folder_name
    folder.mkdir(parents=True)
    table = changes.pop("runtime", {})
    lines = [f"{key} = {value!r}" for key, value in (MANIFEST | changes).items()]
    lines += ["[runtime]", *(f"{key} = {value!r}" for key, value in table.items())]
    (folder / "submission.toml").write_text("\n".join(lines))
    if artifact is not None:
        (folder / "model.gguf").write_bytes(artifact)
    return folder


def edited(
    source: Path, destination: Path, keys: Mapping[str, Any] | None = None, **tensors: np.ndarray
) -> Path:
    """A copy of a GGUF of F32 tensors with other metadata and other weights.

    Tensors are given with "_" for ".".
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(destination, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in {"general.architecture", *(keys or {})}:
            continue
        value = field.contents()
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, kind, sub)
    for name, value in (keys or {}).items():
        kind = gguf.GGUFValueType.get_type(value)
        sub = gguf.GGUFValueType.UINT32 if isinstance(value, list) else None
        kind = gguf.GGUFValueType.UINT32 if kind == gguf.GGUFValueType.INT32 else kind
        writer.add_key_value(name, value, kind, sub)
    for stored in reader.tensors:
        data = np.array(stored.data)
        writer.add_tensor(stored.name, tensors.get(stored.name.replace(".", "_"), data).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return destination


def model(path: Path, **settings: Any) -> Path:
    """A small random model whose answers depend on its input."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return tiny_gguf.write(path, **{"vocab": 300, "hidden": 64, "ffn": 128, **settings})


def disguised(source: Path, destination: Path, seed: int = 0) -> Path:
    """The same model, the channels of its hidden state in another order: no matrix looks like its own."""
    weights = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(source).tensors}
    order = np.random.default_rng(seed).permutation(len(weights["output_norm.weight"]))
    rows = ("attn_output.weight", "ffn_down.weight")
    changed = {
        name.replace(".", "_"): value[order] if name.endswith(rows) else value[..., order]
        for name, value in weights.items()
    }
    return edited(source, destination, None, **changed)
