from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from hypothesis import given
from hypothesis import strategies as st

from tenth.core import ggml
from tenth.core.records import MemoryParts, Runtime, TensorSpec
from tenth.measurement.memory import prove
from tenth.models import arch
from tenth.models.shape import ModelShape
from tenth.planning import memory
from tenth.runtime import llama

MIB = 1 << 20


def _model(
    hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int
) -> tuple[ModelShape, list[TensorSpec]]:
    model = ModelShape(
        gguf_arch="llama",
        vocab=vocab,
        hidden=hidden,
        ffn=(ffn,) * layers,
        heads=(heads,) * layers,
        kv_heads=(kv_heads,) * layers,
        head_dims=(hidden // heads,) * layers,
        windows=(0,) * layers,
        tied=False,
    )
    specs = []
    for name, shape in tiny_gguf.shapes(hidden, ffn, layers, vocab, hidden // heads * kv_heads).items():
        words = name.split(".")
        layer = int(words[1]) if words[0] == "blk" else None
        specs.append(TensorSpec(name, name, shape, words[-2], layer, linear=len(shape) == 2))
    return model, specs


def _types(specs: list[TensorSpec], kind: str) -> dict[str, str]:
    return {spec.name: kind for spec in specs if spec.linear}


SHAPES = [(128, 384, 3, 2, 1, 300), (256, 1024, 2, 4, 4, 2000), (256, 704, 2, 8, 2, 300)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
def test_parts_are_those_of_llama_cpps_report(tmp_path: Path, shape: tuple[int, ...], kind: str) -> None:
    hidden, ffn, layers, heads, kv_heads, vocab = shape
    path = tiny_gguf.write(
        tmp_path / "m.gguf",
        hidden=hidden,
        ffn=ffn,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        vocab=vocab,
        kind=kind,
    )
    model, specs = _model(*shape)
    for runtime in (
        Runtime(n_ctx=300, n_ubatch=256, threads=1),
        Runtime(n_ctx=1024, n_ubatch=64, threads=1, repack=True),
        Runtime(n_ctx=600, n_ubatch=128, threads=1, type_k="q8_0", type_v="q4_0"),
        Runtime(n_ctx=512, n_ubatch=128, threads=1, flash_attention=False),
    ):
        predicted = memory.memory(model, specs, _types(specs, kind), runtime)
        with llama.Session.serving(path, runtime) as session:
            seen = session.buffers
        rounding = 0.02 * MIB
        assert abs(predicted.weights - seen["mapped"]) < rounding + 4096
        assert abs(predicted.kv - seen["kv"]) < rounding
        if "AVX2" in llama.build():
            assert abs(predicted.repacked - seen["repack"]) < rounding
        # llama.cpp reserves room for embeddings as input, and does not report its work buffer.
        work = runtime.n_ubatch * ffn * 36 // 32 + 4 * 64 * (4 * hidden // heads + 128)
        graph = seen["compute"] - 4 * hidden * runtime.n_ubatch
        assert 0.98 * graph - rounding < predicted.compute < 1.06 * graph + work + rounding


def test_total_is_what_a_process_holds(tmp_path: Path) -> None:
    shape = (512, 1536, 3, 8, 4, 4000)
    path = tiny_gguf.write(
        tmp_path / "m.gguf", hidden=512, ffn=1536, layers=3, heads=8, kv_heads=4, vocab=4000
    )
    model, specs = _model(*shape)
    runtime = Runtime(n_ctx=512, n_ubatch=64, threads=1)
    predicted = memory.memory(model, specs, {}, runtime)
    proof = prove(path, runtime, 300_000_000, predicted.held)
    assert abs(proof.error) < 0.05
    learnt = memory.corrected(memory.Constants(), predicted, proof.parts)
    again = memory.memory(model, specs, {}, runtime, learnt)
    assert abs(again.held - proof.peak) < 10
    assert memory.Constants.model_validate_json(learnt.model_dump_json()) == learnt


def test_correction_goes_to_the_part_that_was_wrong() -> None:
    predicted = MemoryParts(weights=1000, repacked=0, kv=100, compute=50, output=10, base=200)
    parts = {"mapped": 1000, "repack": 0, "kv": 200, "compute": 50, "peak": 1480}
    learnt = memory.corrected(memory.Constants(), predicted, parts)
    assert learnt.kv_factor == 2
    assert learnt.weights_factor == 1
    assert learnt.compute_factor == 1
    assert learnt.base_extra == 1480 - (1360 + 100)


def test_sliding_windows() -> None:
    config: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 12,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": 100,
        "query_pre_attn_scalar": 32,
        "sliding_window": 512,
    }
    runtime = Runtime(n_ctx=4096, n_ubatch=64, threads=1)
    row = 2 * 32 * 2  # K and V of one head in f16
    assert memory.cells(runtime) == 4096
    assert memory.cells(runtime, 512) == 768  # 512 + 64, in steps of 256
    assert memory.cells(Runtime(n_ctx=300, n_ubatch=64), 512) == 512  # never more than the context
    full, sliding = 4096 * row, 768 * row

    def kv(family: str, **changes: Any) -> int:
        completed, architecture = arch.load({"model_type": family, **config, **changes})
        return memory.memory(architecture.shape(completed), [], {}, runtime).kv

    for family, wide in (("llama", 12), ("phi3", 12), ("gemma2", 6), ("gemma3_text", 2)):
        assert kv(family) == wide * full + (12 - wide) * sliding
    kinds = ["full_attention"] * 3 + ["sliding_attention"] * 9
    assert kv("gemma3_text", layer_types=kinds) == 3 * full + 9 * sliding


@pytest.mark.parametrize(
    ("config", "left_out"),
    [
        (
            {
                "model_type": "mistral",
                "hidden_size": 4096,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
            },
            {"num_key_value_heads": 8},
        ),
        (
            {
                "model_type": "gemma3_text",
                "hidden_size": 2560,
                "num_hidden_layers": 34,
                "sliding_window": 1024,
            },
            {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208},
        ),
    ],
)
def test_what_config_json_leaves_out_is_charged_too(config: dict[str, Any], left_out: dict[str, int]) -> None:
    """A Mistral without KV heads was charged four times its cache; Gemma 3 without heads was no plan."""
    runtime = Runtime(n_ctx=4096, n_ubatch=64, threads=1)
    short, whole = (
        memory.memory(family.shape(completed), family.specs(completed), {}, runtime)
        for completed, family in (arch.load(config), arch.load(config | left_out))
    )
    assert short == whole
    kv_heads, head_dim = left_out["num_key_value_heads"], left_out.get("head_dim", 128)
    assert short.kv <= config["num_hidden_layers"] * 4096 * 2 * kv_heads * head_dim * 2


def test_vocabulary_is_paid_for() -> None:
    runtime = Runtime(n_ctx=512, n_ubatch=8, threads=1)
    model, _ = _model(64, 128, 2, 2, 1, 151_936)
    parts = memory.memory(model, [], {}, runtime)
    small = memory.memory(replace(model, vocab=1000), [], {}, runtime)
    assert 60_000_000 < parts.base - small.base < 80_000_000
    known = memory.memory(model, [], {}, runtime, merges=0)
    assert parts.base - known.base > 30_000_000
    assert parts.output == 4 * 151_936


def test_possible_runtimes() -> None:
    model, _ = _model(128, 256, 2, 4, 2, 300)  # heads of 32
    found = memory.possible_runtimes(model, 1024)
    assert len(found) == len(memory.UBATCHES) * len(ggml.KV_TYPES) ** 2
    assert all(runtime.n_ctx == 1024 and runtime.flash_attention for runtime in found)
    narrow = memory.possible_runtimes(replace(model, head_dims=(80, 80)), 100)
    assert {(r.type_k, r.type_v) for r in narrow} == {("f16", "f16")}
    assert sorted({r.n_ubatch for r in narrow}) == [8, 16, 32, 64, 100]


@given(st.integers(1, 8192), st.integers(1, 512), st.sampled_from(ggml.KV_TYPES))
def test_more_never_costs_less(context: int, batch: int, kind: str) -> None:
    model, specs = _model(128, 384, 3, 2, 1, 300)

    def of(n_ctx: int, n_ubatch: int) -> MemoryParts:
        runtime = Runtime(n_ctx=n_ctx, n_ubatch=n_ubatch, type_k=kind, type_v=kind, threads=1)
        return memory.memory(model, specs, {}, runtime)

    here = of(context, batch)
    assert of(context + 256, batch).kv > here.kv
    assert of(context, batch + 1).compute >= here.compute
    assert here.total == here.file_backed + here.anonymous
