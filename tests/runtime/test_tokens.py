"""The tokenizer of a model folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_tokenizer

from tenth.core.errors import InputError
from tenth.runtime.tokens import tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(folder, "gpt-2")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_tokenizer_round_trip_and_a_folder_without_one(model: Path, tmp_path: Path) -> None:
    tokens = tokenizer(model)
    for sample in ("Hello  world\n\n\tif x == 10:", "naïve café 🙂", "<|im_start|>user"):
        assert tokens.decode(tokens.encode(sample)) == sample
    assert len(tokens.encode("<|im_start|>")) == 1
    with pytest.raises(InputError, match="tokenizer") as caught:
        tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
