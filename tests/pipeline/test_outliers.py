"""A weight that few types can hold: they are not offered for its matrix, and the fit goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from commands import Shell
from gguf import GGUFReader
from layouts import save, tensors

from tenth.core.records import Scorecard


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.embed_tokens.weight", "token_embd.weight"),  # the head too: log-probabilities of -400,000
    ],
)
def test_an_outlier(tmp_path: Path, source: str, name: str) -> None:
    tied = source.startswith("model.embed")
    tiny.make_model(
        tmp_path / "model",
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        tie_word_embeddings=tied,
    )
    found = tensors(tmp_path / "model")
    found[source][200, 3] = 40_000.0
    save(tmp_path / "model", found)
    words: list[object] = [
        "--memory",
        "100MB",
        "--context",
        64,
        "--windows",
        8,
        "--threads",
        1,
        "--effort",
        "fast",
        "--baselines",
        1,
    ]
    words += ["--work", tmp_path / "work", "-o", tmp_path / "out"]
    done = Shell(tmp_path).run("fit", tmp_path / "model", *words)
    assert done.returncode == 0, done.stderr
    held = {t.name: t for t in GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert held[name].tensor_type.name in ("F16", "BF16", "Q8_0", "Q4_0")
    card = Scorecard.model_validate_json((tmp_path / "out" / "scorecard.json").read_text())
    ours = card.candidates[0]
    assert np.isfinite([reading.value for reading in ours.readings]).all()
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["predicted_kl"] < 0.1
