"""What tasks run on: a GGUF in llama.cpp, or a Hugging Face folder in transformers; both as
`TextModel`.

Opened in a child process only. The Hugging Face route is the check on the other one: float32, and nothing
that was rolled back is ever used again (its cache serves growing texts alone), so where both agree on the
same weights, tokens and rolled-back caches are right. It holds the whole model in memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tenth.core.errors import InputError
from tenth.core.records import Runtime
from tenth.models.checkpoint import open_config
from tenth.runtime.llama import Session
from tenth.runtime.tokens import tokenizer

LONGEST = 4096  # tokens of context, where neither a bundle nor the model says less
_PIECE = 256  # tokens that llama.cpp evaluates at once: its logits are that many rows


class TextModel(Protocol):
    """A model with a text of token ids in it, at most n_ctx long."""

    n_ctx: int
    start: int  # the token before an empty text

    def encode(self, text: str) -> list[int]:
        """Ids, with the begin token where the model's tokenizer adds one."""

    def text(self, before: int, ids: Sequence[int]) -> str:
        """What ids add to a text that ends with the token `before`."""

    def ends(self, token: int) -> bool:
        """Whether a token ends a text."""

    def extend(self, keep: int, ids: Sequence[int], every: bool) -> np.ndarray:
        """Forget all but `keep` tokens, go on with ids; logits [ids, vocabulary], or [1, .] of the last."""


@contextlib.contextmanager
def opened(path: Path, runtime: Runtime | None, threads: int) -> Iterator[TextModel]:
    """A folder is a Hugging Face model, a file a GGUF, run as `runtime` says (an F32 cache where it is None).

    Raises InputError for what is neither, NativeError where llama.cpp refuses.
    """
    if path.is_dir():
        yield HuggingFaceText(path, threads)
        return
    exact = {"type_k": "f32", "type_v": "f32", "flash_attention": False}
    settings = runtime.model_dump() if runtime else {"n_ctx": _trained(path), **exact}
    runtime = Runtime.model_validate(settings | {"n_ubatch": _PIECE, "threads": threads})
    with Session.open(path, runtime, swa_full=True) as session:
        yield LlamaText(session, runtime.n_ctx)


def _trained(path: Path) -> int:
    """The context that a GGUF was made for, at most `LONGEST`."""
    with Session.open(path, Runtime(n_ctx=8, n_ubatch=8, threads=1)) as session:
        return max(1, min(session.n_trained, LONGEST))


class LlamaText(TextModel):
    """llama.cpp: the cache is rolled back."""

    def __init__(self, session: Session, n_ctx: int) -> None:
        self._session, self.n_ctx = session, n_ctx  # llama.cpp's own is rounded up
        self._ids: list[int] = []
        self._begin = session.begin
        self.start = self._begin[0] if self._begin else max(session.end, 0)

    def encode(self, text: str) -> list[int]:
        """Ids, with the begin token where the model wants one."""
        return [*self._begin, *self._session.tokenize(text, special=False).tolist()]

    def text(self, before: int, ids: Sequence[int]) -> str:
        """What ids add to a text."""
        del before  # a piece carries its own space
        return b"".join(self._session.piece(i) for i in ids).decode("utf-8", "replace")

    def ends(self, token: int) -> bool:
        """Whether a token ends a text."""
        return self._session.ends(token)

    def extend(self, keep: int, ids: Sequence[int], every: bool) -> np.ndarray:
        """Roll back to `keep` tokens and evaluate ids; a model without roll-back starts again."""
        if not self._session.keep(keep):
            self._session.decode(self._ids[:keep], 0, all_logits=False)
        self._ids[keep:] = ids
        return self._session.decode(ids, keep, all_logits=every)


class HuggingFaceText(TextModel):
    """transformers in float32 on the processor; never runs code from the folder."""

    def __init__(self, folder: Path, threads: int) -> None:
        os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
        logging.getLogger("transformers").setLevel(logging.ERROR)
        import torch
        from transformers import AutoModelForCausalLM

        if threads:
            torch.set_num_threads(threads)
        config, architecture = open_config(folder)
        self.n_ctx = max(1, min(architecture.context_limit(config)[0], LONGEST))
        self._tokenizer = tokenizer(folder)
        auto: Any = AutoModelForCausalLM
        try:
            self._model = auto.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            ).eval()
        except Exception as error:  # the library raises many kinds for a broken folder
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"{folder}: transformers cannot open the model: {reason:.200}") from None
        self._ids: list[int] = []
        self._cache: object = None
        self._begin, end = self._tokenizer.begin, self._tokenizer.end
        self.start = self._tokenizer.start or 0
        more = self._model.generation_config.eos_token_id
        self._ends = {end, *(more if isinstance(more, list) else [more])} - {None}

    def encode(self, text: str) -> list[int]:
        """Ids, with the begin token where the tokenizer adds one."""
        return [*self._begin, *self._tokenizer.encode(text).tolist()]

    def text(self, before: int, ids: Sequence[int]) -> str:
        """What ids add to a text that ends with the token `before`."""
        whole, beginning = (self._tokenizer.decode(np.array(i)) for i in ([before, *ids], [before]))
        return whole[len(beginning) :]

    def ends(self, token: int) -> bool:
        """Whether a token ends a text."""
        return token in self._ends

    def extend(self, keep: int, ids: Sequence[int], every: bool) -> np.ndarray:
        """Go on from the cache where nothing is forgotten, else evaluate all again."""
        import torch

        new = list(ids)
        if keep != len(self._ids) or self._cache is None:
            self._ids, self._cache, new = self._ids[:keep], None, self._ids[:keep] + new
        with torch.inference_mode():
            out = self._model(
                torch.tensor([new]),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=len(ids) if every else 1,
            )
        self._ids, self._cache = [*self._ids, *ids], out.past_key_values
        logits: np.ndarray = out.logits[0].numpy()
        return logits
