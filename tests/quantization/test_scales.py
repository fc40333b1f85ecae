"""Training scales and norms: gradients against autograd; what helps is taken, the rest left; resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Killed
from gguf import GGMLQuantizationType, GGUFReader, quants
from tiny import make_model

from tenth.calibration.layerwise import LayerwiseModel
from tenth.core.jobs import Compute
from tenth.core.records import TensorSpec
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.models.formats.gguf import write_gguf
from tenth.quantization import scales
from tenth.quantization.encode import Rounded, Rounding, path_of, quantise, trained_vectors
from tenth.quantization.grids import GRIDS
from tenth.quantization.settings import ScaleTraining, Trained

KIND = "Q2_K"
OTHERS = {
    "blk.0.attn_v.weight": "IQ4_NL",
    "blk.0.ffn_gate.weight": "Q4_K",
    "blk.0.attn_output.weight": "Q5_1",
}
WINDOWS, LENGTH, FURTHER = 30, 12, 6
STEPS, BATCH = 8, 4
MODELS = [("llama", "tied"), ("llama", "head_dim"), ("gemma2", "softcaps")]


@dataclass(frozen=True)
class Case:
    """A tiny model and its plainly encoded matrices, as quantization/rounding.py leaves them."""

    folder: Path
    model: Any  # transformers'
    windows: np.ndarray

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.folder)

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """Of the matrices that are trained."""
        tied = all(spec.source != "lm_head.weight" for spec in self.checkpoint.specs())
        return {s.name: s for s in self.checkpoint.specs() if s.linear and (tied or s.role != "token_embd")}

    @cached_property
    def norms(self) -> dict[str, TensorSpec]:
        """Of the vectors that are trained."""
        return {s.name: s for s in self.checkpoint.specs() if s.name.endswith("norm.weight")}

    def stored_norm(self, spec: TensorSpec) -> np.ndarray:
        """As the GGUF has it."""
        return self.checkpoint.tensors[spec.source].load() + np.float32(spec.add)

    @cached_property
    def types(self) -> dict[str, str]:
        return {name: OTHERS.get(name, KIND) for name in self.specs}

    @property
    def judge(self) -> np.ndarray:
        """The windows that are not trained on."""
        return self.windows[:-FURTHER][-((WINDOWS - FURTHER) // 4) :]

    @property
    def rounded(self) -> Path:
        return self.folder / "rounded"

    def run(self, out: Path, emit: Any = lambda event: None, steps: int = STEPS, **more: Any) -> Trained:
        out.mkdir(exist_ok=True)
        texts = (self.folder / "tokens.npy", self.folder / "further.npy")
        training = ScaleTraining(steps=steps, batch=BATCH, seed=more.get("seed", 0))
        types = more.get("types", self.types)
        return scales.train_scales(
            self.folder, texts, self.rounded, types, out, training, Compute(threads=1), emit
        )

    @contextmanager
    def both(self) -> Iterator[tuple[LayerwiseModel, LayerwiseModel, dict[str, Any]]]:
        """The original, the stored model, and its trained tensors by name."""
        original, stored = LayerwiseModel(self.checkpoint, 1), LayerwiseModel(self.checkpoint, 1)
        with scales.whole(original), scales.whole(stored):
            made = [*scales._matrices(stored, self.types, self.rounded), *scales._vectors(stored)]
            for tensor in made:
                tensor.show()
            yield original, stored, {tensor.name: tensor for tensor in made}


def make_case(folder: Path, family: str, variant: str) -> Case:
    model = make_model(
        folder, family, variant, num_hidden_layers=1, hidden_size=256, intermediate_size=256, vocab_size=340
    )
    windows = np.random.default_rng(1).integers(0, 12, (WINDOWS, LENGTH)).astype(np.int32)
    np.save(folder / "tokens.npy", windows[:-FURTHER])
    np.save(folder / "further.npy", windows[-FURTHER:])
    case = Case(folder, model, windows)
    case.rounded.mkdir()
    for name, spec in case.specs.items():
        rows, order = case.checkpoint.tensors[spec.source].load(), spec.row_order()
        np.save(
            path_of(case.rounded, name, case.types[name]),
            quantise(rows if order is None else rows[order], case.types[name]),
        )
    return case


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("model"), *request.param)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("tied"), "llama", "tied")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged, and saved, every third step."""
    monkeypatch.setattr(scales, "EVERY", 3)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stored_model(case: Case, folder: Path) -> Any:
    """transformers' model with the matrices of a folder, decoded by gguf-py, rows back in their order."""
    import copy

    model = copy.deepcopy(case.model)
    for name, spec in case.specs.items():
        blocks = np.load(path_of(folder, name, case.types[name]))
        rows = quants.dequantize(blocks, GGMLQuantizationType[case.types[name]]).astype(np.float32)
        order = spec.row_order()
        if order is not None:
            rows = rows[np.argsort(order)]
        with torch.no_grad():
            model.get_parameter(spec.source).copy_(torch.from_numpy(rows))
    for name, spec in case.norms.items():
        if path_of(folder, name, "F32").exists():
            norm = torch.from_numpy(np.load(path_of(folder, name, "F32")) - np.float32(spec.add))
            with torch.no_grad():
                model.get_parameter(spec.source).copy_(norm)
    return model


