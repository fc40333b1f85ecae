"""What is asked of training scales, and what came out of it: records without torch."""

from __future__ import annotations

from tenth.core.records import Record

BYTES_PER_WEIGHT = 20  # of memory that training scales takes


class ScaleTraining(Record):
    """How scales are trained (scales.py)."""

    steps: int
    batch: int  # windows a step
    seed: int


class Trained(Record):
    """KL to the original in nats per token on windows held back, before training and after."""

    before: float
    after: float
