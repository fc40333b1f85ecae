"""Every file in arch/: our float32 GGUF in llama.cpp computes what transformers computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import COMMON, VARIANTS, make_model
from transformers import AutoModelForCausalLM

from tenth.core.records import Runtime
from tenth.models import arch
from tenth.models.checkpoint import open_checkpoint
from tenth.models.formats.gguf import write_gguf
from tenth.runtime.llama import Session

LENGTH = 40  # tokens: longer than the windows of the tiny Gemmas
CASES = [
    (model_type, variant) for model_type in arch.names() for variant in VARIANTS.get(model_type, ["missing"])
]


def runtime_logits(gguf: Path, tokens: np.ndarray) -> np.ndarray:
    exact = {"type_k": "F32", "type_v": "F32", "flash_attention": False}
    with Session.open(gguf, Runtime(n_ctx=LENGTH, n_ubatch=LENGTH, threads=1, **exact)) as session:
        return session.decode(tokens)


class TableGelu(torch.nn.Module):
    """ggml's GELU: the tanh form, looked up in a table of half-precision values (ggml-cpu/vec.h)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        looked_up = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, looked_up))


def transformers_logits(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    return logits


@pytest.mark.parametrize(("model_type", "variant"), CASES)
def test_logits_equal_transformers(model_type: str, variant: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", model_type, variant)
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.arch.model_type == model_type
    write_gguf(checkpoint, {}, tmp_path / "model.gguf")
    tokens = np.random.default_rng(1).integers(0, COMMON["vocab_size"], LENGTH)
    found = runtime_logits(tmp_path / "model.gguf", tokens)
    expected = transformers_logits(model, tokens)
    assert expected.std() > 0.4
    assert np.abs(found - expected).max() <= 1e-3
    for module in model.modules():
        for name in ("act_fn", "activation_fn"):
            if "gelu" in type(getattr(module, name, None)).__name__.lower():
                setattr(module, name, TableGelu())
    difference = found - transformers_logits(model, tokens)
    assert np.sqrt(np.mean(difference**2)) <= 3e-5


def test_rope_scaling_beside_rope_parameters_counts(tmp_path: Path) -> None:
    """A person adds YaRN to a config.json that transformers 5 saved; it looks at rope_scaling first."""
    make_model(tmp_path, "qwen2")
    config = json.loads((tmp_path / "config.json").read_text())
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_scaling": yarn}))
    write_gguf(open_checkpoint(tmp_path), {}, tmp_path / "model.gguf")
    tokens = np.random.default_rng(1).integers(0, COMMON["vocab_size"], LENGTH)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    difference = runtime_logits(tmp_path / "model.gguf", tokens) - transformers_logits(model, tokens)
    assert np.abs(difference).max() <= 1e-3
