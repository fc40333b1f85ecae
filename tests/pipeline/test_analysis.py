"""What is said of a model before it is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from tenth.models.checkpoint import open_checkpoint
from tenth.pipeline.analysis import rotation


@pytest.mark.parametrize(
    ("family", "original", "context", "said"),
    [
        ("phi3", 600, 512, None),
        ("phi3", 600, 600, "--context 512"),  # llama.cpp rounds 600 up to 768
        ("phi3", 600, 2048, "--context 512"),
        ("phi3", 768, 768, None),
        ("phi3", 32, 64, "that difference"),
        ("llama", None, 2048, None),
    ],
)
def test_a_context_above_the_original_one_is_named(
    family: str, original: int | None, context: int, said: str | None, tmp_path: Path
) -> None:
    rope = {} if original is None else tiny.longrope(8, original=original)
    tiny.make_model(tmp_path, family, **{**rope, "max_position_embeddings": 2048})
    notes = rotation(open_checkpoint(tmp_path), context)
    assert len(notes) == (said is not None)
    assert said is None or (said in notes[0] and f"more than {original} tokens" in notes[0])
