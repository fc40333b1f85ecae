"""Texts as windows of token ids, by the model's own tokenizer."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from tenth.core.errors import InputError

LENGTH = 512  # tokens of a window, unless the model or the wanted context is shorter
HELD_OUT = 0.15  # of the calibration text's end, where no other text is given to judge on
FEWEST = 8  # windows


def bundled() -> str:
    """The package's own calibration text: public-domain and Creative Commons prose (data/NOTICE.md)."""
    return lzma.decompress((resources.files("tenth") / "data" / "calibration.txt.xz").read_bytes()).decode()


def read(path: Path | None) -> str:
    """The text in a file, or the bundled one. InputError if it is missing, no UTF-8, or binary."""
    if path is None:
        return bundled()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the text {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text (byte {error.start}); convert it first") from None
    if "\0" in text:
        raise InputError(f"{path} holds NUL characters; give plain text")
    return text


def run(
    emit: Callable[[dict[str, Any]], None],  # noqa: ARG001
    model: str,
    text: str | None,
    eval_text: str | None,
    folder: str,
    length: int,
    calibrate: int,
    train: int,
    judge: int,
    seed: int,
) -> dict[str, Any]:
    """In a child process: calibration.npy, further.npy, held-out.npy (int32 [windows, length]); their sizes.

    Calibration windows are drawn with `seed`, further ones from the rest, as far as that goes; held-out ones
    are the first of eval_text, or of the calibration text's end. InputError if there is too little text.
    """
    from tenth.models.tokens import tokenizer

    tokens = tokenizer(Path(model))
    given = read(Path(text) if text else None)
    windows = _windows(tokens.encode(given), length)
    if eval_text:
        other = read(Path(eval_text))
        if other == given:
            raise InputError(f"{eval_text} is the same text as is calibrated on; leave --eval-text out")
        held = _windows(tokens.encode(other), length)
    else:
        cut = len(windows) - max(1, round(HELD_OUT * len(windows)))
        windows, held = windows[:cut], windows[cut:]
    for name, found, fewest in (("calibrate on", windows, FEWEST), ("judge on", held, 1)):
        if len(found) < fewest:
            need = fewest * length
            raise InputError(
                f"the text is too short to {name}: {found.size} tokens in whole windows of {length},"
                f" needed {need}; give a longer --text"
            )
    order = np.random.default_rng(seed).permutation(len(windows))
    held = held[:judge]
    here = Path(folder)
    np.save(here / "calibration.npy", windows[np.sort(order[:calibrate])], allow_pickle=False)
    np.save(here / "further.npy", windows[np.sort(order[calibrate:][:train])], allow_pickle=False)
    np.save(here / "held-out.npy", held, allow_pickle=False)
    # The first token of a window is given, not predicted.
    predicted = sum(len(tokens.decode(w).encode()) - len(tokens.decode(w[:1]).encode()) for w in held)
    return {
        "calibration": min(calibrate, len(windows)),
        "held_out": len(held),
        "bytes": predicted,
        "length": length,
    }


def _windows(ids: np.ndarray, length: int) -> np.ndarray:
    count = len(ids) // length
    return np.ascontiguousarray(ids[: count * length].reshape(count, length), dtype=np.int32)
