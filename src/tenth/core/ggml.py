"""ggml's storage types: their blocks, their sizes, and what activations are rounded to beside them."""

from __future__ import annotations

from functools import cache

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from tenth.core.errors import InputError

# Every storage type of 1.56 to 16 bits that stock llama.cpp b11549 both encodes and runs, by bits per weight.
# Not here: Q2_0, which the gguf package (0.19) cannot name yet, NVFP4 (a per-tensor scale beside the blocks),
# Q8_1 and Q8_K (internal).
TYPES = (
    "IQ1_S",
    "TQ1_0",
    "IQ1_M",
    "TQ2_0",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "Q2_K",
    "IQ3_XXS",
    "IQ3_S",
    "Q3_K",
    "IQ4_XS",
    "MXFP4",
    "IQ4_NL",
    "Q4_0",
    "Q4_K",
    "Q4_1",
    "Q5_0",
    "Q5_K",
    "Q5_1",
    "Q6_K",
    "Q8_0",
    "BF16",
    "F16",
)


@cache
def block(type_name: str) -> tuple[int, int]:
    """(weights, bytes) of one block of a ggml type. InputError for an unknown name."""
    try:
        weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    except KeyError:
        raise InputError(f"unknown ggml type {type_name!r}; known: {', '.join(TYPES)}") from None
    return int(weights), int(size)


def holds(type_name: str, columns: int) -> bool:
    """Whether rows of that many weights divide into the type's blocks."""
    return columns % block(type_name)[0] == 0


def bits_per_weight(type_name: str) -> float:
    """Bits per weight of a ggml type."""
    weights, size = block(type_name)
    return 8 * size / weights


def activation_block(type_name: str) -> int | None:
    """Length of the blocks in which ggml rounds activations to 8 bits before a product with this type; None:
    it does not.

    From the vec_dot_type of ggml-cpu.c's type traits: block_q8_K (256) for K-, I- and ternary types,
    block_q8_0 or q8_1 (32) for the others.
    """
    if type_name in ("F32", "F16", "BF16"):
        return None
    return 32 if block(type_name)[0] < 256 else 256


KV_TYPES = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
