"""Sequential rounding: what each matrix is made from, that it helps, that a killed run resumes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import naive_feedback, naive_gram
from rounded import ROUNDS, Case, files, kill, kill_at, make_case, make_small

from tenth.quantization import gptq
from tenth.quantization.encode import Rounded, Rounding, path_of
from tenth.quantization.grids import GRIDS
from tenth.quantization.sequential import round_sequentially

MODELS = [("llama", "tied"), ("llama", "head_dim"), ("phi3", "plain"), ("gemma2", "softcaps")]
COARSE = "Q4_0"


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("model"), *request.param)


@pytest.fixture(scope="module")
def done(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run for all types."""
    folder = tmp_path_factory.mktemp("rounded")
    case.run(folder, by=round_sequentially)
    return folder


@pytest.fixture(scope="module", params=["tied", "untied"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_small(tmp_path_factory.mktemp("small"), {"tied": "tied", "untied": "head_dim"}[request.param])


def stored_weights(case: Case, folder: Path, types: dict[str, str]) -> dict[str, np.ndarray]:
    """Source -> the matrix of the folder, rows in the source's order."""
    found = {}
    for name, spec in case.linear.items():
        path = path_of(folder, name, types[name])
        if path.exists():
            rows = naive_feedback.decoded(GRIDS[types[name]], np.load(path))
            order = spec.row_order()
            found[spec.source] = rows if order is None else rows[np.argsort(order)]
    return found


def with_weights(case: Case, weights: dict[str, np.ndarray]) -> Any:
    model = copy.deepcopy(case.model)
    with torch.no_grad():
        for source, weight in weights.items():
            model.get_parameter(source).copy_(torch.from_numpy(weight))
    return model


def kl(case: Case, model: Any) -> float:
    ids = torch.from_numpy(case.windows.astype(np.int64))
    with torch.no_grad():
        p, q = (m(input_ids=ids, use_cache=False).logits.log_softmax(-1) for m in (case.model, model))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_a_file_for_every_wanted_tensor_and_the_embedding(case: Case, done: Path) -> None:
    names = {*case.wanted, "token_embd.weight"}
    assert {path.name for path in done.iterdir()} == {f"{name}.{case.types[name]}.npy" for name in names}


def test_an_embedding_without_a_head_is_plainly_encoded(case: Case, done: Path, tmp_path: Path) -> None:
    spec = case.linear["token_embd.weight"]
    kind, plain = case.types[spec.name], Rounding(lambda source: case.stats[source].cols, 1)
    found = Rounded([done], plain)(spec, kind, case.rows(spec), 0)
    assert np.array_equal(found, plain(spec, kind, case.rows(spec), 0)) != case.tied


def test_each_matrix_is_made_for_what_the_stored_model_gives_it(case: Case, done: Path) -> None:
    """Every block by the reference, after the blocks that the run itself stored."""
    weights = stored_weights(case, done, case.types)
    blocks = sorted({spec.layer for spec in case.wanted.values() if spec.layer is not None})
    for layer in [*blocks, None]:
        wanted = {name: spec for name, spec in case.wanted.items() if spec.layer == layer}
        wanted.pop("token_embd.weight", None)
        before = {
            spec.source: weights[spec.source]
            for spec in case.linear.values()
            if spec.source in weights and (spec.role == "token_embd" or _before(spec.layer, layer))
        }
        sources = [spec.source for spec in wanted.values()]
        own = naive_gram.inputs(with_weights(case, before), case.windows, sources)
        original = naive_gram.inputs(case.model, case.windows, sources)
        for name, spec in wanted.items():
            x, y = (np.concatenate(read[spec.source]) for read in (original, own))
            energy = case.stats.energy(spec.source).reshape(-1)
            plain = (y * energy[:, None]).T @ y
            pull = gptq.DAMP * plain.diagonal().mean()
            nearest = naive_gram.nearest_weight(case.rows(spec).astype(np.float64), x, y, energy, pull)
            aim = torch.from_numpy((case.rows(spec) + nearest) / 2).float()
            gram = naive_gram.with_diagonal(plain, case.stats[spec.source].cols)
            h, grid = gptq.damped(torch.from_numpy(gram).float()), GRIDS[case.types[name]]
            expected = gptq.round_rows(aim, h, grid, case.encode(spec, grid.name), ROUNDS)
            found = np.load(path_of(done, name, grid.name))
            # The two H and D differ in the last digits, and a code on an edge changes what is behind it.
            assert (grid.unpack(found) == grid.unpack(expected)).mean() > 0.95, name


def _before(layer: int | None, other: int | None) -> bool:
    return layer is not None and (other is None or layer < other)


def test_it_is_nearer_to_the_original_than_rounding_each_block_alone(case: Case, tmp_path: Path) -> None:
    types = dict.fromkeys(case.linear, COARSE)
    case.run(tmp_path / "alone", types)
    case.run(tmp_path / "sequential", types, by=round_sequentially)
    found = [
        kl(case, with_weights(case, stored_weights(case, tmp_path / name, types)))
        for name in ("sequential", "alone")
    ]
    assert found[0] < found[1], found


def test_progress_grows_to_all_weights(small: Case, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    small.run(tmp_path, emit=events.append, by=round_sequentially)
    total = sum(spec.count for spec in small.wanted.values())
    assert [event["total"] for event in events] == [total] * len(small.wanted)
    counts = np.diff([0, *(event["done"] for event in events)])
    assert sorted(counts) == sorted(spec.count for spec in small.wanted.values())


def test_nothing_to_round(small: Case, tmp_path: Path) -> None:
    assert small.run(tmp_path, dict.fromkeys(small.linear, "F16"), by=round_sequentially) == 0
    assert not files(tmp_path)


# -- killed and resumed --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(small: Case, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    small.run(folder, rounds=0, by=round_sequentially)
    return files(folder)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("function", "time"), [*(("write", i) for i in range(6)), *(("drop", i) for i in range(4)), ("clear", 0)]
)
def test_killed_between_two_files_and_resumed_is_the_same(
    function: str, time: int, before: bool, small: Case, finished: dict[str, bytes], tmp_path: Path
) -> None:
    kill_at(small, tmp_path, function, time, before, by=round_sequentially)
    small.run(tmp_path, rounds=0, by=round_sequentially)
    assert files(tmp_path) == finished


@pytest.mark.parametrize("death", range(0, 14, 3))
def test_killed_at_any_event_and_resumed_is_the_same(
    death: int, small: Case, finished: dict[str, bytes], tmp_path: Path
) -> None:
    kill(small, tmp_path, death, by=round_sequentially)
    small.run(tmp_path, rounds=0, by=round_sequentially)
    assert files(tmp_path) == finished
