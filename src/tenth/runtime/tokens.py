"""The model's own Hugging Face tokenizer, for texts; llama.cpp uses the one in the GGUF."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from tenth.core.errors import InputError


class Tokenizer:
    """Text to ids and back, without special tokens added."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.begin: list[int] = inner("")["input_ids"][:1]  # what it puts before a text by itself
        self.end: int | None = inner.eos_token_id
        self.start = self.begin[0] if self.begin else self.end  # a text's first token stands behind it

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [tokens]; markers of special tokens in it become those tokens."""
        return np.asarray(self._inner(text, add_special_tokens=False)["input_ids"], np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids, special tokens included."""
        text: str = self._inner.decode(
            ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text


def tokenizer(model: Path) -> Tokenizer:
    """Of a model folder; never runs code from it. InputError where there is none or it is broken."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers import AutoTokenizer

    try:
        inner = AutoTokenizer.from_pretrained(model, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the library raises many kinds for a broken folder
        raise InputError(
            f"{model}: its tokenizer cannot be opened: {str(error).splitlines()[0]:.200}"
        ) from None
    return Tokenizer(inner)
