"""The stock recipes: llama-quantize's own file sizes, and its fallbacks."""

from __future__ import annotations

from typing import Any

import pytest

from tenth.core.ggml import WEIGHT_TYPES, storage_type
from tenth.core.records import TensorSpec
from tenth.models import arch
from tenth.models.formats.gguf import ALIGNMENT, storage, tensor_bytes
from tenth.quantization.recipes import BASES, types

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 16384,
    "tie_word_embeddings": True,
}
# Sizes of files that llama-quantize of b11549 made of this shape with an importance matrix, header included.
HEADER = 570_624
FILES = {
    "Q8_0": 49_642_752,
    "Q6_K": 38_468_864,
    "Q5_K_M": 34_186_496,
    "Q4_K_M": 30_156_032,
    "Q4_K_S": 28_900_608,
    "Q4_0": 28_785_920,
    "IQ4_XS": 27_557_120,
    "Q3_K_M": 25_636_096,
    "IQ3_M": 24_454_400,
    "IQ3_S": 23_723_264,
    "Q3_K_S": 23_723_264,
    "IQ3_XXS": 20_692_224,
    "Q2_K": 21_327_104,
    "IQ2_M": 19_082_496,
    "IQ2_S": 18_074_880,
    "IQ2_XS": 17_392_896,
    "IQ2_XXS": 16_286_976,
}


def specs(**changes: Any) -> list[TensorSpec]:
    config, family = arch.load({**CONFIG, **changes})
    return family.specs(config)


def data_bytes(tensors: list[TensorSpec], chosen: dict[str, str]) -> int:
    return sum(-(-tensor_bytes(s, storage(s, chosen)) // ALIGNMENT) * ALIGNMENT for s in tensors)


@pytest.mark.parametrize("recipe", FILES)
def test_sizes_are_those_of_llama_quantize(recipe: str) -> None:
    tensors = specs()
    assert data_bytes(tensors, types(recipe, tensors, gqa=2)) == FILES[recipe] - HEADER


@pytest.mark.parametrize("recipe", BASES)
@pytest.mark.parametrize("gqa", [1, 8])
@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": False}, {"intermediate_size": 1504}, {"hidden_size": 520}]
)
def test_every_matrix_gets_a_type_that_holds_it(recipe: str, gqa: int, changes: dict[str, Any]) -> None:
    tensors = specs(**changes)
    chosen = types(recipe, tensors, gqa)
    assert set(chosen) == {spec.name for spec in tensors if spec.linear}
    assert set(chosen.values()) <= set(WEIGHT_TYPES)
    assert all(storage_type(chosen[spec.name]).holds(spec.columns) for spec in tensors if spec.linear)


def test_fallbacks_where_rows_are_no_multiple_of_256() -> None:
    tensors = specs(intermediate_size=1504)
    falls = {
        "Q4_K_S": "Q5_0",
        "Q5_K_S": "Q5_1",
        "Q6_K": "Q8_0",
        "Q3_K_S": "Q4_0",
        "IQ4_XS": "IQ4_NL",
        "Q8_0": "Q8_0",
    }
    for recipe, expected in falls.items():
        assert types(recipe, tensors, 2)["blk.11.ffn_down.weight"] == expected
    odd = specs(intermediate_size=1500)
    assert types("Q4_K_M", odd, 2)["blk.5.ffn_down.weight"] == "F16"


def test_exceptions_by_role() -> None:
    tied, untied = specs(), specs(tie_word_embeddings=False)
    medium = types("Q4_K_M", tied, 2)
    assert medium["token_embd.weight"] == "Q6_K"
    more = [i for i in range(12) if medium[f"blk.{i}.attn_v.weight"] == "Q6_K"]
    assert more == [0, 3, 6, 9, 10, 11]
    assert medium["blk.0.attn_q.weight"] == "Q4_K"
    apart = types("Q4_K_M", untied, 2)
    assert (apart["token_embd.weight"], apart["output.weight"]) == ("Q4_K", "Q6_K")
    small = types("IQ2_XXS", untied, 2)
    assert (small["token_embd.weight"], small["output.weight"]) == ("Q2_K", "Q5_K")
    assert types("IQ2_XXS", tied, 4)["blk.3.attn_v.weight"] == "Q4_K"
    assert types("IQ2_XXS", tied, 2)["blk.3.attn_v.weight"] == "Q2_K"
    with_matrix, without = types("Q4_0", tied, 2), types("Q4_0", tied, 2, importance=False)
    assert with_matrix["blk.0.ffn_down.weight"] == "Q4_1"
    assert without["blk.0.ffn_down.weight"] == "Q4_0"
