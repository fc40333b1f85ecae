"""Every file in arch/: our float32 GGUF in llama.cpp computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import COMMON, VARIANTS, make_model

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
