"""Gram matrices against plain sums over the whole model's own hooks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from tenth import gram


def naive(folder: Path, tokens: np.ndarray) -> dict[str, np.ndarray]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    sums: dict[str, np.ndarray] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":

            def add(_module: object, args: tuple[torch.Tensor, ...], name: str = name) -> None:
                x = args[0].reshape(-1, args[0].shape[-1]).double().numpy()
                sums[f"{name}.weight"] = sums.get(f"{name}.weight", 0) + x.T @ x / tokens.size

            module.register_forward_pre_hook(add)
    with torch.no_grad():
        model(torch.from_numpy(tokens.astype(np.int64)), use_cache=False)
    return sums


@pytest.mark.parametrize(("family", "shared"), [("llama", 4), ("phi3", 4), ("phi", 3)])
def test_equals_the_sum_over_hooks_and_shares_what_is_read_twice(
    family: str, shared: int, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    tiny.make_model(folder, family)
    tokens = np.random.default_rng(0).integers(0, 200, (3, 24)).astype(np.int32)
    np.save(tmp_path / "tokens.npy", tokens)
    out = tmp_path / "grams"
    out.mkdir()
    events: list[dict[str, float]] = []
    gram.run(events.append, str(folder), str(tmp_path / "tokens.npy"), str(out), 1)
    found, wanted = gram.Grams(out), naive(folder, tokens)
    assert all(name in found for name in wanted)
    for name, matrix in wanted.items():
        np.testing.assert_allclose(found[name], matrix, rtol=1e-4, atol=1e-6 * np.abs(matrix).max())
    blocks = len(list(out.glob("sites-*.json")))
    assert len(list(out.glob("gram-*.f32"))) == shared * blocks
    assert events[-1]["done"] == events[-1]["total"] == blocks
    assert not list(out.glob("hidden-*"))


def test_a_killed_run_goes_on_to_the_same_matrices(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny.make_model(folder, "llama")
    tokens = np.random.default_rng(1).integers(0, 200, (2, 16)).astype(np.int32)
    np.save(tmp_path / "tokens.npy", tokens)

    class KilledError(Exception):
        pass

    def kill(event: dict[str, float]) -> None:
        if event["done"] == 1:
            raise KilledError

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    gram.run(lambda event: None, str(folder), str(tmp_path / "tokens.npy"), str(whole), 1)
    with pytest.raises(KilledError):
        gram.run(kill, str(folder), str(tmp_path / "tokens.npy"), str(broken), 1)
    gram.run(lambda event: None, str(folder), str(tmp_path / "tokens.npy"), str(broken), 1)
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in broken.iterdir())
    assert all((whole / name).read_bytes() == (broken / name).read_bytes() for name in names)
