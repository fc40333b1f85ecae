"""The speed model: the sum over tensors, what stands in for what was not measured, and its intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from profiles import TOASTER, toaster
from reference import naive_speed

from tenth.core.errors import InputError
from tenth.core.ggml import WEIGHT_TYPES, storage_type
from tenth.core.records import Runtime, TensorSpec
from tenth.devices import catalogue, speed
from tenth.models import arch
from tenth.models.shape import ModelShape
from tenth.planning import memory
from tenth.planning.constraints import Cost
from tenth.quantization import recipes

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
    "max_position_embeddings": 4096,
}


def shape(**changes: Any) -> tuple[dict[str, Any], ModelShape, list[TensorSpec]]:
    config, family = arch.load({**CONFIG, "tie_word_embeddings": True, **changes})
    return config, family.shape(config), family.specs(config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q3_K_M", "IQ2_M", "Q8_0"])
def test_a_mixed_file_is_the_sum_over_its_tensors(tied: bool, recipe: str) -> None:
    config, model, specs = shape(tie_word_embeddings=tied)
    types = recipes.types(recipe, specs, 2)
    runtime = Runtime(n_ctx=1024, n_ubatch=64, type_k="q8_0", type_v="f16")
    rates = speed.rates(catalogue.load("galaxy-s23"))
    bandwidth = {name: 1 / each for name, each in rates.decode.items()}
    wanted = naive_speed.seconds(config, specs, types, runtime, 300, bandwidth, rates.overhead)
    seconds_per_token = Cost(rates.decode, rates.overhead, 300)
    assert seconds_per_token.of(model, specs, types, runtime) == pytest.approx(wanted, rel=1e-12)
    read = speed.read_bytes(specs, types)
    for kind, size in memory.kv_read(model, runtime, 300).items():
        read[kind] = read.get(kind, 0.0) + size
    guess = speed.decode(rates, read)
    assert guess.value == pytest.approx(1 / wanted, rel=1e-12)
    assert guess.low < guess.value < guess.high


def test_a_sliding_window_is_read_no_further_than_it_reaches() -> None:
    config, family = arch.load(
        {
            "model_type": "gemma3_text",
            "hidden_size": 512,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "vocab_size": 2048,
            "sliding_window": 128,
            "sliding_window_pattern": 6,
        }
    )
    model = family.shape(config)
    runtime = Runtime(n_ctx=2048, n_ubatch=64)
    row = 2 * 256 * 2  # K and V, float16
    assert sum(memory.kv_read(model, runtime, 1000).values()) == row * (5 * 128 + 1000)
    assert sum(memory.kv_read(model, runtime, 100).values()) == row * 6 * 100


def test_a_measured_type_is_taken_as_it_is_and_others_from_the_class(tmp_path: Path) -> None:
    rates = speed.rates(catalogue.load(str(toaster(tmp_path))))
    kernels = speed.classes()["arm-cpu"]
    assert 1 / rates.decode["Q4_0"] == pytest.approx(8e9)
    assert 1 / rates.decode["Q8_0"] == pytest.approx(1e10)
    # The class, scaled to both measured types (geometric mean).
    scale = (8e9 / kernels.decode["Q4_0"] * 1e10 / kernels.decode["Q8_0"]) ** 0.5
    assert 1 / rates.decode["Q6_K"] == pytest.approx(scale * kernels.decode["Q6_K"])
    assert rates.measured == {"Q4_0", "Q8_0"}
    bare = TOASTER[: TOASTER.index("[backends.cpu.decode]")] + TOASTER[TOASTER.index("[power]") :]
    rates = speed.rates(catalogue.load(str(toaster(tmp_path, bare))))
    assert 1 / rates.decode["Q4_0"] == pytest.approx(kernels.fraction * 2e10)


def test_every_type_has_a_time_on_every_backend_of_every_device() -> None:
    for device in catalogue.all_devices(own=False):
        for backend in device.backends:
            rates = speed.rates(device, backend)
            assert set(rates.decode) == {*WEIGHT_TYPES, "F32"}
            assert all(0 < each < 1e-8 for each in rates.decode.values())
            assert all(0 < each < 1e-6 for each in rates.prefill.values())


def test_below_4_bits_a_byte_is_slower_on_arm() -> None:
    """Measured on two phones (docs/log.md): fewer bits must not look faster than they are."""
    rates = speed.rates(catalogue.load("galaxy-s23"))
    for low in (name for name in WEIGHT_TYPES if storage_type(name).bits_per_weight < 4):
        assert rates.decode[low] > 1.5 * rates.decode["Q4_0"], low
    by_weight = {
        name: each * storage_type(name).bits_per_weight
        for name, each in rates.decode.items()
        if name in WEIGHT_TYPES
    }
    assert by_weight["IQ2_S"] > by_weight["Q4_0"]


@pytest.mark.parametrize(
    ("kind", "measured", "source", "by_weight"),
    [
        ("Q4_0", ["Q4_0", "Q4_K"], "Q4_0", False),
        ("F16", ["Q4_0", "Q8_0"], "Q8_0", False),
        ("Q5_0", ["Q4_0", "Q5_K", "Q8_0"], "Q5_K", True),
        ("Q4_1", ["Q4_0", "Q5_K"], "Q4_0", True),  # as near, and its blocks are as long
        ("TQ2_0", ["Q2_K", "Q4_0", "IQ2_S"], "Q2_K", True),
        ("IQ3_XXS", ["IQ2_S", "IQ3_S", "Q3_K"], "IQ3_S", True),
        ("IQ2_XXS", ["Q2_K", "Q4_0", "Q8_0"], "Q2_K", True),  # no codebook: the slowest up to 4.5 bits
    ],
)
def test_what_stands_in(kind: str, measured: list[str], source: str, by_weight: bool) -> None:
    slowest = {"Q2_K": 3.0, "Q4_0": 2.0, "Q8_0": 9.0}
    assert speed.stand_in(kind, measured, slowest) == (source, by_weight)


def test_rows_that_do_not_divide_fall_back_and_are_slower() -> None:
    """Gemma's rows of 1152 are no multiple of 256: Q4_K becomes Q5_0, which is larger and slower."""
    times = {}
    for hidden in (1024, 1152):
        _, _, specs = shape(hidden_size=hidden, head_dim=64)
        types = recipes.types("Q4_K_M", specs, 2)
        rates = speed.rates(catalogue.load("galaxy-s23"))
        read = speed.read_bytes(specs, types)
        weights = sum(spec.count for spec in speed.multiplied(specs))
        times[hidden] = sum(size * rates.decode[kind] for kind, size in read.items()) / weights
        assert ("Q5_0" in read) == (hidden == 1152)
    assert times[1152] > 1.2 * times[1024]


