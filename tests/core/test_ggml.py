"""Every row of the storage types against the loaded llama.cpp and against the gguf package."""

from __future__ import annotations

import ctypes
from typing import get_args

import gguf
import pytest

from tenth.core.errors import InputError
from tenth.core.ggml import (
    ACTIVATION_BLOCKS,
    BY_NUMBER,
    FLOATS,
    KV_TYPES,
    STORAGE_TYPES,
    WEIGHT_TYPES,
    StorageType,
    storage_type,
)
from tenth.leaderboard.records import Settings
from tenth.runtime import llama

OF_ACTIVATIONS = {"Q8_1", "Q8_K"}  # ggml's own, never in a file
NOT_IN_GGUF = {"Q2_0"}  # that llama.cpp has and the package cannot name
GGML_TYPES = 43  # GGML_TYPE_COUNT of b11549


class CpuTraits(ctypes.Structure):
    """``struct ggml_type_traits_cpu`` (ggml-cpu.h)."""

    _fields_ = (
        ("from_float", ctypes.c_void_p),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


def cpu_traits(row: StorageType) -> CpuTraits:
    function = llama.library().ggml_get_type_traits_cpu
    function.restype, function.argtypes = ctypes.POINTER(CpuTraits), [ctypes.c_int]
    traits: CpuTraits = function(row.number).contents
    return traits


def native_name(number: int) -> str:
    name: bytes = llama.library().ggml_get_type_traits(number).contents.type_name
    return name.decode().upper()


@pytest.mark.parametrize("row", STORAGE_TYPES.values(), ids=lambda row: row.name)
def test_row_is_what_gguf_and_llama_cpp_say(row: StorageType) -> None:
    assert gguf.GGMLQuantizationType(row.number).name == row.name
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(row.number)] == (row.weights, row.bytes)
    traits = llama.library().ggml_get_type_traits(row.number).contents
    assert (native_name(row.number), traits.blck_size, traits.type_size) == (row.name, row.weights, row.bytes)


@pytest.mark.parametrize("row", STORAGE_TYPES.values(), ids=lambda row: row.name)
def test_kernels_and_activations_are_those_of_the_cpu_backend(row: StorageType) -> None:
    traits = cpu_traits(row)
    assert (row.kernels is None) == (not traits.vec_dot)
    assert row.activations == (native_name(traits.vec_dot_type) if traits.vec_dot else None)
    if row.activation_block:
        assert row.activation_block == gguf.GGML_QUANT_SIZES[traits.vec_dot_type][0]
    assert (row.activation_block is None) == (row.activations in (*FLOATS, None))


@pytest.mark.parametrize("row", STORAGE_TYPES.values(), ids=lambda row: row.name)
def test_encoder_needs_importance_where_the_row_says_so(row: StorageType) -> None:
    function = llama.library().ggml_quantize_requires_imatrix
    function.restype, function.argtypes = ctypes.c_bool, [ctypes.c_int]
    assert function(row.number) == row.needs_importance


def test_file_types_are_named_after_their_storage_types() -> None:
    names = {kind.value: kind.name for kind in gguf.LlamaFileType}
    for row in STORAGE_TYPES.values():
        if row.file_type is not None:
            name = names[row.file_type].removeprefix("MOSTLY_").removeprefix("ALL_")
            assert name in (row.name, f"{row.name}_M")


def test_every_type_that_a_file_can_hold_has_a_row() -> None:
    assert set(STORAGE_TYPES) == {kind.name for kind in gguf.GGML_QUANT_SIZES} - OF_ACTIVATIONS
    numbers = (i for i in range(GGML_TYPES) if llama.library().ggml_get_type_traits(i).contents.blck_size)
    assert {native_name(i) for i in numbers} == {*STORAGE_TYPES} | OF_ACTIVATIONS | NOT_IN_GGUF
    assert len(BY_NUMBER) == len(STORAGE_TYPES)


def test_types_are_ordered() -> None:
    bits = [storage_type(kind).bits_per_weight for kind in WEIGHT_TYPES]
    assert bits == sorted(bits)
    assert (bits[0], bits[-1]) == (1.5625, 16)
    assert len(set(WEIGHT_TYPES)) == len(WEIGHT_TYPES)
    assert KV_TYPES == ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
    assert set(KV_TYPES) <= set(get_args(Settings.model_fields["type_k"].annotation))
    assert set(FLOATS) == {"F32", "F16", "BF16"}


def test_rows_and_blocks() -> None:
    assert storage_type("Q4_K").holds(512)
    assert not storage_type("Q4_K").holds(96)
    assert storage_type("Q4_0").holds(96)
    assert storage_type("f16").holds(5)
    assert storage_type("Q4_K").row_bytes(512) == 288
    assert storage_type("q8_0").row_bytes(33) == 68
    with pytest.raises(InputError, match=r"'Q4_Z'.*Q4_K"):
        storage_type("Q4_Z")


def test_activation_blocks() -> None:
    for names, length in (
        (("Q4_K", "IQ4_XS", "TQ2_0"), 256),
        (("IQ4_NL", "MXFP4", "Q8_0"), 32),
        (FLOATS, None),
    ):
        assert {storage_type(name).activation_block for name in names} == {length}
    assert ACTIVATION_BLOCKS == (256, 32)


def test_repackable() -> None:
    assert storage_type("Q4_0").repackable(64, 64, "x86_64")
    assert not storage_type("Q4_0").repackable(60, 64, "x86_64")  # rows not divisible by 8
    assert not storage_type("Q6_K").repackable(64, 256, "x86_64")
    assert storage_type("Q6_K").repackable(64, 256, "arm64")
    assert not storage_type("Q4_0").repackable(64, 64, "aarch64")
