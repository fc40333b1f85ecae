"""Results of calibration that are read without torch."""

from __future__ import annotations

from tenth.core.records import Record


class Agreement(Record):
    """How far llama.cpp and transformers were apart on one window."""

    tokens: int
    kl: float  # nats, at the worst position
    position: int  # of it
    mean: float  # nats, over all positions
