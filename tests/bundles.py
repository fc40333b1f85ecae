"""A finished bundle around a tiny random model, as a fit would leave it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import tiny_gguf

from tenth.core.records import (
    Budget,
    Candidate,
    Forecast,
    MemoryParts,
    Plan,
    Proof,
    Runtime,
    Sample,
    Scorecard,
)

SETTINGS = {"n_ctx": 256, "n_ubatch": 32, "type_k": "q8_0", "type_v": "q8_0", "threads": 1}
MEMORY = MemoryParts(weights=1, repacked=0, kv=1, compute=1, output=1, base=1)


def write_bundle(
    folder: Path,
    template: str = "",
    sample: Sample | None = None,
    forecast: Forecast | None = None,
    budget: int = 10**8,
    **runtime: Any,
) -> Path:
    """budget: bytes. runtime: what differs from SETTINGS."""
    folder.mkdir(parents=True, exist_ok=True)
    gguf = tiny_gguf.write(folder / "model.gguf", template=template)
    plan = Plan(
        model="tiny",
        model_hash="0" * 64,
        architecture="llama",
        parameters=1,
        budget=Budget(memory=budget, context=256),
        runtime=Runtime(**{**SETTINGS, **runtime}),
        types={},
        memory=MEMORY,
        file_bytes=1,
        bits_per_weight=32.0,
        predicted_kl=0.0,
        sensitivity_source="default",
        forecast=forecast,
    )
    proof = Proof(
        budget=budget,
        limit="watched RSS",
        network="",
        interpreter=0,
        peak=6,
        peak_file_backed=3,
        peak_anonymous=3,
        predicted=6,
        parts={},
    )
    card = Scorecard(
        tenth="0.1.0",
        runtime="llama.cpp",
        machine="a machine",
        model="tiny",
        sha256=hashlib.sha256(gguf.read_bytes()).hexdigest(),
        proof=proof,
        original=[],
        sample=sample,
        candidates=[Candidate(name="tenth", file_bytes=1, fits=True, memory=MEMORY, readings=[])],
    )
    (folder / "plan.json").write_text(plan.model_dump_json())
    (folder / "scorecard.json").write_text(card.model_dump_json())
    return folder
