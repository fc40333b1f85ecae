"""Windows of tokens to heal on, from a text of any length: pieces drawn over all of it, as many as needed."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from tenth.calibration.windows import Cutter, hashes
from tenth.core.errors import InputError
from tenth.core.jobs import Emit
from tenth.core.store import atomic
from tenth.distillation.settings import CorpusSettings
from tenth.models.text import bundled
from tenth.runtime.tokens import tokenizer

PIECE = 1 << 16  # characters, of whole lines where there are any
KNOWN = 16  # tokens in a row by which a text that is judged on is known again


def write_windows(settings: CorpusSettings, emit: Emit) -> int:
    """Write `windows` into a file; returns how many there are. Emits {"done", "total"} in tokens."""
    total = settings.tokens
    held_out = np.load(settings.held_out, allow_pickle=False) if settings.held_out else None
    corpus = windows(
        settings.model,
        settings.text,
        settings.length,
        total,
        settings.seed,
        held_out,
        lambda done: emit({"done": min(done, total), "total": total}),
        settings.frame,
    )
    with atomic(settings.destination) as partial, partial.open("wb") as file:
        np.save(file, corpus, allow_pickle=False)
    return len(corpus)


def windows(
    model: Path,
    text: Path | None,
    length: int,
    tokens: int,
    seed: int,
    held_out: np.ndarray | None = None,
    progress: Callable[[int], None] = lambda done: None,  # noqa: ARG005
    frame: tuple[str, ...] = (),
) -> np.ndarray:
    """int32 [windows, length] in the ids of the model's tokenizer, mixed: so many `tokens`, or all there are.

    They begin as in calibration/windows.py, and some are in the chat template where its `frame` is given.
    text: a UTF-8 file, also compressed (.zst), or None for the bundled one. held_out: windows in the same ids
    whose text is left out. Peak memory: 8 bytes a token. InputError for a file that cannot be read and
    for fewer than two windows.
    """
    cutter, random = Cutter(tokenizer(model), length, frame), np.random.default_rng(seed)
    known = np.unique(hashes(held_out, KNOWN)) if held_out is not None else np.empty(0, np.uint64)
    order = random.permutation(sum(1 for _ in _pieces(text)))
    most, count, tried, parts = math.ceil(tokens / length), 0, 0, [np.empty((0, length), np.int32)]
    while count < most and tried < len(order):
        of_a_piece = count / tried if tried else PIECE / 4 / length  # windows
        chosen = set(order[tried : tried + math.ceil((most - count) / max(of_a_piece, 0.01))].tolist())
        for number, piece in enumerate(_pieces(text)):
            if number in chosen:
                rows = cutter.rows(cutter.tokens.encode(piece))
                parts.append(cutter.mixed(rows[~np.isin(hashes(rows, KNOWN), known).any(1)])[0])
                count += len(parts[-1])
                progress(count * length)
        tried += len(chosen)
    if count < 2:
        raise InputError(
            f"{text or 'the bundled text'} is too short to heal on: it has {count} windows of {length} tokens"
        )
    return np.concatenate(parts)[random.permutation(count)[:most]]


def _pieces(text: Path | None) -> Iterator[str]:
    """The text in order, PIECE characters or a little less at a time."""
    rest = ""
    try:
        with _opened(text) as file:
            while new := file.read(PIECE - len(rest)):
                rest += new
                if "\0" in new:
                    raise InputError(f"{text} holds NUL characters; give plain text")
                if len(rest) == PIECE:
                    cut = rest.rfind("\n") + 1 or rest.rfind(" ") + 1 or PIECE
                    yield rest[:cut]
                    rest = rest[cut:]
    except UnicodeDecodeError as error:
        raise InputError(f"{text} is no UTF-8 text ({error.reason}); convert it first") from None
    except OSError as error:
        raise InputError(f"cannot read the text {text}: {error.strerror or error}") from None
    if rest:
        yield rest


@contextmanager
def _opened(text: Path | None) -> Iterator[IO[str]]:
    if text is None:
        yield io.StringIO(bundled())
    elif text.suffix != ".zst":
        with text.open(encoding="utf-8") as file:
            yield file
    else:
        zstd = _zstd(text)
        try:
            with zstd.open(text, "rt", encoding="utf-8") as file:
                yield file
        except (zstd.ZstdError, EOFError) as error:
            raise InputError(f"{text} cannot be unpacked: {error}") from None


def _zstd(text: Path) -> Any:
    """The module that reads it: Python's since 3.14, or zstandard; both have `open` and ZstdError."""
    for name in ("compression.zstd", "zstandard"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise InputError(f"{text} needs Python 3.14 or pip install zstandard; or unpack it: zstd -d {text}")