def kl(model: Any, other: Any, windows: np.ndarray) -> torch.Tensor:
    """KL(model || other) in nats per predicted token."""
    ids = torch.from_numpy(windows.astype(np.int64))
    with torch.no_grad():
        p = model(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    q = other(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


# -- divergence and its gradient -----------------------------------------------------------------------------


def test_divergence_is_that_of_transformers(case: Case) -> None:
    with torch.no_grad():
        wanted = float(kl(case.model, stored_model(case, case.rounded), case.windows[:5]))
    with case.both() as (original, stored, _):
        for batch in (1, 2, 5, 8):
            found = scales.divergence(original, stored, case.windows[:5], batch)
            assert found == pytest.approx(wanted, rel=1e-3)
        assert scales.divergence(original, original, case.windows, 4) == pytest.approx(0, abs=1e-6)
    assert wanted > 0.01


def test_gradients_are_those_of_autograd_on_the_whole_model(case: Case) -> None:
    """A tied matrix gets them as the embedding and as the head."""
    whole = stored_model(case, case.rounded)
    for parameter in whole.parameters():
        parameter.requires_grad_(True)
    kl(case.model, whole, case.windows[:3]).backward()
    with case.both() as (original, stored, tensors):
        assert set(tensors) == set(case.specs) | set(case.norms)
        scales._slope(original, stored, case.windows[:3])
        for name, tensor in tensors.items():
            wanted = whole.get_parameter({**case.specs, **case.norms}[name].source).grad
            torch.testing.assert_close(
                tensor.weight.grad, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()), msg=name
            )


def test_both_uses_of_a_tied_matrix_count(tied: Case) -> None:
    whole = stored_model(tied, tied.rounded)
    head = torch.nn.Parameter(whole.lm_head.weight.detach().clone())
    whole.lm_head.weight = head
    embedding = whole.model.embed_tokens.weight.requires_grad_(True)
    kl(tied.model, whole, tied.windows[:3]).backward()
    assert min(float(use.grad.norm()) for use in (head, embedding)) > 1e-3
    with tied.both() as (original, stored, tensors):
        scales._slope(original, stored, tied.windows[:3])
        found = tensors["token_embd.weight"].weight.grad
        torch.testing.assert_close(found, head.grad + embedding.grad, rtol=1e-3, atol=1e-5)


def test_gradient_does_not_remember_the_steps_before(tied: Case) -> None:
    with tied.both() as (original, stored, tensors):
        scales._slope(original, stored, tied.windows[:2])
        fresh = {name: tensor.slope().clone() for name, tensor in tensors.items()}
        scales._slope(original, stored, tied.windows[2:4])
        scales._slope(original, stored, tied.windows[:2])
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor.slope(), fresh[name], rtol=1e-4, atol=1e-7, msg=name)


