"""Texts as windows of token ids, by the model's own tokenizer: what is calibrated, trained and judged on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tenth.calibration.same_tokens import check_tokens
from tenth.core.errors import InputError
from tenth.core.records import Record
from tenth.models.text import read
from tenth.runtime.template import check_template
from tenth.runtime.tokens import tokenizer

LENGTH = 512  # tokens of a window, unless the model or the wanted context is shorter
HELD_OUT = 0.15  # of the calibration text's end, where no other text is given to judge on
FEWEST = 8  # windows


class Wanted(Record):
    """How many windows of which length are cut from a text."""

    length: int  # tokens
    calibrate: int  # windows to calibrate on
    train: int  # and further ones to train on, as far as the text goes
    judge: int  # held-out windows
    seed: int  # of the draw of the first two


class Texts(Record):
    """Windows of token ids on disk."""

    folder: Path
    length: int  # tokens of a window
    bytes: int  # UTF-8, of the predicted held-out tokens: all but the first of each window

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


def cut(model: Path, text: Path | None, eval_text: Path | None, wanted: Wanted, folder: Path) -> Texts:
    """Cut texts into windows of the model's tokens, and leave them in `folder`.

    Calibration windows are drawn by the seed, further ones from the rest; held-out ones are the first of
    eval_text, or of the calibration text's end. InputError if there is too little text.
    """
    tokens, length = tokenizer(model), wanted.length
    check_tokens(model, tokens)
    check_template(tokens.info)
    given = read(text)
    windows = _windows(tokens.encode(given), length)
    if eval_text:
        other = read(eval_text)
        if other == given:
            raise InputError(f"{eval_text} is the same text as is calibrated on; leave --eval-text out")
        held = _windows(tokens.encode(other), length)
    else:
        end = len(windows) - max(1, round(HELD_OUT * len(windows)))
        windows, held = windows[:end], windows[end:]
    for name, enough, fewest in (("calibrate on", windows, FEWEST), ("judge on", held, 1)):
        if len(enough) < fewest:
            raise InputError(
                f"the text is too short to {name}: {enough.size} tokens in whole windows of {length},"
                f" needed {fewest * length}; give a longer --text"
            )
    order = np.random.default_rng(wanted.seed).permutation(len(windows))
    held = held[: wanted.judge]
    # The first token of a window is given, not predicted.
    predicted = sum(len(tokens.decode(w).encode()) - len(tokens.decode(w[:1]).encode()) for w in held)
    texts = Texts(folder=folder, length=length, bytes=predicted)
    drawn, rest = order[: wanted.calibrate], order[wanted.calibrate :][: wanted.train]
    np.save(texts.calibration, windows[np.sort(drawn)], allow_pickle=False)
    np.save(texts.further, windows[np.sort(rest)], allow_pickle=False)
    np.save(texts.held_out, held, allow_pickle=False)
    return texts


def _windows(ids: np.ndarray, length: int) -> np.ndarray:
    count = len(ids) // length
    return np.ascontiguousarray(ids[: count * length].reshape(count, length), dtype=np.int32)
