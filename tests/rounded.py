"""A tiny calibrated model, for the tests of rounding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Killed
from reference import naive_gram
from tiny import make_model

from tenth.calibration.fisher import calibrate
from tenth.calibration.layerwise import Hidden
from tenth.calibration.stats import Stats
from tenth.core.jobs import Compute
from tenth.core.records import TensorSpec
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.quantization.encode import LARGEST, Rounding
from tenth.quantization.rounding import round_plan

KINDS = ("Q4_0", "IQ4_NL", "Q5_1", "MXFP4", "Q4_1", "Q5_0")  # rows of 64 and 96
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
ROUNDS = 1


@dataclass(frozen=True)
class Case:
    """A tiny calibrated model."""

    folder: Path  # of the model
    model: Any  # transformers'
    windows: np.ndarray

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.folder)

    @cached_property
    def stats(self) -> Stats:
        return Stats(self.folder / "stats")

    @cached_property
    def tied(self) -> bool:
        return all(spec.source != HEAD for spec in self.checkpoint.specs())

    @cached_property
    def linear(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.checkpoint.specs() if spec.linear}

    @cached_property
    def types(self) -> dict[str, str]:
        """A type for every matrix; one F16 among them."""
        types = dict(zip(self.linear, cycle(KINDS), strict=False))
        return {**types, "blk.1.attn_output.weight": "F16"}

    @cached_property
    def wanted(self) -> dict[str, TensorSpec]:
        """The tensors of `types` that error feedback is for."""
        left = {"blk.1.attn_output.weight"} | (set() if self.tied else {"token_embd.weight"})
        return {name: spec for name, spec in self.linear.items() if name not in left}

    @cached_property
    def grams(self) -> dict[str, np.ndarray]:
        """H of every source by the reference."""
        sites = [spec.source for spec in self.linear.values() if spec.source != EMBEDDING] + [HEAD]
        energies = {source: self.stats.energy(source) for source in sites}
        grams = naive_gram.weighted(self.model, self.windows, energies)
        cols = {source: self.stats[source].cols for source in grams}
        found = {source: naive_gram.with_diagonal(gram, cols[source]) for source, gram in grams.items()}
        if self.tied:
            found[EMBEDDING] = found.pop(HEAD)
            np.fill_diagonal(found[EMBEDDING], self.stats[EMBEDDING].cols)
        return found

    def rows(self, spec: TensorSpec) -> np.ndarray:
        """The matrix in the GGUF's order of rows."""
        rows, order = self.checkpoint.tensors[spec.source].load(), spec.row_order()
        return rows if order is None else rows[order]

    def encode(self, spec: TensorSpec, kind: str) -> Any:
        plain = Rounding(lambda source: None, 1)
        return lambda rows, importance: plain.weighted(rows.clip(-LARGEST, LARGEST), kind, importance)

    def run(
        self,
        folder: Path,
        types: dict[str, str] | None = None,
        emit: Any = lambda event: None,
        rounds: int = ROUNDS,
        by: Any = round_plan,
    ) -> int:
        folder.mkdir(exist_ok=True)
        count: int = by(
            self.folder,
            self.folder / "tokens.npy",
            self.folder / "stats",
            self.types if types is None else types,
            folder,
            rounds,
            Compute(threads=1),
            emit,
        )
        return count


def make_case(folder: Path, family: str, variant: str | None, **changes: Any) -> Case:
    model = make_model(folder, family, variant, **changes)
    rng = np.random.default_rng(3)
    windows = rng.choice(rng.permutation(200)[:40], (6, 24)).astype(np.int32)
    np.save(folder / "tokens.npy", windows)
    (folder / "stats").mkdir()
    calibrate(folder, folder / "tokens.npy", 1, folder / "stats", Compute(threads=1), lambda event: None)
    return Case(folder, model, windows)


def make_small(folder: Path, variant: str = "tied") -> Case:
    return make_case(
        folder,
        "llama",
        variant,
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=210,
    )


def kill(case: Case, folder: Path, death: int, by: Any = round_plan) -> None:
    """Run until the event of that number."""
    seen: list[dict[str, Any]] = []

    def emit(event: dict[str, Any]) -> None:
        seen.append(event)
        if len(seen) > death:
            raise Killed

    with pytest.raises(Killed):
        case.run(folder, emit=emit, rounds=0, by=by)


def kill_at(case: Case, folder: Path, function: str, time: int, before: bool, by: Any = round_plan) -> None:
    """Run until just before or after that call of Hidden.<function>, which writes or removes hidden states:
    what a SIGKILL between two files can do.
    """
    real, count = getattr(Hidden, function), [0]

    def dying(*args: Any) -> None:
        here = count[0] == time
        count[0] += 1
        if not (here and before):
            real(*args)
        if here:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hidden, function, dying)
        with pytest.raises(Killed):
            case.run(folder, rounds=0, by=by)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
