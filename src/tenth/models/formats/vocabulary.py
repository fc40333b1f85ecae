"""Tokens by id as llama.cpp knows them, and the GGUF keys that a tokenizer becomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.h, llama_token_type


Keys = dict[str, Any]


@dataclass
class TokenizerInfo:
    """GGUF keys, and what a person should know about differences that remain."""

    keys: Keys
    notes: list[str] = field(default_factory=list)


@dataclass
class Vocabulary:
    """Tokens by id, before padding to the model's size."""

    texts: dict[int, str]
    types: dict[int, int]
    scores: dict[int, float]

    def add(self, token: int, text: str, kind: int, score: float = 0.0) -> None:
        """Set the token with this id."""
        self.texts[token], self.types[token], self.scores[token] = text, kind, score

    def is_control(self, token: int) -> bool:
        """Whether it is never text."""
        return self.types[token] == CONTROL


UNREACHABLE = -1e9  # score of a token that no merge makes
