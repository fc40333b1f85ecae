"""Healing: targets against the full distribution; killed, diverging, planned runs; adapters, vocabulary."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Killed
from tiny import VARIANTS, make_model

from tenth.calibration.layerwise import LayerwiseModel
from tenth.core.errors import InputError
from tenth.distillation import distil, training
from tenth.distillation import student as students
from tenth.distillation.blockwise import reconstruct
from tenth.distillation.budget import TrainingBudget
from tenth.distillation.lora import adapt
from tenth.distillation.settings import DistilResult, DistilSettings
from tenth.distillation.targets import SAMPLES, Live, Sampled, sample
from tenth.distillation.training import Schedule
from tenth.models import source
from tenth.models.checkpoint import open_checkpoint
from tenth.models.edit import take
from tenth.models.formats.folder import write_folder
from tenth.quantization.scales import whole

WINDOWS, LENGTH = 60, 12
JUDGED = 4  # of them
PLENTY = 10**12  # bytes of memory


@dataclass(frozen=True)
class Case:
    """A model, an edited one, and windows in the ids of the latter."""

    original: Path
    edited: Path
    tokens: Path
    kept: Path | None = None

    def run(
        self, folder: Path, amount: str = "720tok", emit: Any = lambda event: None, **more: Any
    ) -> DistilResult:
        return distil.distil(self.settings(folder, amount, **more), emit)

    def settings(self, folder: Path, amount: str, **more: Any) -> DistilSettings:
        folder.mkdir(exist_ok=True)
        given = {"memory": PLENTY, "seed": 0, "threads": 1, "rate": 1e-3, **more}
        return DistilSettings(
            model=self.edited,
            original=self.original,
            tokens=self.tokens,
            folder=folder,
            training_budget=TrainingBudget.parse(amount),
            kept=self.kept,
            **given,
        )

    def room(self, beside: bool) -> int:
        """Memory in which the original is just, or is just not, computed beside the student."""
        student, teacher = (LayerwiseModel(open_checkpoint(path), 1) for path in (self.edited, self.original))
        weights, others = (
            sum(s.count for s in layerwise.checkpoint.specs()) for layerwise in (student, teacher)
        )
        return students.activations(student, LENGTH) + 16 * weights + 4 * others - (0 if beside else 1)


def make_case(folder: Path, variant: str = "tied", kept: list[int] | None = None) -> Case:
    """A tiny model without some FFN channels, or some tokens."""
    make_model(folder / "original", "llama", variant)
    checkpoint = open_checkpoint(folder / "original")
    edited = take(checkpoint, "vocab", kept) if kept else take(checkpoint, "ffn", [*range(64)])
    write_folder(edited, folder / "edited")
    high = len(kept) if kept else 12
    np.save(
        folder / "tokens.npy", np.random.default_rng(1).integers(0, high, (WINDOWS, LENGTH)).astype(np.int32)
    )
    if kept:
        np.save(folder / "kept.npy", np.array(kept, np.int64))
    return Case(
        folder / "original", folder / "edited", folder / "tokens.npy", folder / "kept.npy" if kept else None
    )


@pytest.fixture(scope="module", params=["tied", "head_dim"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"), request.param)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("tied"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def logits(folder: Path, windows: np.ndarray) -> torch.Tensor:
    """transformers' own, of a folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        out: torch.Tensor = model(torch.from_numpy(windows.astype(np.int64)), use_cache=False).logits
    return out[:, :-1]


def kl(original: torch.Tensor, other: torch.Tensor) -> float:
    p, q = original.log_softmax(-1), other.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@contextmanager
def filled(folder: Path) -> Iterator[LayerwiseModel]:
    layerwise = LayerwiseModel(open_checkpoint(folder), 1)
    with whole(layerwise):
        yield layerwise


# -- targets -------------------------------------------------------------------------------------------------


def variance(p: np.ndarray) -> np.ndarray:
    """Of c / N: c is N p rounded down, or up with the rest as probability."""
    rest = SAMPLES * p % 1
    return np.asarray(rest * (1 - rest) / SAMPLES**2)


