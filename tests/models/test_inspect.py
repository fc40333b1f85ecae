from __future__ import annotations

import json
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import forged
import gguf
import numpy as np
import pytest
import tiny_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenth.core.errors import InputError
from tenth.models.formats import hf
from tenth.models.formats.inspect import read_header

CORPUS = forged.corpus()


def read(folder: Path, raw: bytes) -> None:
    file = folder / "model.gguf"
    file.write_bytes(raw)
    read_header(file)


def agrees_with_the_reference_reader(file: Path) -> None:
    mine, theirs = read_header(file), gguf.GGUFReader(file)
    assert mine.keys.keys() == {name for name in theirs.fields if not name.startswith("GGUF.")}
    for name, value in mine.keys.items():
        assert np.array_equal(value, theirs.fields[name].contents())
    assert list(mine.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        found = mine.tensors[tensor.name]
        assert found.shape == tuple(reversed(tensor.shape.tolist()))
        assert (found.type, found.offset, found.bytes) == (
            tensor.tensor_type.name,
            tensor.data_offset,
            tensor.n_bytes,
        )


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_a_sound_file_is_read_as_the_reference_reader_reads_it(tmp_path: Path, kind: str) -> None:
    file = tiny_gguf.write(tmp_path / "model.gguf", kind=kind)
    agrees_with_the_reference_reader(file)
    mine = read_header(file)
    assert mine.number("context_length") == 4096
    assert mine.number("no_such") is None
    assert mine.vocabulary == 300


def test_one_more_byte_is_needed(tmp_path: Path) -> None:
    raw = forged.header(data=128)
    read(tmp_path, raw)
    with pytest.raises(InputError, match="lies at bytes"):
        read(tmp_path, raw[:-1])


@pytest.mark.parametrize("lie", forged.LIES)
def test_a_lie_is_refused_without_memory_for_it(tmp_path: Path, lie: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"model\.gguf is no sound GGUF"):
            read(tmp_path, forged.LIES[lie])
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_every_type_of_key_is_read_as_the_reference_reader_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(forged.SOUND)
    agrees_with_the_reference_reader(file)
    assert len(read_header(file).keys) == 15


@pytest.mark.parametrize("name", CORPUS)
def test_one_hostile_field_is_refused(tmp_path: Path, name: str) -> None:
    raw, refusal = CORPUS[name]
    with pytest.raises(InputError, match=f"is no sound GGUF: .*({refusal})"):
        read(tmp_path, raw)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tiny_gguf.write(
        tmp_path_factory.mktemp("sound") / "m.gguf", vocab=260, hidden=32, ffn=32, layers=1
    )
    return file.read_bytes()


edits = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.one_of(
            st.binary(min_size=1, max_size=9),
            st.sampled_from(
                [(1 << 60).to_bytes(8, "little"), b"\xff" * 8, bytes(8), (9).to_bytes(4, "little")]
            ),
        ),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=edits, end=st.floats(0, 1))
def test_any_damage_is_read_or_refused(
    sound: bytes, tmp_path: Path, edits: list[tuple[float, bytes]], end: float
) -> None:
    raw = bytearray(sound[: 40 + int(end * len(sound))])
    head = min(len(raw), 9000)
    for place, what in edits:
        at = int(place * head)
        raw[at : at + len(what)] = what
    with suppress(InputError):
        read(tmp_path, bytes(raw))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(max_size=300))
def test_any_bytes_are_refused(tmp_path: Path, tail: bytes) -> None:
    with pytest.raises(InputError):
        read(tmp_path, b"GGUF\x03\x00\x00\x00" + tail)


headers = st.dictionaries(
    st.text(max_size=8),
    st.one_of(
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "F8_E4M3", "X"]),
                "shape": st.lists(st.one_of(st.integers(-2, 9), st.integers(0, 1 << 66)), max_size=3),
                "data_offsets": st.lists(st.one_of(st.integers(-9, 99), st.integers(0, 1 << 66)), max_size=3),
            }
        ),
        st.none() | st.integers() | st.text(max_size=3),
    ),
    max_size=4,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=headers,
    length=st.none() | st.integers(0, (1 << 64) - 1),
    cut=st.integers(0, 300),
    data=st.integers(0, 99),
)
def test_any_safetensors_header_is_read_or_refused(
    tmp_path: Path, entries: dict[str, object], length: int | None, cut: int, data: int
) -> None:
    raw = json.dumps(entries).encode()
    raw = struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data)
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw if length is None else raw[: max(0, len(raw) - cut)])
    with suppress(InputError):
        tensors, _, _ = hf.read_header(file)
        for tensor in tensors.values():
            assert 2 * tensor.load().size <= data
