"""The GGUF writer: sizes known before, the same bytes every time, readable by others, all or nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_model

from tenth.core.errors import InputError, OutputError
from tenth.core.records import TensorSpec
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.models.formats.gguf import (
    data_bytes,
    source_rows,
    storage,
    tensor_bytes,
    tensor_infos,
    to_bf16,
    write_gguf,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("model")
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    make_model(
        folder,
        "llama",
        "tied",
        intermediate_size=256,
        rope_parameters={**rope, "original_max_position_embeddings": 64},
    )
    return open_checkpoint(folder)


def encode(spec: TensorSpec, type_name: str, rows: np.ndarray, first: int) -> np.ndarray:
    blocks: np.ndarray = gguf.quantize(rows, GGMLQuantizationType[type_name])
    return blocks


def mixed(checkpoint: Checkpoint) -> dict[str, str]:
    kinds = ("F32", "F16", "BF16", "Q4_0", "Q8_0", "Q5_1")
    return {
        spec.name: kinds[i % len(kinds)] for i, spec in enumerate(s for s in checkpoint.specs() if s.linear)
    }


def test_reads_back(checkpoint: Checkpoint, tmp_path: Path) -> None:
    types = mixed(checkpoint)
    done: list[float] = []
    size = write_gguf(checkpoint, types, tmp_path / "m.gguf", encode, {"tenth.note": "x"}, done.append)
    assert size == (tmp_path / "m.gguf").stat().st_size
    assert done[-1] == size
    assert done == sorted(done)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    specs = checkpoint.specs()
    assert set(found) == {spec.name for spec in specs} | {"rope_freqs.weight"}
    for spec in specs:
        rows = np.concatenate([rows for _, rows in source_rows(checkpoint, spec)]).reshape(spec.shape)
        tensor, kind = found[spec.name], storage(spec, types)
        assert tensor.tensor_type == GGMLQuantizationType[kind]
        assert tensor.n_bytes == tensor_bytes(spec, kind)
        assert tensor.data_offset % 32 == 0
        expected = gguf.dequantize(
            gguf.quantize(rows, GGMLQuantizationType[kind]), GGMLQuantizationType[kind]
        )
        np.testing.assert_array_equal(
            gguf.dequantize(tensor.data, tensor.tensor_type).reshape(spec.shape), expected
        )
    assert reader.fields["general.name"].contents() == checkpoint.name
    assert reader.fields["general.quantization_version"].contents() == 2
    assert reader.fields["tenth.note"].contents() == "x"


def test_size_is_known_before(checkpoint: Checkpoint, tmp_path: Path) -> None:
    types = mixed(checkpoint)
    extra = checkpoint.arch.extra_tensors(checkpoint.config)
    data = data_bytes(tensor_infos(checkpoint.specs(), types, extra))
    total = write_gguf(checkpoint, types, tmp_path / "m.gguf", encode)
    assert total == gguf.GGUFReader(tmp_path / "m.gguf").data_offset + data
    assert data == sum(-(-tensor_bytes(s, storage(s, types)) // 32) * 32 for s in checkpoint.specs()) + 32


def test_same_bytes_every_time(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_gguf(checkpoint, mixed(checkpoint), tmp_path / f"{name}.gguf", encode)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_chunks_are_whole_heads_and_lose_nothing(checkpoint: Checkpoint) -> None:
    for spec in checkpoint.specs():
        whole = np.concatenate([rows for _, rows in source_rows(checkpoint, spec)])
        pieces = list(source_rows(checkpoint, spec, chunk_bytes=1))
        np.testing.assert_array_equal(np.concatenate([rows for _, rows in pieces]), whole)
        starts = np.cumsum([0] + [len(rows) for _, rows in pieces])[:-1]
        assert [first for first, _ in pieces] == starts.tolist()
        source = checkpoint.tensors[spec.source].load()
        order = spec.row_order()
        np.testing.assert_array_equal(whole.reshape(spec.shape), source if order is None else source[order])


def test_refusals(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for types, message in (
        ({"blk.0.attn_q.weight": "Q4_K"}, "rows of 64 do not divide"),
        ({"blk.0.attn_q.weight": "Q9"}, "no ggml type"),
        ({"blk.9.attn_q.weight": "F16"}, "no matrix of this model"),
        ({"blk.0.attn_q.weight": "Q8_0"}, "no encoder"),
    ):
        with pytest.raises(InputError, match=message):
            write_gguf(checkpoint, types, tmp_path / "m.gguf")
    assert not any(tmp_path.iterdir())


def test_an_encoder_of_the_wrong_size_is_caught(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="encoder of Q8_0"):
        write_gguf(
            checkpoint,
            {"blk.0.attn_q.weight": "Q8_0"},
            tmp_path / "m.gguf",
            lambda s, t, rows, i: rows.view(np.uint8),
        )
    assert not any(tmp_path.iterdir())


def test_beyond_half_precision(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", num_hidden_layers=1)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    model.save_pretrained(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    with pytest.raises(InputError, match="65504"):
        write_gguf(checkpoint, {"blk.0.ffn_up.weight": "F16"}, tmp_path / "m.gguf")
    write_gguf(checkpoint, {"blk.0.ffn_up.weight": "BF16"}, tmp_path / "m.gguf")


def test_full_disk(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    (tmp_path / "m.gguf").write_bytes(b"before")
    with pytest.raises(OutputError, match="no space left"):
        write_gguf(checkpoint, {}, tmp_path / "m.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == b"before"
    with pytest.raises(OutputError, match="cannot be written"):
        write_gguf(checkpoint, {}, tmp_path / "missing" / "m.gguf")


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_bf16_rounds_to_nearest_even(values: list[float]) -> None:
    import torch

    rows = np.array([values], np.float32)
    expected = torch.from_numpy(rows).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(to_bf16(rows), expected)
