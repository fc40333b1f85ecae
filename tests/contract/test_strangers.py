"""A sample of bench/strangers.py: a config's key left out, null or changed, and logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from configs import changed, config_cell

from tenth.models import arch

SMALL = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")  # whose defaults are large
EACH = 5  # cells of a family


def sample(family: str) -> list[tuple[str, dict[str, Any]]]:
    """Of every family others, always the same."""
    cells = [cell for cell in changed(family) if not any(f"{key} left" in cell[0] for key in SMALL)]
    chosen = np.random.default_rng(arch.names().index(family)).permutation(len(cells))[:EACH]
    return [cells[i] for i in chosen]


@pytest.mark.parametrize("family", arch.names())
def test_a_sample_of_configs(family: str, tmp_path: Path) -> None:
    for number, (name, config) in enumerate(sample(family)):
        found = config_cell(tmp_path / f"model-{number}", family, config)
        assert not found.silent, (name, found)


def test_a_misread_config_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (name, config), *_ = changed("qwen2")
    assert "as it is" in name
    assert config_cell(tmp_path / "sound", "qwen2", config).verdict == "equal"
    family = type(arch.family("qwen2"))
    monkeypatch.setattr(family, "epsilon", lambda self, _: {"qwen2.attention.layer_norm_rms_epsilon": 0.5})
    assert config_cell(tmp_path / "misread", "qwen2", config).verdict == "different"
