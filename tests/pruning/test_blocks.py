"""Blocks of different widths: transformers, the layer walk and llama.cpp's deci graph agree on them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny import VOCABULARY, make_model
from transformers import AutoModelForCausalLM

from tenth.calibration.fisher import calibrate
from tenth.calibration.layerwise import LayerwiseModel
from tenth.core.errors import InputError
from tenth.core.ggml import WEIGHT_TYPES, storage_type
from tenth.core.jobs import Compute
from tenth.core.records import Runtime
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.models.edit import keep_layers, replaced, take, uniform
from tenth.models.formats.folder import write_folder
from tenth.models.formats.gguf import write_gguf
from tenth.planning import memory
from tenth.quantization import default_sensitivity, recipes, sensitivity
from tenth.quantization.scales import train_scales
from tenth.quantization.sensitivity import measure_sensitivities
from tenth.quantization.sequential import round_sequentially
from tenth.quantization.settings import ScaleTraining
from tenth.quantization.write import write_model
from tenth.runtime.llama import Session

TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, 40)
SHAPE = {
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "hidden_size": 96,
}
CASES = [
    ("llama", "head_dim"),
    ("llama", "tied"),
    ("llama", "llama3"),
    ("llama", "yarn_attention"),
    ("mistral", "no_window"),
]


def narrowed(checkpoint: Checkpoint) -> Checkpoint:
    """Every block another width and other KV heads; block 2 without attention."""
    for layer, (width, groups) in enumerate([(64, [2, 0]), (96, [0, 1, 2]), (32, []), (5, [1])]):
        width_of = list(range(width))[::-1]
        checkpoint = take(take(checkpoint, "ffn", width_of, layer), "kv_heads", groups, layer)
    return checkpoint


def by_torch(folder: Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        found: np.ndarray = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    return found


def by_walk(checkpoint: Checkpoint) -> np.ndarray:
    layerwise = LayerwiseModel(checkpoint, threads=1)
    with torch.no_grad():
        with layerwise.embed() as embed:
            hidden = embed(TOKENS)
        for index in range(len(layerwise.blocks)):
            with layerwise.block(index):
                hidden = layerwise.run(index, hidden)
        with layerwise.head():
            return layerwise.logits(hidden)[0].numpy()


def by_runtime(checkpoint: Checkpoint, path: Path, **settings: Any) -> np.ndarray:
    write_gguf(checkpoint, {}, path)
    exact = {"type_k": "F32", "type_v": "F32", "flash_attention": False} | settings
    with Session.open(path, Runtime(n_ctx=64, n_ubatch=40, threads=1, **exact)) as session:
        return session.decode(TOKENS)


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_three_ways_to_the_same_logits(family: str, variant: str, tmp_path: Path) -> None:
    make_model(tmp_path / "old", family, variant, **SHAPE)
    checkpoint = narrowed(open_checkpoint(tmp_path / "old"))
    write_folder(checkpoint, tmp_path / "own")
    write_folder(checkpoint, tmp_path / "uniform", uniform=True)
    opened = open_checkpoint(tmp_path / "own")
    expected = by_torch(tmp_path / "uniform")
    assert expected.std() > 0.3
    assert np.abs(by_walk(opened) - expected).max() < 2e-5
    assert np.array_equal(by_walk(opened), by_walk(checkpoint))
    assert np.abs(by_runtime(opened, tmp_path / "m.gguf") - expected).max() < 1e-3


@pytest.mark.parametrize("kinds", [("f16", "f16"), ("q8_0", "q4_0")])
def test_caches_of_every_type(kinds: tuple[str, str], tmp_path: Path) -> None:
    """Under flash attention the narrow model is as far from exact as the padded one is."""
    make_model(tmp_path / "old", "llama", "head_dim", **{**SHAPE, "head_dim": 32})
    checkpoint = narrowed(open_checkpoint(tmp_path / "old"))
    settings = {"flash_attention": True, "type_k": kinds[0], "type_v": kinds[1]}
    narrow = by_runtime(checkpoint, tmp_path / "narrow.gguf", **settings)
    wide = by_runtime(uniform(checkpoint), tmp_path / "wide.gguf", **settings)
    assert np.abs(narrow - wide).max() < 1e-2 * wide.std()


def kill(model: Any, width: list[list[int]], groups: list[list[int]], size: int) -> None:
    """Leave these channels and KV groups alone with an effect; size: columns of o_proj for a group."""
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            down, out = layer.mlp.down_proj.weight, layer.self_attn.o_proj.weight
            down[:, [c for c in range(down.shape[1]) if c not in width[i]]] = 0
            for group in set(range(out.shape[1] // size)) - set(groups[i]):
                out[:, group * size : (group + 1) * size] = 0


def test_removing_what_is_dead_changes_no_logit(tmp_path: Path) -> None:
    model = make_model(tmp_path / "old", "llama", "head_dim", **SHAPE)
    width = [sorted(np.random.default_rng(i).permutation(96)[: 20 + 10 * i].tolist()) for i in range(4)]
    groups: list[list[int]] = [[1], [], [0, 2], [2]]
    kill(model, width, groups, 32)
    model.save_pretrained(tmp_path / "old")
    checkpoint = open_checkpoint(tmp_path / "old")
    for i in range(4):
        checkpoint = take(take(checkpoint, "ffn", width[i], i), "kv_heads", groups[i], i)
    expected = by_torch(tmp_path / "old")
    assert np.abs(by_walk(checkpoint) - expected).max() < 2e-5
    assert np.abs(by_runtime(checkpoint, tmp_path / "m.gguf") - expected).max() < 1e-3
    assert sum(s.count for s in checkpoint.specs()) < sum(
        s.count for s in open_checkpoint(tmp_path / "old").specs()
    )


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "smollm3", "gemma2", "gemma3_text"])
def test_fewer_kv_heads_everywhere(family: str, tmp_path: Path) -> None:
    """Of any family whose graph allows it; from_pretrained and llama.cpp load the result."""
    shape = {**SHAPE, "num_attention_heads": 8, "num_key_value_heads": 4}
    shape |= {"head_dim": 16, "query_pre_attn_scalar": 16} if "gemma" in family else {}
    model = make_model(tmp_path / "old", family, **shape)
    groups = [3, 0, 2]
    kill(model, [list(range(96))] * 4, [groups] * 4, 32)
    model.save_pretrained(tmp_path / "old")
    checkpoint = take(open_checkpoint(tmp_path / "old"), "kv_heads", groups)
    write_folder(checkpoint, tmp_path / "new")
    opened = open_checkpoint(tmp_path / "new")
    assert set(opened.shape.heads) == {2 * len(groups)}
    assert set(opened.shape.kv_heads) == {len(groups)}
    expected = by_torch(tmp_path / "old")
    for found in (by_torch(tmp_path / "new"), by_walk(opened), by_walk(checkpoint)):
        assert np.abs(found - expected).max() < 2e-5
    assert np.abs(by_runtime(opened, tmp_path / "m.gguf") - expected).max() < 1e-3


def test_heads_that_do_not_divide_are_written_as_mistral(tmp_path: Path) -> None:
    shape = {"num_attention_heads": 8, "num_key_value_heads": 4}
    make_model(tmp_path / "old", "llama", "head_dim", **{**SHAPE, **shape, "hidden_size": 64})
    checkpoint = take(open_checkpoint(tmp_path / "old"), "kv_heads", [0, 1, 3])
    write_folder(checkpoint, tmp_path / "new")
    opened = open_checkpoint(tmp_path / "new")
    assert opened.arch.model_type == "mistral"
    assert opened.arch.context_limit(opened.config) == checkpoint.arch.context_limit(checkpoint.config)
    expected = by_torch(tmp_path / "new")
    assert np.abs(by_walk(checkpoint) - expected).max() < 2e-5
    assert np.abs(by_runtime(checkpoint, tmp_path / "m.gguf") - expected).max() < 1e-3


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("qwen2", "heads x head_dim = 32 differs from hidden_size = 64"),
        ("phi", "heads x head_dim = 32 differs from hidden_size = 64"),
        ("phi3", r"qkv_proj.weight: heads\+kv_heads\+kv_heads is fused"),
    ],
)
def test_families_that_keep_their_heads(family: str, message: str, tmp_path: Path) -> None:
    make_model(tmp_path, family)
    with pytest.raises(InputError, match=message):
        take(open_checkpoint(tmp_path), "kv_heads", [1])


@pytest.mark.parametrize(("family", "variant"), [("llama", "biases"), ("qwen2", "tied"), ("phi3", "plain")])
def test_padded_where_the_runtime_has_no_graph(family: str, variant: str, tmp_path: Path) -> None:
    """Attention that is gone takes its biases along."""
    make_model(tmp_path / "old", family, variant)
    checkpoint = take(take(open_checkpoint(tmp_path / "old"), "kv_heads", [], 0), "ffn", list(range(9)), 1)
    write_folder(checkpoint, tmp_path / "new", uniform=True)
    expected = by_torch(tmp_path / "new")
    assert np.abs(by_walk(checkpoint) - expected).max() < 2e-5
    assert np.abs(by_runtime(open_checkpoint(tmp_path / "new"), tmp_path / "m.gguf") - expected).max() < 1e-3
    for tensor in uniform(checkpoint).tensors.values():
        whole, places = tensor.load(), np.linspace(0, tensor.shape[0], 7, dtype=int).tolist()
        pieces = [tensor.load(start, stop) for start, stop in pairwise(places)]
        assert np.array_equal(np.concatenate(pieces), whole)


def test_a_norm_that_both_halves_share(tmp_path: Path) -> None:
    make_model(tmp_path, "phi")
    with pytest.raises(InputError, match="cannot lose its attention"):
        take(open_checkpoint(tmp_path), "kv_heads", [], 1)


def test_other_families_may_differ_on_the_way_only(tmp_path: Path) -> None:
    """Other channels in every block, of which there are as many: no matter that there were not, between."""
    make_model(tmp_path / "old", "qwen2", num_hidden_layers=3)
    old = open_checkpoint(tmp_path / "old")
    half = take(old, "ffn", list(range(32)), 0)
    for refused in (half.specs, lambda: write_gguf(half, {}, tmp_path / "m.gguf")):
        with pytest.raises(InputError, match="a qwen2 model needs the same in every block"):
            refused()
    with pytest.raises(InputError, match="same in every block"):
        write_folder(half, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    whole = take(take(half, "ffn", list(range(40, 72)), 2), "ffn", list(range(64, 96)), 1)
    write_folder(whole, tmp_path / "new")
    assert np.abs(by_torch(tmp_path / "new") - by_walk(whole)).max() < 2e-5
    biased = make_biased(tmp_path / "biased")
    with pytest.raises(InputError, match="no biases"):
        take(biased, "ffn", [0, 1], 1).specs()


def make_biased(folder: Path) -> Checkpoint:
    make_model(folder, "llama", "biases")
    return open_checkpoint(folder)


def test_equal_blocks_are_a_plain_model(tmp_path: Path) -> None:
    make_model(tmp_path / "old", "llama", "head_dim", **SHAPE)
    checkpoint = open_checkpoint(tmp_path / "old")
    for layer in range(4):
        assert ("tenth_blocks" in checkpoint.config) == (layer > 0)
        assert checkpoint.arch.gguf_arch == ("deci" if layer else "llama")
        checkpoint = take(
            take(checkpoint, "ffn", list(range(layer, 64)), layer), "kv_heads", [2, layer % 2], layer
        )
    assert checkpoint.config["tenth_blocks"] == {"intermediate_size": [64, 63, 62, 61]}
    assert (checkpoint.config["num_key_value_heads"], checkpoint.config["num_attention_heads"]) == (2, 4)
    with pytest.raises(InputError, match="blocks differ in ffn"):
        take(checkpoint, "ffn", [0])
    checkpoint = take(checkpoint, "kv_heads", [1])  # equal in this, and so all at once
    for layer in range(4):
        checkpoint = take(checkpoint, "ffn", list(range(32)), layer)
    assert "tenth_blocks" not in checkpoint.config
    write_folder(checkpoint, tmp_path / "new")
    assert np.abs(by_torch(tmp_path / "new") - by_walk(checkpoint)).max() < 2e-5
    for layer in range(3):
        checkpoint = take(checkpoint, "kv_heads", [], layer)
    with pytest.raises(InputError, match="must keep a KV head"):
        take(checkpoint, "kv_heads", [], 3)


def test_fewer_blocks_of_different_widths(tmp_path: Path) -> None:
    make_model(tmp_path / "old", "llama", "head_dim", **SHAPE)
    checkpoint = narrowed(open_checkpoint(tmp_path / "old"))
    kept = keep_layers(checkpoint, [0, 2, 3])  # the widest is gone
    assert kept.config["tenth_blocks"] == {"intermediate_size": [64, 32, 5], "num_key_value_heads": [2, 0, 1]}
    assert kept.config["intermediate_size"] == 64
    assert (max(kept.shape.heads), max(kept.shape.kv_heads)) == (4, 2)
    write_folder(kept, tmp_path / "uniform", uniform=True)
    assert np.abs(by_walk(kept) - by_torch(tmp_path / "uniform")).max() < 2e-5
    assert "tenth_blocks" not in keep_layers(checkpoint, [1]).config
    with pytest.raises(InputError, match="block 0 must keep attention"):
        keep_layers(checkpoint, [2, 3]).specs()


@pytest.mark.parametrize(
    ("family", "keep"),
    [("gemma2", [1, 2, 4]), ("gemma3_text", [1, 4, 5]), ("gemma3", [0, 5]), ("smollm3", [0, 2, 5, 7])],
)
def test_fewer_blocks_keep_their_kinds(family: str, keep: list[int], tmp_path: Path) -> None:
    """What config.json says by a rule of their numbers is a list afterwards."""
    make_model(tmp_path / "old", family, num_hidden_layers=8 if family == "smollm3" else 6)
    old = open_checkpoint(tmp_path / "old")
    rule = {key: value for key, value in old.config.items() if key not in ("layer_types", "no_rope_layers")}
    ruled = old.arch.complete({**rule, "text_config": rule} if family == "gemma3" else rule)
    assert (
        keep_layers(Checkpoint(**{**vars(old), "config": ruled}), keep).config.items()
        >= {
            key: [old.config[key][i] for i in keep]
            for key in ("layer_types", "no_rope_layers")
            if ("gemma" in family) == (key == "layer_types")
        }.items()
    )
    kept = keep_layers(old, keep)
    write_folder(kept, tmp_path / "new")
    expected = by_torch(tmp_path / "new")
    assert np.abs(by_walk(kept) - expected).max() < 2e-5
    assert np.abs(by_runtime(kept, tmp_path / "m.gguf") - expected).max() < 1e-3
    if family == "smollm3":
        with pytest.raises(InputError, match="no_rope_layers must skip every 4th layer"):
            keep_layers(old, [0, 3])


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "object"),
        ({}, "object"),
        ({"hidden_size": [1, 1]}, "object"),
        ({"intermediate_size": 96}, "list of 2"),
        ({"intermediate_size": [96]}, "list of 2"),
        ({"intermediate_size": [96, 0]}, "outside 1..96"),
        ({"intermediate_size": [96, 97]}, "outside 1..96"),
        ({"intermediate_size": [95, 94]}, "not the largest"),
        ({"intermediate_size": [96, "1"]}, "whole number"),
        ({"num_key_value_heads": [2, -1]}, "outside 0..2"),
        ({"num_key_value_heads": [0, 2]}, "block 0 must keep attention"),
        ({"num_key_value_heads": [2, 1]}, "has shape"),
    ],
)
def test_configs_that_contradict_themselves(blocks: Any, message: str, tmp_path: Path) -> None:
    make_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tenth_blocks": blocks}))
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path).specs()


def test_memory_is_that_of_llama_cpps_report(tmp_path: Path) -> None:
    shape = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8, "num_key_value_heads": 4}
    make_model(tmp_path / "old", "llama", "head_dim", **{**SHAPE, **shape, "head_dim": 32})
    checkpoint = open_checkpoint(tmp_path / "old")
    for layer, (width, groups) in enumerate([(320, [0, 1]), (704, [0, 1, 2]), (64, []), (640, [1])]):
        checkpoint = take(take(checkpoint, "ffn", list(range(width)), layer), "kv_heads", groups, layer)
    specs = checkpoint.specs()
    write_gguf(checkpoint, {}, tmp_path / "m.gguf")
    for runtime in (
        Runtime(n_ctx=300, n_ubatch=256, threads=1),
        Runtime(n_ctx=600, n_ubatch=128, threads=1, type_k="q8_0", type_v="q4_0"),
        Runtime(n_ctx=512, n_ubatch=128, threads=1, flash_attention=False),
    ):
        predicted = memory.memory(checkpoint.shape, specs, {}, runtime)
        path = tmp_path / "m.gguf"
        with Session.serving(path, runtime) as session:
            seen = session.buffers
        rounding = 0.02 * (1 << 20)
        assert abs(predicted.weights - seen["mapped"]) < rounding + 4096
        assert abs(predicted.kv - seen["kv"]) < rounding
        work = runtime.n_ubatch * 704 * 36 // 32 + 4 * 64 * (4 * 32 + 128)
        graph = seen["compute"] - 4 * 256 * runtime.n_ubatch
        assert 0.98 * graph - rounding < predicted.compute < 1.12 * graph + work + rounding
    read = memory.kv_read(checkpoint.shape, Runtime(n_ctx=512, n_ubatch=8), 100)
    assert read == {"F16": 100 * (2 + 3 + 0 + 1) * 32 * 2 * 2}  # of K and V


def test_plans_price_every_matrix(tmp_path: Path) -> None:
    make_model(tmp_path, "llama", "tied", **SHAPE)
    checkpoint = narrowed(open_checkpoint(tmp_path))
    linear = {spec.name: spec for spec in checkpoint.specs() if spec.linear}
    assert not any(name.startswith("blk.2.attn") for name in linear)
    sensitivities = default_sensitivity.sensitivities(list(linear.values()))
    assert sensitivities.keys() == linear.keys()
    assert all(
        storage_type(kind).holds(linear[name].columns)
        for name, found in sensitivities.items()
        for kind in found
    )
    types = recipes.types("Q4_K_M", list(linear.values()), 2)
    assert all(storage_type(kind).holds(linear[name].columns) for name, kind in types.items())


@pytest.mark.parametrize("variant", ["tied", "head_dim"])
def test_the_stages_of_a_fit(variant: str, tmp_path: Path) -> None:
    """Calibrated, rounded block after block, trained, written: llama.cpp computes what torch does with the
    weights that were stored.
    """
    make_model(tmp_path / "old", "llama", variant, **SHAPE)
    checkpoint = open_checkpoint(tmp_path / "old")
    for layer, (width, groups) in enumerate([(64, [2, 0]), (96, [0, 1, 2]), (32, []), (64, [1])]):
        checkpoint = take(take(checkpoint, "ffn", list(range(width)), layer), "kv_heads", groups, layer)
    write_folder(checkpoint, tmp_path / "m")
    windows = np.random.default_rng(3).integers(0, 60, (6, 24)).astype(np.int32)
    np.save(tmp_path / "tokens.npy", windows)
    for name in ("stats", "rounded", "trained"):
        (tmp_path / name).mkdir()
    model, tokens, stats = (tmp_path / name for name in ("m", "tokens.npy", "stats"))
    rounded, trained, compute = tmp_path / "rounded", tmp_path / "trained", Compute(threads=1)
    types = {spec.name: "Q5_1" for spec in checkpoint.specs() if spec.linear}

    def emit(event: dict[str, Any]) -> None:
        assert event["done"] >= 0

    calibrate(model, tokens, 1, stats, compute, emit)
    measure_sensitivities(model, stats, tmp_path / "sensitivities.jsonl", WEIGHT_TYPES, 1, emit)
    sensitivities = sensitivity.load(tmp_path / "sensitivities.jsonl")
    assert sensitivities.keys() == types.keys()
    assert all(
        predicted_kl[kind] > 0
        for predicted_kl in sensitivities.values()
        for kind in predicted_kl
        if kind != "F32"
    )
    round_sequentially(model, tokens, stats, types, rounded, 1, compute, emit)
    training = ScaleTraining(steps=4, batch=2, seed=0)
    train_scales(model, (tokens, tokens), rounded, types, trained, training, compute, emit)
    write_model(model, types, tmp_path / "m.gguf", stats, [trained, rounded], 1)
    opened = open_checkpoint(tmp_path / "m")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    values: dict[str, np.ndarray] = {}
    for spec in opened.specs():
        rows = gguf.dequantize(stored[spec.name].data, stored[spec.name].tensor_type).reshape(spec.shape)
        order = spec.row_order()
        values[spec.source] = rows if order is None else rows[np.argsort(order)]
    exact = replaced(opened, values)
    assert np.abs(by_runtime(exact, tmp_path / "exact.gguf") - by_walk(exact)).max() < 1e-3
    with Session.open(tmp_path / "m.gguf", Runtime(n_ctx=64, n_ubatch=40, threads=1)) as session:
        found = session.decode(TOKENS)
    # There, activations are rounded to 8 bits.
    assert np.sqrt(np.mean((found - by_walk(exact)) ** 2)) < 0.1 * found.std()
