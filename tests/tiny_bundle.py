"""A finished bundle with a random model: what tenth measure takes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import tiny_gguf

from tenth import __version__
from tenth.records import Budget, Candidate, MemoryParts, Plan, Proof, Runtime, Scorecard


def write(folder: Path, n_ctx: int = 128) -> Path:
    """model.gguf, plan.json and scorecard.json; the memory in them is made up."""
    folder.mkdir(parents=True)
    gguf = tiny_gguf.write(folder / "model.gguf")
    parts = MemoryParts(weights=10**6, repacked=0, kv=10**5, compute=10**5, output=10**4, base=10**6)
    plan = Plan(
        model="tiny", model_hash="0" * 64, architecture="llama", parameters=1,
        budget=Budget(memory=10**8, context=n_ctx), runtime=Runtime(n_ctx=n_ctx, n_ubatch=16, threads=1), types={},
        memory=parts, file_bytes=1, bits_per_weight=32.0, damage=0.0, damage_source="prior",
    )  # fmt: skip
    proof = Proof(
        budget=10**8, limit="watched RSS", network="not isolated: a test", interpreter=1, peak=1,
        peak_file_backed=1, peak_anonymous=1, predicted=1, parts={},
    )  # fmt: skip
    ours = Candidate(name="tenth", file_bytes=1, fits=True, memory=parts, readings=[])
    card = Scorecard(
        tenth=__version__, runtime="llama.cpp", machine="here", model="tiny",
        sha256=hashlib.sha256(gguf.read_bytes()).hexdigest(), proof=proof, original=[], candidates=[ours],
    )  # fmt: skip
    (folder / "plan.json").write_text(plan.model_dump_json())
    (folder / "scorecard.json").write_text(card.model_dump_json())
    return folder
