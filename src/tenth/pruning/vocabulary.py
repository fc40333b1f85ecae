"""Fewer tokens: those that a text, or the scripts of some languages, has least use for.

A token that goes falls apart into the two that its last merge joins, so it costs one more token at each of
its uses, and hands its count on to those two. Only a token that no other is merged from can go. So the
cheapest such token goes, again and again. The order is that of the encoded length, which is not the loss: a
model has never seen words spelled in these pieces, and the words it would have said are no longer there to be
said. Rows that no text uses go for nothing; beyond them the model must be healed (docs/log.md has figures).
Only bits per byte compare: of other tokens, other per-token figures mean other things.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tenth.core.errors import InputError
from tenth.core.jobs import Emit
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.models.edit import take
from tenth.models.formats.folder import write_folder
from tenth.models.formats.trim import Tokens, renumbered, tokens_of, trimmed
from tenth.models.text import read
from tenth.pruning.scripts import foreign, scripts
from tenth.pruning.settings import TrimResult, TrimSettings
from tenth.runtime.tokens import tokenizer

PIECE = 1 << 12  # characters tokenised together, up to the end of a line
KEPT = "kept.npy"  # in a trimmed folder: int64, the original's id of each token


def counted(folder: Path, text: str) -> np.ndarray:
    """How often the model's own tokenizer gives each id in a text, int64 [highest id there + 1].

    The text is cut into pieces at the ends of lines, so runs of empty lines may count a little otherwise.
    """
    tokens = tokenizer(folder)
    counts = np.zeros(1, np.int64)
    for piece in _pieces(text):
        longer = np.bincount(tokens.encode(piece), minlength=len(counts))
        longer[: len(counts)] += counts
        counts = longer
    return counts


def chosen(folder: Path, counts: np.ndarray, size: int, allowed: frozenset[str] | None = None) -> list[int]:
    """The ids to keep, ascending, at most `size`: those whose loss lengthens the counted text least.

    Special and added tokens and single bytes always stay. allowed: scripts (scripts.py); a token of other
    ones goes whatever its count. Ids without a token (padding of the embedding) go, and of tokens with the
    same count the highest id first: the later merge. InputError for a size that is too small says the least.
    """
    tokens = tokens_of(folder)
    least = len(tokens.fixed) + bool(tokens.parts)  # no tokenizer is without merges
    if size < least:
        raise InputError(
            f"a vocabulary of {size} is too small: special tokens, single bytes and one more are {least}"
        )
    banned = _banned(tokens, allowed) if allowed is not None else frozenset()
    uses = np.zeros(max([*tokens.texts, len(counts)]) + 1, np.int64)
    uses[: len(counts)] = counts
    made = dict.fromkeys(tokens.texts, 0)  # how many merges still need the token
    for parts in tokens.parts.values():
        for part in parts:
            made[part] += 1

    def cost(token: int) -> int:
        return -1 if token in banned else int(uses[token]) * (len(tokens.parts[token]) - 1)

    queue = [(cost(token), -token) for token in tokens.parts if not made[token]]
    heapq.heapify(queue)
    kept = {*tokens.fixed, *tokens.parts}
    while queue and (len(kept) > size or queue[0][0] < 0):
        value, token = heapq.heappop(queue)
        token = -token
        if cost(token) > value:  # it became a piece of something that went since
            heapq.heappush(queue, (cost(token), -token))
            continue
        kept.remove(token)
        for part in tokens.parts[token]:
            uses[part] += uses[token]
            made[part] -= 1
            if not made[part] and part in tokens.parts:
                heapq.heappush(queue, (cost(part), -part))
    return sorted(kept)


def retokenize(folder: Path, kept: Sequence[int]) -> list[tuple[int, ...]]:
    """The new ids that each of the original's becomes: itself, or the pieces it falls apart into; none for an
    id without a token. A text so translated is, but for a few words in ten thousand, the text as the trimmed
    tokenizer cuts it: the rest merges across the seam of two tokens that are gone.
    """
    tokens, new = tokens_of(folder), {old: place for place, old in enumerate(kept)}
    pieces: list[tuple[int, ...]] = [()] * (1 + max([*tokens.texts, *kept]))
    for token, place in new.items():
        pieces[token] = (place,)
    for token in sorted(tokens.parts, key=lambda token: len(tokens.texts[token])):
        if token not in new:
            pieces[token] = tuple(piece for part in tokens.parts[token] for piece in pieces[part])
    return pieces


def trim(
    checkpoint: Checkpoint, size: int, text: str, languages: Sequence[str] = ()
) -> tuple[Checkpoint, dict[str, bytes], list[int]]:
    """(the checkpoint with at most `size` tokens, its tokenizer's files, the ids kept), by uses in a text.

    languages: codes of those whose scripts alone are kept; where `text` is empty the merges' own order
    decides. InputError as `chosen` and `take` raise it.
    """
    folder = checkpoint.path
    kept = chosen(folder, counted(folder, text), size, scripts(languages) if languages else None)
    new = {old: place for place, old in enumerate(kept)}
    edited = take(checkpoint, "vocab", kept)
    edited = dataclasses.replace(edited, config=renumbered(edited.config, new))
    return edited, trimmed(folder, kept), kept


def write_trimmed(settings: TrimSettings, emit: Emit) -> TrimResult:
    """Write the model with fewer tokens as a Hugging Face folder, and kept.npy beside it.

    Emits {"done", "total"} in weights. Peak memory: the text and its tokenizer, then a slice of a tensor.
    """
    checkpoint, folder = open_checkpoint(settings.model), settings.folder
    text = "" if settings.languages and settings.text is None else read(settings.text)
    edited, files, kept = trim(checkpoint, settings.size, text, settings.languages)
    total = sum(spec.count for spec in edited.specs())
    write_folder(edited, folder, settings.dtype, files, lambda done: emit({"done": done, "total": total}))
    np.save(folder / KEPT, np.array(kept, np.int64), allow_pickle=False)
    return TrimResult(
        vocabulary=len(kept),
        before=checkpoint.shape.vocab,
        tokens=int(counted(folder, text).sum()),
        tokens_before=int(counted(checkpoint.path, text).sum()),
    )


def _banned(tokens: Tokens, allowed: frozenset[str]) -> frozenset[int]:
    """Tokens of other scripts, and those merged from them."""
    banned: set[int] = set()
    for token in sorted(tokens.parts, key=lambda token: len(tokens.texts[token])):
        if not banned.isdisjoint(tokens.parts[token]) or foreign(tokens.spelled(token), allowed):
            banned.add(token)
    return frozenset(banned)


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that end with a line, where lines are not longer than a piece."""
    at = 0
    while at < len(text):
        end = text.rfind("\n", at, at + PIECE) + 1
        end = end if end > at and at + PIECE < len(text) else at + PIECE
        yield text[at:end]
        at = end
