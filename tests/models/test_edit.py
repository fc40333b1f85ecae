"""Structural edits: what is left equals the same rows and columns of the original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import VARIANTS, make_model

from tenth.core.errors import InputError
from tenth.models.checkpoint import open_checkpoint
from tenth.models.edit import keep_layers, take


def test_edits_compose_and_follow_config(tmp_path: Path) -> None:
    make_model(tmp_path)
    old = open_checkpoint(tmp_path)
    words, width = [5, 6, 7, 2, 300], [9, 1, 2, 90]
    new = keep_layers(take(take(old, "vocab", words), "ffn", width), [1])
    new.specs()  # every shape is what the config implies
    assert (new.config["vocab_size"], new.config["num_hidden_layers"]) == (5, 1)
    for name, rows in (("embed_tokens", words), ("layers.1.mlp.up_proj", width)):
        there = old.tensors[f"model.{name}.weight"].load()[rows]
        here = new.tensors[f"model.{name.replace('layers.1', 'layers.0')}.weight"]
        assert np.array_equal(here.load(), there)
        assert np.array_equal(here.load(1, 4), there[1:4])
    down = old.tensors["model.layers.1.mlp.down_proj.weight"].load()[:, width]
    assert np.array_equal(new.tensors["model.layers.0.mlp.down_proj.weight"].load(), down)
    again = take(take(old, "vocab", words), "vocab", [4, 0])
    assert np.array_equal(
        again.tensors["model.embed_tokens.weight"].load(),
        old.tensors["model.embed_tokens.weight"].load()[[300, 5]],
    )


@pytest.mark.parametrize("index", [[], [1, 1], [-1], [384]])
def test_bad_index_is_refused(index: list[int], tmp_path: Path) -> None:
    make_model(tmp_path)
    with pytest.raises(InputError, match="distinct numbers"):
        take(open_checkpoint(tmp_path), "vocab", index)


def test_what_config_cannot_say_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path)
    for wrong in (
        lambda c: take(c, "vocab", [0], layer=1),
        lambda c: take(c, "ffn", [0], layer=2),
        lambda c: take(c, "ffn", [], layer=1),
        lambda c: take(c, "kv_heads", [2]),
        lambda c: take(c, "kv_heads", []),
        lambda c: take(c, "hidden", [0]),
        lambda c: keep_layers(c, [1, 0]),
    ):
        with pytest.raises(InputError):
            wrong(open_checkpoint(tmp_path))


@pytest.mark.parametrize("family", sorted(VARIANTS))
def test_every_family_fits_its_config(family: str, tmp_path: Path) -> None:
    make_model(tmp_path, family, next(iter(VARIANTS[family])))
    old = open_checkpoint(tmp_path)
    old.specs()
    take(take(old, "vocab", list(range(7, 300))), "ffn", list(range(3, 67))).specs()
