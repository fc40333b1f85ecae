"""Opening model folders: what is there, and every way in which it can be wrong."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import VARIANTS, make_config, make_model

from tenth.core.errors import InputError
from tenth.models import arch
from tenth.models.checkpoint import open_checkpoint, open_config
from tenth.models.formats.hf import read_header


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model(tmp_path / "model", num_hidden_layers=1)
    return tmp_path / "model"


def one_line(error: InputError) -> None:
    assert "\n" not in str(error)


def set_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "delete"}))


def split(folder: Path) -> dict[str, str]:
    """Two shards and an index, as save_pretrained makes them of large models."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard)
        places.update(dict.fromkeys(part, shard))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return places


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_loads_rows(dtype: str, tmp_path: Path) -> None:
    make_model(tmp_path, dtype=dtype, num_hidden_layers=1)
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        lazy = checkpoint.tensors[name]
        assert lazy.shape == tuple(tensor.shape)
        whole = lazy.load()
        assert whole.dtype == np.float32
        np.testing.assert_array_equal(whole, tensor.float().numpy())
        np.testing.assert_array_equal(lazy.load(3, 9), whole[3:9])
    checkpoint.specs()
    seen: list[float] = []
    checkpoint.check_finite(seen.append)
    assert seen[-1] == sum(spec.count for spec in checkpoint.specs())


def test_shards(folder: Path) -> None:
    whole = {name: tensor.load() for name, tensor in open_checkpoint(folder).tensors.items()}
    split(folder)
    for name, tensor in open_checkpoint(folder).tensors.items():
        np.testing.assert_array_equal(tensor.load(), whole[name])


def test_hash_knows_what_changed(folder: Path) -> None:
    first = open_checkpoint(folder).hash()
    assert open_checkpoint(folder.rename(folder.parent / "other")).hash() == first
    folder = folder.parent / "other"
    set_config(folder, rms_norm_eps=1e-3)
    assert open_checkpoint(folder).hash() != first
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    changed = open_checkpoint(folder).hash()
    (folder / "tokenizer_config.json").write_text("{}")
    assert len({first, changed, open_checkpoint(folder).hash()}) == 3