def test_a_known_device_has_a_narrower_interval_than_a_class() -> None:
    read = {"Q4_0": 1e9}
    known = speed.decode(speed.rates(catalogue.load("galaxy-s23")), read)
    other = speed.decode(speed.rates(catalogue.load("xiaomi-14")), read)
    gpu = speed.decode(speed.rates(catalogue.load("galaxy-s23"), "opencl"), read)
    assert (known.low / known.value, known.high / known.value) == pytest.approx((0.75, 1.25))
    assert (other.low / other.value, other.high / other.value) == pytest.approx((1 / 1.7, 1.7))
    assert (gpu.low / gpu.value, gpu.high / gpu.value) == pytest.approx((0.6, 1.6))
    # A type that this very device was not measured with is known by its class.
    assert speed.decode(speed.rates(catalogue.load("mac-mini-m4")), {"F16": 1e9}).high > 0
    mixed = speed.decode(speed.rates(catalogue.load("galaxy-s23")), {"TQ2_0": 1e9})
    assert mixed.high / mixed.value == pytest.approx(1.7)


def test_prefill_leaves_out_the_head_and_slows_with_small_batches() -> None:
    rates = speed.rates(catalogue.load("galaxy-s23"))
    _, _, specs = shape(tie_word_embeddings=False)
    types = {spec.name: "Q4_0" for spec in specs if spec.linear}
    weights = sum(s.count for s in specs if s.linear and s.layer is not None)
    found = speed.prefill(rates, specs, types)
    slow = speed.prefill(rates, specs, types, 2.0)
    assert found is not None
    assert slow is not None
    assert found.value == pytest.approx(147.7e9 / weights)
    assert slow.value == pytest.approx(found.value / 2)
    assert speed.prefill(speed.rates(catalogue.load("jetson-orin-nano"), "cuda"), specs, types) is None


def test_an_unknown_backend_is_an_error_with_those_there_are() -> None:
    with pytest.raises(InputError, match="no backend 'metal'; it has cpu, hexagon, opencl"):
        speed.rates(catalogue.load("galaxy-s23"), "metal")


@pytest.mark.parametrize("kind", ["IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M", "IQ3_XXS", "TQ2_0", "Q4_1", "Q5_1"])
def test_the_rule_meets_what_x86_was_measured_to_do(kind: str) -> None:
    """With what phones were measured with, the rule finds the rest of the x86 table within twofold."""
    table = speed.classes()["x86-cpu"].decode
    known = [name for name in speed.classes()["arm-cpu"].decode if name != kind]
    source, by_weight = speed.stand_in(kind, known)
    guess = table[source] * (
        storage_type(kind).bits_per_weight / storage_type(source).bits_per_weight if by_weight else 1
    )
    assert 0.5 < guess / table[kind] < 2