def test_counts_are_the_probabilities_rounded_up_or_down_and_right_on_average() -> None:
    draws = 2000
    logp = (2 * torch.randn(3, 200, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    p = logp.exp().double().numpy()
    total = np.zeros_like(p)
    for offset in np.random.default_rng(0).random((draws, 3)):
        ids, mean = sample(logp, offset)
        counts = np.stack([np.bincount(row, minlength=200) for row in ids.numpy()])
        assert (counts >= np.floor(SAMPLES * p - 1e-3)).all()
        assert (counts <= np.ceil(SAMPLES * p + 1e-3)).all()
        torch.testing.assert_close(mean, torch.from_numpy((counts * logp.numpy()).sum(1) / SAMPLES).float())
        total += counts
    error = (total / draws / SAMPLES - p) / np.sqrt(variance(p) / draws + 1e-12)
    assert np.abs(error).max() < 5
    assert (error**2).mean() == pytest.approx(1, abs=0.2)


def test_gradients_of_sampled_targets_are_unbiased_and_those_of_the_likeliest_tokens_are_not(
    tied: Case, tmp_path: Path
) -> None:
    """One window many times, with samples of its own each time."""
    count = 500
    window = np.load(tied.tokens)[:1]
    size = int(open_checkpoint(tied.original).config["vocab_size"])
    targets = Sampled(tmp_path / "samples.bin", np.repeat(window, count, 0), size, "cpu")
    targets.fill(LayerwiseModel(open_checkpoint(tied.original), 1), None, 0)
    wanted = logits(tied.original, window)[0].double().log_softmax(-1)
    p = wanted.exp().numpy()
    found = torch.cat([logits(tied.edited, window), torch.zeros(1, 1, size)], 1).requires_grad_(True)
    kls = [targets.divergence(found, np.array([row])) for row in range(count)]
    (slope,) = torch.autograd.grad(torch.stack(kls).mean(), found)
    q = found.detach()[0, :-1].double().softmax(-1).numpy()
    sampled = q - slope[0, :-1].double().numpy() * (LENGTH - 1)  # q - c/N is the slope in the logits

    def off(estimate: np.ndarray) -> float:
        return float(np.abs((estimate - p) / np.sqrt(variance(p) / count + 1e-12)).max())

    likeliest = np.where(p >= np.sort(p, 1)[:, -SAMPLES:][:, :1], p, 0)
    assert off(sampled) < 6
    assert off(likeliest / likeliest.sum(1, keepdims=True)) > 20
    exact = kl(wanted, found.detach()[0, :-1].double())
    assert exact > 0.01
    assert float(torch.stack(kls).detach().mean()) == pytest.approx(exact, rel=0.02)


def test_samples_are_bytes_on_disk_as_documented_and_go_on_where_they_were(
    tied: Case, tmp_path: Path
) -> None:
    windows, layerwise = np.load(tied.tokens)[:8], LayerwiseModel(open_checkpoint(tied.original), 1)
    made = [Sampled(tmp_path / f"{i}.bin", windows, 300, "cpu") for i in range(2)]
    made[0].fill(layerwise, None, 3)
    assert made[0].done == 8
    assert (tmp_path / "0.bin").stat().st_size == 8 * (LENGTH - 1) * 132
    (tmp_path / "1.bin").write_bytes((tmp_path / "0.bin").read_bytes()[: 5 * (LENGTH - 1) * 132 + 99])
    made[1].fill(layerwise, None, 3)
    assert (tmp_path / "0.bin").read_bytes() == (tmp_path / "1.bin").read_bytes()


# -- the loop ------------------------------------------------------------------------------------------------


def test_every_window_comes_once_an_epoch_and_the_rate_rises_and_falls() -> None:
    schedule = Schedule(steps=40, batch=3, rate=2.0, every=5, seed=1)
    rows = np.concatenate([schedule.rows(step, 10) for step in range(40)])
    for epoch in rows.reshape(-1, 10):
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in rows.reshape(-1, 10)}) == 12
    rates = [schedule.at(step) for step in range(40)]
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0])
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert rates[-1] == pytest.approx(0.2, abs=0.01)


def test_a_step_has_the_gradient_of_the_whole_batch(case: Case) -> None:
    windows = np.load(case.tokens)
    with filled(case.edited) as student, filled(case.original) as teacher:
        weights = students.parameters(student)
        assert set(weights) == {spec.source for spec in student.checkpoint.specs()}
        for weight in weights.values():
            weight.requires_grad_(True)
        targets = Live(students.forward_of(teacher), windows)
        rows = np.array([3, 1, 4, 15, 9])
        found = []
        for share in (1, 2, 5):
            value = training.gradient(
                students.forward_of(student), list(weights.values()), targets, rows, share
            )
            assert float(value) == pytest.approx(
                kl(logits(case.original, windows[rows]), logits(case.edited, windows[rows])), rel=1e-4
            )
            found.append([weight.grad for weight in weights.values()])
        for one, two, five in zip(*found, strict=True):
            torch.testing.assert_close(one, five, rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(two, five, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"lora": 4}, {"beside": False}], ids=["all", "lora", "sampled"])
