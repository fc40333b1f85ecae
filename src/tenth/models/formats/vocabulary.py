"""Tokens by id as llama.cpp knows them, and the GGUF keys that a tokenizer becomes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.h, llama_token_type


Keys = dict[str, Any]  # of GGUF: what the gguf library writes as their values


@dataclass(frozen=True)
class Deviation:
    """Where llama.cpp must give other ids than the folder's tokenizer.

    concerns: whether a text is one of those.
    """

    note: str
    concerns: Callable[[str], bool]


@dataclass
class TokenizerInfo:
    """GGUF keys, and what a person should know about differences that remain.

    swallows: whether all special tokens swallow white space behind them, as Phi-3's do.
    """

    keys: Keys
    deviations: list[Deviation] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    swallows: bool = False

    @property
    def notes(self) -> list[str]:
        """All of it, one sentence each."""
        return list(dict.fromkeys([*self.remarks, *(deviation.note for deviation in self.deviations)]))

    def named(self, name: str) -> str:
        """The model's name for the GGUF: llama.cpp's special tokens swallow white space if it is Phi-3's."""
        if not self.swallows:
            return re.sub("(?i)(phi)-?(3)|(modern)-(bert)", r"\1\3 \2\4", name)
        return name if re.search("(?i)phi-?3", name) else f"{name} (phi-3)"


@dataclass
class Vocabulary:
    """Tokens by id, before padding to the model's size."""

    texts: dict[int, str]
    types: dict[int, int]
    scores: dict[int, float]

    def add(self, token: int, text: str, kind: int, score: float = 0.0) -> None:
        """Set the token with this id."""
        self.texts[token], self.types[token], self.scores[token] = text, kind, score

    def remove(self, token: int) -> str:
        """Take the token with this id out; returns its text."""
        del self.types[token], self.scores[token]
        return self.texts.pop(token)

    def is_control(self, token: int) -> bool:
        """Whether it is never text."""
        return self.types[token] == CONTROL


UNREACHABLE = -1e9  # score of a token that no merge makes