@pytest.mark.parametrize("model_type", arch.names())
def test_specs_of_config_alone(model_type: str, tmp_path: Path) -> None:
    for variant in VARIANTS[model_type]:
        make_config(model_type, variant).save_pretrained(tmp_path)
        config, architecture = open_config(tmp_path)
        specs = architecture.specs(config)
        assert len({spec.name for spec in specs}) == len(specs)
        assert sum(spec.linear for spec in specs) >= 4
        assert architecture.context_limit(config)[0] >= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, "Did you mean 'llama'.*Known: gemma2"),
        ({"model_type": "delete"}, "model_type"),
        ({"model_type": 3}, "model_type"),
        ({"hidden_size": "64"}, "hidden_size must be a whole number"),
        ({"hidden_size": 128}, r"shape \[384, 64\].*implies \[384, 128\]"),
        ({"hidden_size": 10**12}, "hidden_size = 1000000000000 is outside"),
        ({"num_hidden_layers": 2}, "'model.layers.1.input_layernorm.weight' is missing"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"attention_bias": True}, "q_proj.bias' is missing"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "already quantised"),
        ({"num_local_experts": 8}, "mixtures"),
        ({"rope_parameters": {"rope_type": "magic"}}, "rope type 'magic'"),
        ({"rope_parameters": []}, None),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope"),
        ({"vocab_size": 100}, "implies"),
    ],
)
def test_bad_configs(changes: dict[str, Any], message: str | None, folder: Path) -> None:
    set_config(folder, **changes)
    if message is None:
        open_checkpoint(folder).specs()
        return
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(folder).specs()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("qwen2", {"head_dim": 32}, "hidden_size"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm"),
        ("phi", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar"),
        ("gemma2", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("gemma3_text", {"attn_logit_softcapping": 3.0}, "attn_logit_softcapping"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, "no_rope_layers"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_the_runtime_cannot_express(
    model_type: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make_config(model_type).save_pretrained(tmp_path)
    open_config(tmp_path)
    set_config(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        open_config(tmp_path)


def test_windows_limit_the_context(tmp_path: Path) -> None:
    make_config("mistral", "window").save_pretrained(tmp_path)
    config, architecture = open_config(tmp_path)
    limit, reason = architecture.context_limit(config)
    assert (limit, architecture.metadata(config)["llama.context_length"]) == (48, 48)
    assert "sliding window" in reason
    make_model(tmp_path, "mistral", "window")
    assert "48 tokens" in open_checkpoint(tmp_path).notes()[0]


def test_missing_pieces(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a file"):
        open_checkpoint(folder / "config.json")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pickle.*never loaded"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"no model.safetensors"):
        open_checkpoint(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="JSON object"):
        open_checkpoint(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="not valid JSON"):
        open_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json is missing"):
        open_checkpoint(folder)


def test_shards_that_do_not_agree(folder: Path) -> None:
    places = split(folder)
    index = folder / "model.safetensors.index.json"
    stray = folder / "model-00003-of-00003.safetensors"
    save_file({"x": torch.zeros(1)}, stray)
    with pytest.raises(InputError, match="does not name"):
        open_checkpoint(folder)
    stray.unlink()
    index.write_text(json.dumps({"weight_map": {**places, "model.norm.weight": "../../secret.safetensors"}}))
    with pytest.raises(InputError, match="no safetensors file of this folder"):
        open_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": {**places, "extra": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(InputError, match="does not hold it"):
        open_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": places}))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"00002.safetensors is missing \(1 of 2"):
        open_checkpoint(folder)
    index.unlink()
    with pytest.raises(InputError, match=r"no model.safetensors.index.json"):
        open_checkpoint(folder)


def test_truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(InputError, match="truncated"):
            open_checkpoint(folder)


def test_weights_that_have_no_place(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.ones(64)}, folder / "model.safetensors"
    )
    with pytest.raises(InputError, match="has no place"):
        open_checkpoint(folder).specs()
    save_file(
        {**tensors, "model.norm.weight": torch.ones(64, dtype=torch.float64)}, folder / "model.safetensors"
    )
    with pytest.raises(InputError, match="stored as F64"):
        open_checkpoint(folder).specs()
    save_file(
        {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)},
        folder / "model.safetensors",
    )
    open_checkpoint(folder).specs()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(value: float, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][5, 3] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"up_proj.weight' holds a NaN or infinity in row 5"):
        open_checkpoint(folder).check_finite()


def header_file(path: Path, header: bytes, data: bytes = b"\0" * 16) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [True, 4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]},
        {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4]},
        {"shape": [4], "data_offsets": [0, 16]},
        [],
    ],
)
def test_hostile_entries(entry: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        read_header(header_file(tmp_path / "x.safetensors", json.dumps({"a": entry}).encode()))


def test_overlap_and_repetition(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    both = {"a": entry, "b": {**entry, "data_offsets": [4, 16]}}
    with pytest.raises(InputError, match="share bytes"):
        read_header(header_file(tmp_path / "x.safetensors", json.dumps(both).encode()))
    twice = json.dumps({"a": entry})[:-1] + "," + json.dumps({"a": entry})[1:]
    with pytest.raises(InputError, match="twice"):
        read_header(header_file(tmp_path / "x.safetensors", twice.encode()))


@settings(max_examples=200, deadline=None, database=None)
@given(
    st.binary(max_size=80),
    st.integers(0, 1 << 64).map(lambda n: struct.pack("<Q", min(n, (1 << 64) - 1))) | st.just(b""),
)
def test_any_bytes_are_an_input_error_or_a_header(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(start + data)
    try:
        read_header(path)
    except InputError as error:
        one_line(error)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 1 << 40)
    | st.floats()
    | st.sampled_from(["", "default", "linear", "silu"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["rope_type", "type", "factor", "full_attention", "rope_theta"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("model_type", arch.names())
def test_any_config_is_an_input_error_or_an_architecture(model_type: str, tmp_path: Path) -> None:
    plain = json.loads(make_config(model_type).to_json_string())
    inner = plain.get("text_config", plain)
    keys = sorted(
        {
            *inner,
            "rope_scaling",
            "sliding_window_pattern",
            "no_rope_layers",
            "layer_types",
            "quantization_config",
            "tenth_blocks",
        }
    )

    @settings(max_examples=80, deadline=None, database=None)
    @given(st.sampled_from(keys), JSON)
    def check(key: str, value: Any) -> None:
        changed = (
            {**plain, "text_config": {**inner, key: value}} if inner is not plain else {**plain, key: value}
        )
        (tmp_path / "config.json").write_text(json.dumps(changed))
        try:
            config, architecture = open_config(tmp_path)
        except InputError as error:
            one_line(error)
        else:
            assert architecture.specs(config)
            assert architecture.metadata(config)

    check()
