"""Blocks of different widths: transformers, the layer walk and llama.cpp's deci graph agree on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, make_model
from transformers import AutoModelForCausalLM

from tenth import arch
from tenth.checkpoint import Checkpoint, open_checkpoint, open_config
from tenth.errors import InputError
from tenth.formats.folder import write_folder
from tenth.formats.gguf import write_gguf
from tenth.native import Session
from tenth.surgery import keep_layers, take
from tenth.walk import Walk

TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, 40)
SHAPE = {"num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16,
         "hidden_size": 96}  # fmt: skip
CASES = [
    ("llama", "head_dim", {}), ("llama", "tied", {}), ("llama", "llama3", {}), ("llama", "yarn_attention", {}),
    ("mistral", "no_window", {}),
]  # fmt: skip


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
    walk = Walk(checkpoint)
    with torch.no_grad():
        with walk.embed() as embed:
            hidden = embed(TOKENS)
        for index in range(len(walk.blocks)):
            with walk.block(index):
                hidden = walk.run(index, hidden)
        with walk.head():
            return walk.logits(hidden)[0].numpy()


def by_runtime(checkpoint: Checkpoint, path: Path, **settings: Any) -> np.ndarray:
    write_gguf(checkpoint, {}, path)
    exact = {"type_k": "F32", "type_v": "F32", "flash_attention": False} | settings
    with Session.open(path, n_ctx=64, n_batch=40, n_ubatch=40, threads=1, **exact) as session:
        return session.decode(TOKENS)


@pytest.mark.parametrize(("family", "variant", "more"), CASES)
def test_three_ways_to_the_same_logits(family: str, variant: str, more: Any, tmp_path: Path) -> None:
    make_model(tmp_path / "old", family, variant, **{**SHAPE, **more})
    checkpoint = narrowed(open_checkpoint(tmp_path / "old"))
    write_folder(checkpoint, tmp_path / "own")
    write_folder(checkpoint, tmp_path / "uniform", uniform=True)
    opened = open_checkpoint(tmp_path / "own")
    expected = by_torch(tmp_path / "uniform")
    assert expected.std() > 0.3
    assert np.abs(by_walk(opened) - expected).max() < 2e-5
    assert np.array_equal(by_walk(opened), by_walk(checkpoint))
    assert np.abs(by_runtime(opened, tmp_path / "m.gguf") - expected).max() < 1e-3
