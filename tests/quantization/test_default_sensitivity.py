"""Prices without measurements: every matrix and type, in a sensible order, summing to the measured."""

from __future__ import annotations

from typing import Any

import pytest

from tenth.core.ggml import KV_TYPES, WEIGHT_TYPES, storage_type
from tenth.core.records import TensorSpec
from tenth.models import arch
from tenth.quantization import default_sensitivity

ROWS = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 1024}
SHAPE = {
    **ROWS,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "head_dim": 64,
    "max_position_embeddings": 512,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"tie_word_embeddings": True},
    "phi3": {},
    "phi": {},
    "gemma2": {"query_pre_attn_scalar": 64, "hidden_activation": "gelu_pytorch_tanh"},
}


def specs(family: str = "llama", **changes: Any) -> list[TensorSpec]:
    config, model = arch.load({"model_type": family, **SHAPE, **FAMILIES[family], **changes})
    return model.specs(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_is_priced_for_every_type(family: str) -> None:
    tensors = specs(family)
    table = default_sensitivity.sensitivities(tensors)
    assert set(table) == {spec.name for spec in tensors if spec.linear}
    for spec in tensors:
        if spec.linear:
            assert set(table[spec.name]) == {
                kind for kind in WEIGHT_TYPES if storage_type(kind).holds(spec.columns)
            }
            assert all(
                predicted_kl > 0
                for kind, predicted_kl in table[spec.name].items()
                if kind not in ("F16", "BF16")
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_at_q4_k_it_is_what_was_measured(family: str) -> None:
    table = default_sensitivity.sensitivities(specs(family))
    assert sum(sensitivities["Q4_K"] for sensitivities in table.values()) == pytest.approx(
        default_sensitivity.load().predicted_kl
    )


def test_more_bits_cost_less() -> None:
    order = ("F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XXS", "IQ1_S")
    for sensitivities in default_sensitivity.sensitivities(specs()).values():
        kl_by_type = [sensitivities[kind] for kind in order]
        assert kl_by_type == sorted(kl_by_type)
        assert sensitivities["Q4_K"] < sensitivities["Q2_K"] < sensitivities["IQ1_S"]


def test_narrow_rows_have_only_types_that_hold_them() -> None:
    tensors = specs(intermediate_size=1056)
    down = default_sensitivity.sensitivities(tensors)["blk.0.ffn_down.weight"]
    assert "Q4_K" not in down
    assert {"Q4_0", "Q8_0", "IQ4_NL", "F16"} <= set(down)


def test_a_tied_embedding_is_priced_as_the_head_it_is() -> None:
    tied, apart = (default_sensitivity.sensitivities(specs(tie_word_embeddings=t)) for t in (True, False))
    known = default_sensitivity.load().sensitivity
    assert apart["output.weight"]["Q4_K"] / apart["token_embd.weight"]["Q4_K"] == pytest.approx(
        known["output"] / known["token_embd"]
    )
    assert tied["token_embd.weight"]["Q4_K"] > apart["token_embd.weight"]["Q4_K"]


def test_cache_types_are_known_and_smaller_ones_cost_more() -> None:
    found = default_sensitivity.kv()
    assert set(found) <= {f"{side} {kind}" for side in "kv" for kind in KV_TYPES}
    for side in "kv":
        assert 0 <= found[f"{side} q8_0"] < found[f"{side} q4_0"]


def test_deriving_from_its_own_prices_gives_it_back() -> None:
    known, tensors = default_sensitivity.load(), specs(tie_word_embeddings=True)
    derived = default_sensitivity.derive(
        "again", tensors, default_sensitivity.sensitivities(tensors), known.kv
    )
    assert derived.predicted_kl == pytest.approx(known.predicted_kl)
    assert derived.ratio == pytest.approx(known.ratio, abs=2e-5)
    present = {"output" if s.role == "token_embd" else s.role for s in tensors if s.linear}
    least = min(known.sensitivity[role] for role in present)
    assert {r: derived.sensitivity[r] for r in present} == pytest.approx(
        {r: known.sensitivity[r] / least for r in present}, rel=1e-3, abs=1e-3
    )
    assert (
        default_sensitivity.DefaultSensitivity.model_validate_json(default_sensitivity.dump(derived))
        == derived
    )
