"""How hard to try: one dial, and what each setting is expected to take on this machine.

    fast     ggml's own encoders, round to nearest with importance weights
    normal   error feedback on every matrix (quantization/gptq.py), three rounds of refitting
    best     twice the text, every block on what the stored ones before it give (quantization/sequential.py),
    then scales
             trained on the KL to the original where bits are few (quantization/scales.py)

More text pays: the held-out KL of error feedback alone at 2.3 bits was .387, .362, .345 and .337 with 32, 64,
128 and 256 windows (docs/log.md).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from tenth.core.jobs import Compute
from tenth.runtime.llama import cores


@dataclass(frozen=True)
class Effort:
    """What one `--effort` does: how many windows, which rounding, how much training."""

    windows: int  # of calibration text
    rounds: int | None  # of refitting after error feedback; None: no feedback
    sequential: bool = False  # each block rounded on what the stored ones before it give
    steps: int = 0  # of training scales, each on BATCH windows

    @property
    def training(self) -> int:
        """Windows that are trained on, if the text has as many."""
        return self.steps * BATCH


EFFORTS = {"fast": Effort(32, None), "normal": Effort(128, 3), "best": Effort(256, 3, True, 300)}
BATCH = 4  # windows of a training step
WORTH_TRAINING = 0.02  # nats of predicted KL; where there is less, trained scales were no better


def expected(effort: Effort, weights: int, tokens: int, compute: Compute) -> float:
    """Seconds that calibrating, pricing and rounding will take here, from a matrix product timed now.

    weights: of the model; tokens: of one window. Operations per weight and token: 2 forward, 4 backward, 2
    for the weight gradient in calibration; 2 forward and about as many for the Gram matrices in rounding,
    three times that where it is sequential; 8 in training. Encoding and pricing were measured: 25 types of a
    sample, and 0.3 us of one core per weight and pass.
    """
    side, count = 1024, 4
    matrix = np.ones((side, side), np.float32)
    matrix @ matrix
    start = time.perf_counter()
    for _ in range(count):
        matrix @ matrix
    rate = 0.5 * count * 2 * side**3 / (time.perf_counter() - start)
    if compute.device == "cuda":
        rate *= 50  # a guess: no product is timed there, since that takes seconds of start-up
    passes = 10 * effort.windows
    if effort.rounds is not None:
        passes += (12 if effort.sequential else 4) * effort.windows
    passes += 8 * effort.steps * BATCH
    rounding = weights * 0.3e-6 * (1 + 2 * (effort.rounds or 0)) / (compute.threads or cores())
    return passes * tokens * weights / rate + rounding + 30
