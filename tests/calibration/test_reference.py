"""The original's log-probabilities: transformers' own, kept as float16, the same after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Killed
from tiny import VOCABULARY, make_model

from tenth.calibration.reference import run_original
from tenth.calibration.stats import windows_within
from tenth.core.jobs import Compute


def collect(model: Path, folder: Path, emit: Any = lambda event: None) -> None:
    folder.mkdir(exist_ok=True)
    run_original(model, model / "tokens.npy", 77, 2, folder, Compute(threads=1), emit)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_is_the_original_and_survives_a_kill(family: str, tmp_path: Path) -> None:
    model = make_model(tmp_path, family)
    windows = np.random.default_rng(0).integers(0, VOCABULARY, (3, 20)).astype(np.int32)
    np.save(tmp_path / "tokens.npy", windows)
    events: list[dict[str, Any]] = []
    collect(tmp_path, tmp_path / "whole", events.append)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(windows.astype(np.int64)), use_cache=False).logits
    found = np.load(tmp_path / "whole" / "logprobs.npy", mmap_mode="r")
    assert found.dtype == np.float16
    assert found.shape == (3, 19, VOCABULARY)
    np.testing.assert_allclose(found, logits[:, :-1].log_softmax(-1).numpy(), rtol=2**-10, atol=2e-4)
    np.testing.assert_array_equal(np.load(tmp_path / "whole" / "tokens.npy"), windows)
    kept = json.loads((tmp_path / "whole" / "reference.json").read_text())
    assert kept == {"bytes": 77, "windows": 3, "context": 20, "plain": 2}
    assert events[-1]["done"] == events[-1]["total"]

    for death in range(len(events)):
        seen: list[dict[str, Any]] = []

        def emit(event: dict[str, Any], seen: list[dict[str, Any]] = seen, death: int = death) -> None:
            seen.append(event)
            if len(seen) > death:
                raise Killed

        folder = tmp_path / f"killed-{death}"
        with pytest.raises(Killed):
            collect(tmp_path, folder, emit)
        collect(tmp_path, folder)
        assert sorted(p.name for p in folder.iterdir()) == ["logprobs.npy", "reference.json", "tokens.npy"]
        np.testing.assert_array_equal(np.load(folder / "logprobs.npy"), found)


def test_large_vocabularies_get_fewer_windows() -> None:
    assert windows_within(48, 512, 16_384) == 48
    assert windows_within(48, 512, 262_144) == 7
    assert windows_within(48, 512, 10**9) == 1
