"""What calibration leaves: how much each weight of every linear site matters, one file a block.

Written by calibration/fisher.py, which says what the numbers are; read without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenth.core.ggml import ACTIVATION_BLOCKS

BYTES_AT_MOST = 2_000_000_000  # of logprobs.npy: fewer windows for large vocabularies


@dataclass(frozen=True)
class SiteStats:
    """What is known of one linear site; all float32."""

    rows: np.ndarray  # [out]: Fisher information summed over columns, per token
    cols: np.ndarray  # [in]: the same summed over rows
    grad2: np.ndarray  # [out]: E[g^2] of the output, per position
    square: np.ndarray  # [in]: E[x^2] of the input
    noise: dict[int, np.ndarray]  # block length -> [in]: mean square error of rounding the input to 8 bits

    def predicted_kl(self, error: np.ndarray, rows: np.ndarray | slice = slice(None)) -> float:
        """KL in nats per token of a weight error [n, in] in the given rows."""
        total = float(self.rows.sum(dtype=np.float64))
        if total == 0.0:
            return 0.0
        return 0.5 * float(self.rows[rows] @ (error * error) @ self.cols) / total

    def activation_kl(self, weight: np.ndarray, block: int, rows: np.ndarray | slice = slice(None)) -> float:
        """KL in nats per token of rounding this site's input to 8 bits in blocks."""
        return 0.5 * float(self.grad2[rows] @ (weight * weight) @ self.noise[block])


class Stats:
    """Read-only view of a calibration folder: one npz file a block, plus the embedding's and the head's."""

    def __init__(self, folder: Path) -> None:
        self._files = {}
        for path in sorted(folder.glob("stats-*.npz")):
            with np.load(path, allow_pickle=False) as data:
                for key in data.files:
                    self._files[key.rsplit("/", 1)[0]] = path

    def __contains__(self, source: str) -> bool:
        return source in self._files

    def energy(self, source: str) -> np.ndarray:
        """float32 [windows, T]: the squared gradient of the site's output at each position."""
        with np.load(self._files[source], allow_pickle=False) as data:
            energy: np.ndarray = data[f"{source}/energy"]
            return energy

    def moment(self, source: str) -> np.ndarray:
        """float32 [out, out]: E[g g^T] of the gradient of the output, per position; of a block's two ends."""
        with np.load(self._files[source], allow_pickle=False) as data:
            moment: np.ndarray = data[f"{source}/moment"]
            return moment

    def __getitem__(self, source: str) -> SiteStats:
        """Stats of the Hugging Face weight name; KeyError for an unknown one."""
        with np.load(self._files[source], allow_pickle=False) as data:
            return SiteStats(
                rows=data[f"{source}/rows"],
                cols=data[f"{source}/cols"],
                grad2=data[f"{source}/grad2"],
                square=data[f"{source}/square"],
                noise={n: data[f"{source}/noise{n}"] for n in ACTIVATION_BLOCKS},
            )


def windows_within(windows: int, length: int, vocabulary: int) -> int:
    """How many of the windows fit the space for their log-probabilities; at least one."""
    return max(1, min(windows, BYTES_AT_MOST // (2 * (length - 1) * vocabulary)))
