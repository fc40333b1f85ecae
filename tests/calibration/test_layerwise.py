"""The layer walk: the same logits as transformers' own forward pass, with one block in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import VARIANTS, VOCABULARY, make_model
from torch import nn

from tenth.calibration.layerwise import Hidden, LayerwiseModel
from tenth.core.errors import InputError
from tenth.models.checkpoint import Checkpoint, open_checkpoint

# LongRoPE chooses its factors by the length of the text: shorter and longer than "original" (32).
LENGTHS = (20, 40)
EVERY = [(family, variant) for family, variants in VARIANTS.items() for variant in variants]


def windows(count: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (count, length)).astype(np.int32)


def whole(model: Any, ids: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids.astype(np.int64)), use_cache=False).logits


def filled(layerwise: LayerwiseModel) -> int:
    """Bytes of parameters in memory."""
    return sum(
        p.numel() * p.element_size()
        for m in (layerwise.model, *layerwise.blocks)
        for p in m.parameters()
        if not p.is_meta
    )


def size(module: nn.Module) -> int:
    return sum(p.numel() * 4 for p in module.parameters())


@pytest.mark.parametrize(("family", "variant"), EVERY)
def test_logits_are_those_of_transformers(family: str, variant: str, tmp_path: Path) -> None:
    model = make_model(tmp_path, family, variant)
    layerwise = LayerwiseModel(open_checkpoint(tmp_path))
    embedding = size(layerwise.embedding)
    for length in LENGTHS:
        texts = windows(2, length, seed=length)
        with layerwise.embed() as embed:
            assert filled(layerwise) == embedding
            hidden = [embed(text) for text in texts]
        assert filled(layerwise) == 0
        for index, block in enumerate(layerwise.blocks):
            with torch.no_grad(), layerwise.block(index):
                assert filled(layerwise) == size(block)
                hidden = [layerwise.run(index, h) for h in hidden]
            assert filled(layerwise) == 0
        with torch.no_grad(), layerwise.head() as head:
            assert filled(layerwise) <= size(head) + 4 * 4 * layerwise.width
            logits = torch.cat([layerwise.logits(h) for h in hidden])
        assert filled(layerwise) == 0
        torch.testing.assert_close(logits, whole(model, texts), atol=2e-5, rtol=1e-4)


def test_windows_and_caps_matter_at_these_sizes(tmp_path: Path) -> None:
    """The test above would not see a lost sliding window or soft-cap, were they without effect here."""
    texts = windows(1, LENGTHS[1])
    kept = whole(make_model(tmp_path / "a", "gemma2"), texts)
    for change in (
        {"sliding_window": 64},
        {"attn_logit_softcapping": 50.0},
        {"final_logit_softcapping": 30.0},
    ):
        assert (whole(make_model(tmp_path / "b", "gemma2", **change), texts) - kept).abs().max() > 1e-2


def test_names_are_the_checkpoints_own(tmp_path: Path) -> None:
    make_model(tmp_path, "phi3", "partial")
    checkpoint = open_checkpoint(tmp_path)
    layerwise = LayerwiseModel(checkpoint)
    found = {
        layerwise.source_of(module, index)
        for index, block in enumerate(layerwise.blocks)
        for module in block.modules()
        if isinstance(module, nn.Linear)
    }
    for index, block in enumerate(layerwise.blocks):
        linears = layerwise.linears(index)
        assert list(linears) == [module for module in block.modules() if isinstance(module, nn.Linear)]
        assert all(layerwise.source_of(module, index) == name for module, name in linears.items())
    with layerwise.head() as head:
        assert layerwise.source_of(head) == "lm_head.weight"
    assert found | {layerwise.source_of(layerwise.embedding)} == {
        s.source for s in checkpoint.specs() if s.linear
    }


def test_missing_tensor_is_named_and_nothing_stays(tmp_path: Path) -> None:
    make_model(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    tensors = {n: t for n, t in checkpoint.tensors.items() if n != "model.layers.1.mlp.up_proj.weight"}
    layerwise = LayerwiseModel(Checkpoint(**{**vars(checkpoint), "tensors": tensors}))
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj"), layerwise.block(1):
        pass
    assert filled(layerwise) == 0


def test_a_failing_block_is_emptied(tmp_path: Path) -> None:
    make_model(tmp_path)
    layerwise = LayerwiseModel(open_checkpoint(tmp_path))
    with pytest.raises(ZeroDivisionError), layerwise.block(0):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), layerwise.head():
        raise ZeroDivisionError
    assert filled(layerwise) == 0


def test_hidden_states_round_trip(tmp_path: Path) -> None:
    states = [torch.randn(1, 5, 8) for _ in range(3)]
    hidden = Hidden(tmp_path, 3, 5, 8)
    assert not hidden.has("x")
    hidden.write("x", states)
    assert hidden.has("x")
    assert all(torch.equal(a, b) for a, b in zip(hidden.read("x"), states, strict=True))
    hidden.write(1, states)
    hidden.drop("x")
    assert not hidden.has("x")
    assert hidden.has(1)
    hidden.clear()
    assert not list(tmp_path.iterdir())


def test_half_written_hidden_states_do_not_count(tmp_path: Path) -> None:
    hidden = Hidden(tmp_path, 3, 5, 8)

    def dying() -> Any:
        yield torch.randn(1, 5, 8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hidden.write(0, dying())
    assert not hidden.has(0)
    assert not list(tmp_path.iterdir())
    # What a process killed in the middle leaves behind.
    (tmp_path / "hidden-0.f32.partial").write_bytes(b"half")
    assert not hidden.has(0)
    hidden.write(0, [torch.ones(1, 5, 8)] * 3)
    assert len(list(hidden.read(0))) == 3