def test_healing_brings_a_model_nearer_to_the_original(
    settings: dict[str, Any], case: Case, tmp_path: Path
) -> None:
    memory = case.room(settings.get("beside", True))
    found = case.run(tmp_path, "3ktok", memory=memory, lora=settings.get("lora"))
    assert found.after < 0.92 * found.before
    assert found.notes == ()
    assert found.lora == settings.get("lora", 0)
    assert found.original == ("sampled" if "beside" in settings else "computed beside it")
    assert not (tmp_path / "healing").exists()
    order = np.random.default_rng(0).permutation(WINDOWS)
    judged = np.load(case.tokens)[order[:JUDGED]]
    wanted = [logits(folder, judged) for folder in (case.original, case.edited, tmp_path)]
    tolerance = 0.1 if "beside" in settings else 1e-3
    assert found.before == pytest.approx(kl(wanted[0], wanted[1]), rel=tolerance)
    assert found.after == pytest.approx(kl(wanted[0], wanted[2]), rel=tolerance)
    trained = np.load(case.tokens)[order[JUDGED:]]
    wanted = [logits(folder, trained) for folder in (case.original, case.edited, tmp_path)]
    assert kl(wanted[0], wanted[2]) < 0.7 * kl(wanted[0], wanted[1])


def test_the_bundled_model_without_a_quarter_of_its_channels_heals(tmp_path: Path) -> None:
    from tenth.distillation.corpus import windows

    bundled = source.bundled()
    write_folder(take(open_checkpoint(bundled), "ffn", [*range(576)]), tmp_path / "edited")
    np.save(tmp_path / "tokens.npy", windows(bundled, None, 64, 64 * 50, 0))
    found = Case(bundled, tmp_path / "edited", tmp_path / "tokens.npy").run(
        tmp_path / "out", "3ktok", rate=None
    )
    assert found.after < 0.9 * found.before