def test_slope_of_theta_is_the_finite_difference(case: Case) -> None:
    step = 2e-3
    with case.both() as (original, stored, tensors):
        scales._slope(original, stored, case.windows[:4])
        for name, tensor in tensors.items():
            slope = tensor.slope()
            direction = slope / slope.norm()
            values = []
            for sign in (1, -1):
                tensor.theta.copy_(sign * step * direction)
                tensor.show()
                values.append(scales.divergence(original, stored, case.windows[:4], 4))
            tensor.theta.zero_()
            tensor.show()
            assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(slope.norm()), rel=0.02), name


# -- training ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(case: Case, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the result of a run of some steps."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scales, "EVERY", 3)
        return folder, case.run(folder, steps=18)


def test_training_helps_on_windows_that_were_not_trained_on(
    case: Case, trained: tuple[Path, dict[str, Any]]
) -> None:
    folder, found = trained
    assert found.after < 0.97 * found.before
    judge = case.judge
    with torch.no_grad():
        before, after = (float(kl(case.model, stored_model(case, f), judge)) for f in (case.rounded, folder))
    assert found.before == pytest.approx(before, rel=1e-3)
    assert found.after == pytest.approx(after, rel=1e-2)  # the file's scales have half precision


def test_only_super_scales_and_norms_change(case: Case, trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    names = {f"{name}.{kind}.npy" for name, kind in case.types.items()}
    assert set(files(folder)) == names | {f"{name}.F32.npy" for name in case.norms}
    for name, kind in case.types.items():
        grid = GRIDS[kind]
        before, after = (np.load(path_of(f, name, kind)) for f in (case.rounded, folder))
        assert after.dtype == np.uint8
        np.testing.assert_array_equal(grid.unpack(after), grid.unpack(before))
        scales, old = grid.super_scales(after), grid.super_scales(before)
        zero = np.zeros_like(scales)
        np.testing.assert_array_equal(
            grid.with_super_scales(after, zero), grid.with_super_scales(before, zero)
        )
        assert not np.array_equal(scales, old)
        np.testing.assert_allclose(scales, old, rtol=0.1, atol=1e-7)
    for name, spec in case.norms.items():
        before, after = case.stored_norm(spec), np.load(path_of(folder, name, "F32"))
        assert after.dtype == np.float32
        assert not np.array_equal(after, before)
        np.testing.assert_allclose(after, before, atol=0.1)


def test_trained_norms_reach_the_file(
    case: Case, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = trained
    vectors = trained_vectors([tmp_path, folder], case.checkpoint.specs())
    assert set(vectors) == set(case.norms)
    encode = Rounded([folder], Rounding(lambda source: None, 1))
    types = {spec.name: case.types.get(spec.name, "F16") for spec in case.checkpoint.specs() if spec.linear}
    write_gguf(case.checkpoint, types, tmp_path / "model.gguf", encode, vectors=vectors)
    stored = {tensor.name: np.asarray(tensor.data) for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    for name, data in vectors.items():
        np.testing.assert_array_equal(stored[name], data)
    for name, kind in case.types.items():
        blocks = np.load(path_of(folder, name, kind))
        np.testing.assert_array_equal(stored[name].reshape(blocks.shape), blocks)


@pytest.mark.parametrize(("steps", "rate"), [(0, 1e-3), (3, 10.0)])
def test_what_does_not_help_is_not_taken(
    steps: int, rate: float, tied: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scales, "RATE", rate)
    found = tied.run(tmp_path, steps=steps)
    assert found.after == found.before > 0
    for name, kind in tied.types.items():
        data = [path_of(folder, name, kind).read_bytes() for folder in (tied.rounded, tmp_path)]
        assert data[0] == data[1]
    for name, spec in tied.norms.items():
        np.testing.assert_array_equal(np.load(path_of(tmp_path, name, "F32")), tied.stored_norm(spec))


def test_only_what_was_rounded_and_has_scales_is_trained(tied: Case, tmp_path: Path) -> None:
    """A matrix without a file is the original's; MXFP4's scales are powers of two."""
    types = {**tied.types, "blk.0.attn_q.weight": "F16", "blk.0.ffn_up.weight": "MXFP4"}
    spec = tied.specs["blk.0.ffn_up.weight"]
    path = path_of(tied.rounded, spec.name, "MXFP4")
    np.save(path, quantise(tied.checkpoint.tensors[spec.source].load(), "MXFP4"))
    tied.run(tmp_path, steps=3, types=types)
    path.unlink()
    made = {f"{name}.{kind}.npy" for name, kind in types.items() if kind not in ("F16", "MXFP4")}
    assert set(files(tmp_path)) == made | {f"{name}.F32.npy" for name in tied.norms}


def test_steps_draw_from_all_but_those_that_judge_and_slow_down(
    tied: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[set[bytes]] = []
    rates: list[float] = []
    slope, move = scales._slope, scales._State.move

    def seen_slope(original: LayerwiseModel, stored: LayerwiseModel, tokens: np.ndarray) -> None:
        batches.append({window.tobytes() for window in tokens})
        slope(original, stored, tokens)

    def seen_move(self: Any, rate: float) -> None:
        rates.append(rate)
        move(self, rate)

    monkeypatch.setattr(scales, "_slope", seen_slope)
    monkeypatch.setattr(scales._State, "move", seen_move)
    tied.run(tmp_path, steps=12)
    train = {window.tobytes() for window in tied.windows} - {window.tobytes() for window in tied.judge}
    assert [len(batch) for batch in batches] == [BATCH] * 12
    assert len(set.union(*batches)) > 2 * BATCH
    assert set.union(*batches) <= train
    assert set.union(*batches) & {window.tobytes() for window in tied.windows[-FURTHER:]}
    assert rates[:6] == [rates[0]] * 6
    np.testing.assert_allclose(rates[6:], np.arange(6, 0, -1) / 6 * rates[0])


def test_seed_decides(tied: Case, tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((1, 1, 2)):
        tied.run(tmp_path / str(number), steps=6, seed=seed)
        found.append(files(tmp_path / str(number)))
    assert found[0] == found[1]
    assert found[0] != found[2]


# -- killed and resumed --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(
    tied: Case, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], dict[str, Any], list[dict[str, Any]]]:
    """Files, result and events of a run that nothing disturbed."""
    folder, events = tmp_path_factory.mktemp("finished"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scales, "EVERY", 3)
        result = tied.run(folder, events.append)
    return files(folder), result, events


def test_progress_grows_to_all_steps_and_nothing_else_stays(finished: Any) -> None:
    kept, _, events = finished
    assert events == [{"done": done, "total": STEPS} for done in (3, 6, 8)]
    assert all(name.endswith(".npy") for name in kept)


@pytest.mark.parametrize(
    ("function", "time"),
    [
        *(("emit", i) for i in range(3)),
        *(("_slope", i) for i in (0, 4)),
        *(("divergence", i) for i in (0, 2)),
        *(("keep", i) for i in (1, 9)),
    ],
)
def test_killed_at_any_point_and_resumed_is_the_same(
    function: str, time: int, tied: Case, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a step, at a judgement, while files are written."""
    real, count = getattr(scales, function, lambda event: None), [0]

    def dying(*args: Any) -> Any:
        count[0] += 1
        if count[0] > time:
            raise Killed
        return real(*args)

    with monkeypatch.context() as patch:
        if function != "emit":
            patch.setattr(scales, function, dying)
        with pytest.raises(Killed):
            tied.run(tmp_path, dying if function == "emit" else lambda event: None)
    kept, result, _ = finished
    assert tied.run(tmp_path) == result
    assert files(tmp_path) == kept
