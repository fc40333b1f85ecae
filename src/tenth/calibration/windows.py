"""Texts as windows of token ids, by the model's own tokenizer: what is calibrated, trained and judged on.

A window begins as a text does: where the tokenizer puts a token first (`Tokenizer.begin`), every window has
it, as in llama.cpp's perplexity and imatrix, and each of its other tokens is predicted. Where it puts none,
the first token of a window is given and the others are predicted. A share of the windows of an instruction
model has its text as turns in the model's chat template (models/chat_template.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenth.calibration.same_tokens import check_tokens
from tenth.core.errors import InputError
from tenth.core.records import Record
from tenth.models.text import read
from tenth.runtime.template import check_template
from tenth.runtime.tokens import Tokenizer, tokenizer

LENGTH = 512  # tokens of a window, unless the model or the wanted context is shorter
HELD_OUT = 0.15  # of the calibration text's end, where no other text is given to judge on
FEWEST = 8  # windows
LEFT = 4  # windows to judge on, after those that calibration sees were dropped
TOGETHER = 4096  # windows at most among which unseen ones are looked for in one go
KNOWN = 32  # tokens in a row by which a text is known again
SHARED = 0.25  # of the places in a window where known ones begin: more, and it counts as seen
CHAT_EVERY = 4  # one window in so many has its text in turns, where the model has a chat template
TURN = 64  # tokens of a turn, about
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # of the hash of tokens in a row; odd
_HASHED = 1 << 20  # tokens whose hashes are in memory together


class Wanted(Record):
    """How many windows of which length are cut from a text."""

    length: int  # tokens
    calibrate: int  # windows to calibrate on
    train: int  # and further ones to train on, as far as the text goes
    judge: int  # held-out windows
    seed: int  # of the draw of the first two
    frame: tuple[str, ...] = ()  # what the chat template puts around turns; empty: no window has any


class Texts(Record):
    """Windows of token ids on disk."""

    folder: Path
    length: int  # tokens of a window
    bytes: int  # UTF-8, of the predicted tokens of the plain held-out windows
    plain: int  # held-out windows of plain text
    chat: int  # further ones, behind them, in the chat template
    dropped: int  # held-out windows that were left out: their text is calibrated on
    begun: bool  # whether every window has the token that the tokenizer puts first

    def notes(self) -> list[str]:
        """What a person must know of the windows to read the figures."""
        notes = []
        if self.begun:
            notes.append("every window begins with the token that the tokenizer puts before a text")
        if self.chat:
            notes.append(
                f"one window in {CHAT_EVERY}, to calibrate, train and judge on, has its text as turns in the"
                " model's chat template; perplexity and bits per byte are of the plain ones"
            )
        if self.dropped:
            notes.append(
                f"{self.dropped} windows of the text to judge on were left out: their text stands in what is"
                " calibrated on"
            )
        return notes

    @property
    def calibration(self) -> Path:
        """npy, int32 [windows, length], to calibrate on."""
        return self.folder / "calibration.npy"

    @property
    def further(self) -> Path:
        """npy, int32 [windows, length], to train on as well."""
        return self.folder / "further.npy"

    @property
    def held_out(self) -> Path:
        """npy, int32 [windows, length], to judge on."""
        return self.folder / "held-out.npy"


@dataclass(frozen=True)
class Cutter:
    """Cuts ids into windows of `length` tokens that begin as a text does.

    frame: what the chat template puts before, between and behind turns (chat_template.py); empty for none.
    """

    tokens: Tokenizer
    length: int
    frame: tuple[str, ...] = ()

    @property
    def own(self) -> int:
        """Tokens of the text in a window."""
        return self.length - len(self.tokens.begin)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """The text's tokens side by side, int32 [windows, own]; what fills no window is left out."""
        count = len(ids) // self.own
        return np.ascontiguousarray(ids[: count * self.own].reshape(count, self.own), dtype=np.int32)

    def windows(self, rows: np.ndarray) -> np.ndarray:
        """The same as windows, int32 [windows, length]."""
        begin = np.asarray(self.tokens.begin, np.int32)
        return np.hstack([np.broadcast_to(begin, (len(rows), len(begin))), rows])

    def mixed(self, rows: np.ndarray) -> tuple[np.ndarray, int]:
        """(windows, how many of them are plain text): behind those, the ones in the chat template."""
        plain, places = self.windows(rows), np.arange(CHAT_EVERY - 1, len(rows), CHAT_EVERY)
        if not self.frame or not len(places):
            return plain, len(plain)
        turned = [(place, self._in_turns(rows[place])) for place in places]
        chat = {place: ids for place, ids in turned if len(ids) == self.length}
        rest = np.delete(plain, list(chat), axis=0)
        return np.stack([*rest, *chat.values()]), len(rest)

    def _in_turns(self, row: np.ndarray) -> np.ndarray:
        """The text of a row as turns of a conversation, int32 [length] or less."""
        words = self.tokens.decode(row).strip("\N{REPLACEMENT CHARACTER}").split(" ")
        turns = min(len(self.frame) - 1, max(2, self.own // TURN))
        parts = [" ".join(part).strip() for part in np.array_split(np.array(words, object), turns)]
        whole = "".join(f"{around}{part}" for around, part in zip(self.frame, parts, strict=False))
        ids, begin = self.tokens.encode(whole + self.frame[turns]), self.tokens.begin
        ids = ids if ids[: len(begin)].tolist() == begin else np.hstack([np.asarray(begin, np.int32), ids])
        return ids[: self.length].astype(np.int32)


def cut(model: Path, text: Path | None, eval_text: Path | None, wanted: Wanted, folder: Path) -> Texts:
    """Cut texts into windows of the model's tokens, and leave them in `folder`.

    Calibration windows are drawn by the seed, further ones from the rest; held-out ones are the first of
    eval_text, or of the calibration text's end, that do not stand in the text that is calibrated on.
    InputError if there is too little text.
    """
    tokens = tokenizer(model)
    check_tokens(model, tokens)
    check_template(tokens.info)
    given = read(text)
    cutter = Cutter(tokens, wanted.length, wanted.frame)
    if cutter.own < 1:
        raise InputError(f"windows of {wanted.length} tokens hold no text; give a longer --context")
    ids = tokens.encode(given)
    rows = cutter.rows(ids)
    if eval_text:
        other = read(eval_text)
        if other == given:
            raise InputError(f"{eval_text} is the same text as is calibrated on; leave --eval-text out")
        held = cutter.rows(tokens.encode(other))
    else:
        end = len(rows) - max(1, round(HELD_OUT * len(rows)))
        ids, rows, held = ids[: end * cutter.own], rows[:end], rows[end:]
    for name, enough, fewest in (("calibrate on", rows, FEWEST), ("judge on", held, 1)):
        if len(enough) < fewest:
            raise InputError(
                f"the text is too short to {name}: {enough.size} tokens in whole windows of {wanted.length},"
                f" needed {fewest * cutter.own}; give a longer --text"
            )
    held, dropped = _unseen(held, ids, wanted.judge, eval_text)
    order = np.random.default_rng(wanted.seed).permutation(len(rows))
    drawn, rest = order[: wanted.calibrate], order[wanted.calibrate :][: wanted.train]
    judged, plain = cutter.mixed(held)
    texts = Texts(
        folder=folder,
        length=wanted.length,
        bytes=sum(_predicted_bytes(tokens, window) for window in judged[:plain]),
        plain=plain,
        chat=len(judged) - plain,
        dropped=dropped,
        begun=bool(tokens.begin),
    )
    np.save(texts.calibration, cutter.mixed(rows[np.sort(drawn)])[0], allow_pickle=False)
    np.save(texts.further, cutter.mixed(rows[np.sort(rest)])[0], allow_pickle=False)
    np.save(texts.held_out, judged, allow_pickle=False)
    return texts


def hashes(rows: np.ndarray, run: int) -> np.ndarray:
    """uint64 [windows, T - run + 1] of every `run` tokens in a row."""
    places = max(0, rows.shape[1] - run + 1)
    total = np.zeros((len(rows), places), np.uint64)
    for i in range(run):
        total *= _MULTIPLIER
        total += rows[:, i : i + places].astype(np.uint64) + np.uint64(1)
    return total


def seen(windows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """bool [windows]: whether more than `SHARED` of a window stands in the text of `ids`, at any offset.

    Memory: some 30 bytes a token of the windows, and 32 MB.
    """
    run = min(KNOWN, max(1, windows.shape[1] // 2))
    every = hashes(windows, run)
    among = np.unique(every)
    found = np.zeros(len(among), bool)
    for start in range(0, max(0, len(ids) - run + 1), _HASHED):
        part = hashes(ids[None, start : start + _HASHED + run - 1], run)[0]
        places = np.searchsorted(among, part).clip(max=len(among) - 1)
        found[places[among[places] == part]] = True
    share: np.ndarray = found[np.searchsorted(among, every)].mean(1)
    return share > SHARED


def _unseen(held: np.ndarray, ids: np.ndarray, wanted: int, eval_text: Path | None) -> tuple[np.ndarray, int]:
    """(the first `wanted` windows whose text is not in that of `ids`, how many were dropped before them)."""
    fresh, start, size = np.empty(0, np.int64), 0, min(wanted, TOGETHER)
    while len(fresh) < wanted and start < len(held):
        found = start + np.flatnonzero(~seen(held[start : start + size], ids))
        fresh, start, size = np.concatenate([fresh, found]), start + size, min(2 * size, TOGETHER)
    fresh, needed = fresh[:wanted], min(LEFT, wanted, len(held))
    if len(fresh) < needed:
        where = eval_text or "the end of the text"
        raise InputError(
            f"{where} is for the most part text that is calibrated on: {len(fresh)} of {len(held)}"
            f" windows are left to judge on, needed {needed};"
            f" give {'another' if eval_text else 'an'} --eval-text"
        )
    return held[fresh], int(fresh[-1]) + 1 - len(fresh)


def _predicted_bytes(tokens: Tokenizer, window: np.ndarray) -> int:
    """UTF-8 bytes of all tokens of a window but the first, which is given."""
    return len(tokens.decode(window).encode()) - len(tokens.decode(window[:1]).encode())