def test_a_killed_run_ends_the_same_bit_for_bit(tied: Case, tmp_path: Path) -> None:
    """Killed while it trains, between two judgements."""
    script = (
        "import json, sys; from tenth.distillation import distil, training; training.SAVE_SECONDS = 0.0;"
        "settings = distil.DistilSettings.model_validate_json(sys.argv[1]);"
        "distil.distil(settings, lambda event: print(json.dumps(event), flush=True))"
    )
    arguments = tied.settings(tmp_path / "killed", "1200tok").model_dump_json()
    with subprocess.Popen(
        [sys.executable, "-c", script, arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if json.loads(line)["done"] >= 43:
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    steps: list[float] = []
    assert not (tmp_path / "killed" / "config.json").exists()
    resumed = tied.run(tmp_path / "killed", "1200tok", lambda event: steps.append(event["done"]))
    straight = tied.run(tmp_path / "straight", "1200tok")
    assert steps[0] > 30
    assert resumed == straight
    assert files(tmp_path / "killed") == files(tmp_path / "straight")


@pytest.mark.parametrize("stop", [9, 20, 40], ids=["in a block", "sampling", "training"])
def test_a_run_killed_anywhere_ends_the_same(stop: int, tied: Case, tmp_path: Path) -> None:
    def emit(event: dict[str, Any]) -> None:
        if event["done"] >= stop:
            raise Killed

    memory = tied.room(beside=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tenth.distillation.targets.HIDDEN_BYTES", 4 * LENGTH * 64)  # a window at a time
        with pytest.raises(Killed):
            tied.run(tmp_path / "killed", emit=emit, memory=memory)
    resumed = tied.run(tmp_path / "killed", memory=PLENTY)  # has become free, too late
    assert resumed == tied.run(tmp_path / "straight", memory=memory)
    assert files(tmp_path / "killed") == files(tmp_path / "straight")


def test_every_block_comes_nearer_to_the_original_s_before_the_whole_does(case: Case, tmp_path: Path) -> None:
    windows = np.load(case.tokens)[:40]

    def errors(student: LayerwiseModel, teacher: LayerwiseModel) -> list[float]:
        with torch.no_grad():
            found, wanted, out = student.embedded(windows), teacher.embedded(windows), []
            for index in range(len(student.blocks)):
                found, wanted = student.run(index, found), teacher.run(index, wanted)
                out.append(float((found - wanted).square().mean()))
        return out

    with filled(case.edited) as student, filled(case.original) as teacher:
        weights, before = students.parameters(student), errors(student, teacher)
        for weight in weights.values():
            weight.requires_grad_(True)
        kept = {name: weight.detach().clone() for name, weight in weights.items()}
        seen: list[int] = []
        reconstruct(student, teacher, True, windows, None, Schedule(160, 1, 3e-3, 160), tmp_path, seen.append)
        after = errors(student, teacher)
        for old, new in zip(before, after, strict=True):
            assert new < 0.7 * old
        assert seen == [1, 2]
        for name, weight in weights.items():
            assert torch.equal(weight, kept[name]) == ("layers" not in name), name


@pytest.mark.parametrize(("rate", "said"), [(3.0, "on held-back windows"), (1e30, "not finite")])
def test_a_diverging_run_stops_keeps_the_best_and_says_so(
    rate: float, said: str, tied: Case, tmp_path: Path
) -> None:
    found = tied.run(tmp_path, "6ktok", rate=rate)
    assert found.after == found.before
    stopped, left_out = found.notes
    assert said in stopped
    assert f"step {found.steps} of {500 - found.local}" in stopped
    assert "did not help" in left_out
    assert found.steps < 200
    before, after = (open_checkpoint(folder).tensors for folder in (tied.edited, tmp_path))
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name].load(), tensor.load())


def test_what_was_best_is_kept_when_a_run_turns_bad(
    tied: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate explodes in the middle."""
    at = Schedule.at
    monkeypatch.setattr(Schedule, "at", lambda self, step: at(self, step) * (1 if step < 60 else 1e4))
    found = tied.run(tmp_path, "6ktok")
    judged = dict(found.judged)
    assert 0 < found.step <= 75 < found.steps < 500
    assert judged[found.step] == found.after == min(judged.values()) < found.before
    order = np.random.default_rng(0).permutation(WINDOWS)
    windows = np.load(tied.tokens)[order[:JUDGED]]
    assert kl(logits(tied.original, windows), logits(tmp_path, windows)) == pytest.approx(
        found.after, rel=1e-3
    )


def test_minutes_are_planned_once(tied: Case, tmp_path: Path) -> None:
    def emit(event: dict[str, Any]) -> None:
        seen.append(event)
        if len(seen) == 2:
            raise Killed

    seen: list[dict[str, Any]] = []
    with pytest.raises(Killed):
        tied.run(tmp_path, "1s", emit)
    plan = json.loads((tmp_path / "healing" / "plan.json").read_text())
    found = tied.run(tmp_path, "1s", seen.append)
    steps, batch = plan["schedule"]["steps"], plan["schedule"]["batch"]
    assert found.steps == steps
    assert {event["total"] for event in seen} == {plan["local"] + steps * batch}
    assert seen[-1]["done"] == seen[-1]["total"]


# -- what is trained, and on what ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", VARIANTS)
def test_every_weight_of_every_family_is_trained_and_written(family: str, tmp_path: Path) -> None:
    for seed, name in enumerate(("original", "edited")):
        make_model(tmp_path / name, family, seed=seed)
    np.save(tmp_path / "tokens.npy", np.tile(np.arange(12, dtype=np.int32), (2, 1)))
    case = Case(tmp_path / "original", tmp_path / "edited", tmp_path / "tokens.npy")
    assert case.run(tmp_path / "out", "12tok", rate=1e-4).step == 1
    before, after = (open_checkpoint(tmp_path / name).tensors for name in ("edited", "out"))
    same = [name for name, tensor in after.items() if np.array_equal(tensor.load(), before[name].load())]
    assert same == []
    with filled(tmp_path / "edited") as layerwise:
        assert set(students.parameters(layerwise)) == {spec.source for spec in layerwise.checkpoint.specs()}
        plain = students.forward_of(layerwise)(np.arange(8, dtype=np.int32)[None])[:, :-1]
        torch.testing.assert_close(
            plain, logits(tmp_path / "edited", np.arange(8)[None]), rtol=1e-3, atol=1e-3
        )


def test_adapters_merge_exactly(case: Case) -> None:
    windows = np.load(case.tokens)[:3]
    with filled(case.edited) as layerwise, torch.no_grad():
        forward = students.forward_of(layerwise)
        plain = forward(windows)
        adapters = adapt(layerwise, 3, 0)
        assert len(adapters) == 2 * 7
        torch.testing.assert_close(forward(windows), plain, rtol=0, atol=0)
        for adapter in adapters:
            adapter.up.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        learnt = forward(windows)
        assert float((learnt - plain).abs().max()) > 0.1
        for adapter in adapters:
            adapter.merge()
        torch.testing.assert_close(forward(windows), learnt, rtol=1e-4, atol=1e-4)
        for adapter in adapters:
            adapter.up.zero_()
        torch.testing.assert_close(forward(windows), learnt, rtol=1e-4, atol=1e-4)


def test_memory_decides(tied: Case, tmp_path: Path) -> None:
    weights = sum(spec.count for spec in open_checkpoint(tied.edited).specs())
    tight = tied.room(beside=False) - 4 * sum(s.count for s in open_checkpoint(tied.original).specs())
    assert tied.run(tmp_path / "tight", "24tok", memory=tight + 1).lora == 0
    adapted = tied.run(tmp_path / "less", "24tok", memory=tight)
    assert adapted.lora == students.RANK
    with pytest.raises(InputError, match=r"needs .* MB of memory; here are .* MB"):
        tied.run(tmp_path / "asked", "24tok", memory=tight, lora=0)
    with pytest.raises(InputError, match=r"needs .* with adapters of rank 16; here are .* MB"):
        tied.run(tmp_path / "none", "24tok", memory=tight - 12 * weights)


@pytest.mark.parametrize("beside", [True, False])
def test_a_trimmed_vocabulary_is_compared_token_by_token(beside: bool, tmp_path: Path) -> None:
    kept = np.random.default_rng(5).permutation(330)[:200].tolist()
    case = make_case(tmp_path, "head_dim", kept)
    found = case.run(tmp_path / "right", "24tok", memory=case.room(beside))
    assert found.original == ("computed beside it" if beside else "sampled")
    assert found.before == pytest.approx(0, abs=1e-5)  # nothing but tokens is gone
    np.save(tmp_path / "kept.npy", np.roll(np.array(kept, np.int64), 1))
    assert case.run(tmp_path / "wrong", "24tok", memory=case.room(beside)).before > 0.1


def test_files_that_do_not_belong_together_are_refused(tied: Case, tmp_path: Path) -> None:
    trimmed = make_case(tmp_path, "tied", [*range(100)])
    size = open_checkpoint(tied.original).config["vocab_size"]
    for tokens, kept, said in (
        (np.full((4, 8), size, np.int32), None, "not in the vocabulary"),
        (np.full((4, 8), -1, np.int32), None, "not in the vocabulary"),
        (np.zeros((1, 8), np.int32), None, "two windows"),
        (np.zeros((4, 8), np.int64), None, "int32"),
        (np.zeros((4, 8), np.int32), np.arange(size - 1), "of each of"),
        (np.zeros((4, 8), np.int32), np.arange(1, size + 1), "of each of"),
    ):
        np.save(tmp_path / "t.npy", tokens)
        if kept is not None:
            np.save(tmp_path / "k.npy", kept)
        with pytest.raises(InputError, match=said):
            Case(
                tied.original,
                tied.edited,
                tmp_path / "t.npy",
                tmp_path / "k.npy" if kept is not None else None,
            ).run(tmp_path / "x")
    with pytest.raises(InputError, match="say which were kept"):
        Case(trimmed.original, trimmed.edited, trimmed.tokens).run(tmp_path / "x")
    with pytest.raises(InputError, match="10min"):
        tied.run(tmp_path / "x", "much")


@pytest.mark.parametrize(
    ("text", "seconds", "tokens"),
    [
        ("10min", 600, 0),
        ("1.5h", 5400, 0),
        ("90 s", 90, 0),
        ("5Mtok", 0, 5_000_000),
        ("200ktok", 0, 200_000),
        ("0.5mtok", 0, 500_000),
        ("512tok", 0, 512),
    ],
)
def test_amounts(text: str, seconds: float, tokens: int) -> None:
    assert TrainingBudget.parse(text) == TrainingBudget(seconds, tokens)


@pytest.mark.parametrize(
    "text", ["", "10", "min", "-5min", "0min", "5 MB", "1e9tok", "nan h", "10min5", "9" * 20 + "h"]
)
def test_amounts_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="healing of"):
        TrainingBudget.parse(text)
