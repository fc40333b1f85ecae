"""Smaller models end to end on tiny ones: what removals cost, what is made, that a killed run resumes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Killed
from rounded import Case, files, make_case

from tenth.calibration.layerwise import LayerwiseModel
from tenth.calibration.stats import Stats
from tenth.core.records import Shape
from tenth.models.checkpoint import open_checkpoint
from tenth.pruning import knapsack, refit, removal, shape, structure
from tenth.pruning.settings import RefitSettings, RemovalSettings
from tenth.pruning.shape import PruningCosts, PruningLimits
from tenth.quantization.scales import log_probabilities, whole

WIDTH, GROUPS, BLOCKS = 96, 2, 3
FULL = Shape(ffn=(WIDTH,) * BLOCKS, kv_heads=(GROUPS,) * BLOCKS)


def silent(event: dict[str, Any]) -> None:
    """Progress that nobody reads."""


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma2", "phi"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("model"), request.param, None, num_hidden_layers=BLOCKS)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("model"), "llama", "tied", num_hidden_layers=BLOCKS)


def given(case: Case) -> dict[str, Any]:
    """What both stages read."""
    path = case.folder / "windows.npy"
    np.save(path, case.windows, allow_pickle=False)
    return {"model": case.folder, "tokens": (path,), "calibration": case.folder / "stats", "threads": 1}


def priced(case: Case, folder: Path) -> PruningCosts:
    settings = RemovalSettings(**given(case), folder=folder)
    removal.removal_costs(settings, silent)
    assert [path.name for path in folder.iterdir()] == ["pruning-costs.json"]
    return PruningCosts.model_validate_json((folder / "pruning-costs.json").read_bytes())


def made(case: Case, wanted: Shape, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    structure.refitted(RefitSettings(**given(case), shape=wanted, folder=folder), silent)
    return folder


def logs(folder: Path, windows: np.ndarray) -> torch.Tensor:
    layerwise = LayerwiseModel(open_checkpoint(folder), 1)
    with torch.no_grad(), whole(layerwise):
        return log_probabilities(layerwise, windows)


def naive_logs(model: Any, windows: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.from_numpy(windows.astype(np.int64))).logits
    return logits.log_softmax(-1)


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_nothing_removed_is_the_original(case: Case, tmp_path: Path) -> None:
    found = logs(made(case, FULL, tmp_path / "same"), case.windows)
    assert torch.allclose(found, logs(case.folder, case.windows), atol=2e-4)


def test_every_family_can_be_narrowed(case: Case, tmp_path: Path) -> None:
    checkpoint = case.checkpoint
    free = shape.pruning_limits(checkpoint, shape.STEP)
    assert free.uneven == (checkpoint.arch.model_type == "llama")
    wanted = FULL.model_copy(update={"ffn": (64,) * BLOCKS})
    smaller = open_checkpoint(made(case, wanted, tmp_path / "narrow"))
    shapes = {spec.name: spec.shape for spec in shape.uniform_shape(checkpoint, wanted).specs()}
    assert {spec.name: spec.shape for spec in smaller.specs()} == shapes
    assert shapes["blk.1.ffn_down.weight"] == (64, 64)
    least = shape.uniform_shape(checkpoint, shape.smallest(checkpoint, free))
    assert sum(spec.count for spec in least.specs()) < sum(spec.count for spec in smaller.specs())


def test_what_is_measured_is_the_divergence_without_the_part(case: Case, tmp_path: Path) -> None:
    costs = priced(case, tmp_path)
    wanted = naive_logs(case.model, case.windows)
    for index, block in enumerate(costs.blocks):
        without, mute = copy.deepcopy(case.model), copy.deepcopy(case.model)
        without.model.layers[index].register_forward_hook(lambda _m, args, _out: args[0])
        expected = kl(wanted, naive_logs(without, case.windows))
        assert block.whole == pytest.approx(expected, rel=2e-3, abs=1e-6)
        attention = mute.model.layers[index].self_attn
        end = getattr(attention, "o_proj", None) or attention.dense
        with torch.no_grad():
            end.weight.zero_()
        expected = kl(wanted, naive_logs(mute, case.windows))
        assert block.kv_heads[-1] == pytest.approx(max(expected, block.kv_heads[-2]), rel=2e-3, abs=1e-6)


def test_half_of_a_part_costs_between_what_is_predicted_and_measured(llama: Case, tmp_path: Path) -> None:
    """Of the last down_proj, behind which nothing follows: the geometric mean of the two."""
    costs = priced(llama, tmp_path)
    assert (costs.channels, costs.groups) == (WIDTH, GROUPS)
    for block in costs.blocks:
        assert list(block.ffn) == sorted(block.ffn)
        assert block.ffn[0] == block.kv_heads[0] == 0
        assert 0 < block.ffn[1] < block.ffn[2]
        assert 0 < block.kv_heads[1] <= block.kv_heads[2]
    seen: list[torch.Tensor] = []
    down = llama.model.model.layers[-1].mlp.down_proj
    hook = down.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach().reshape(-1, WIDTH)))
    original = naive_logs(llama.model, llama.windows)
    hook.remove()
    gram = sum(z.T @ z for z in seen) / llama.windows.size
    moment = Stats(llama.folder / "stats").moment(f"model.layers.{BLOCKS - 1}.mlp.down_proj.weight")
    found = refit.least_squares(down.weight.detach(), gram, llama.windows.size)
    predicted = refit.cheapest_first(found, torch.from_numpy(moment), 1, removal.ROUNDS).cost
    wanted = FULL.model_copy(update={"ffn": (WIDTH, WIDTH, WIDTH // 2)})
    measured = kl(original[:, :-1], logs(made(llama, wanted, tmp_path / "half"), llama.windows))
    assert 1 / removal.TRUST < measured / predicted[WIDTH // 2] < removal.TRUST
    factor = (measured / predicted[WIDTH // 2]) ** 0.5
    for entry, gone in ((1, shape.STEP), (2, 2 * shape.STEP)):
        assert costs.blocks[-1].ffn[entry] == pytest.approx(factor * predicted[gone], rel=0.1)


def test_the_least_damage_is_what_the_refitted_model_does(llama: Case, tmp_path: Path) -> None:
    """1/2 tr(F E[e e^T]) behind the first block, from the form and from the models."""
    removed = WIDTH - 64
    first = Shape(ffn=(64, WIDTH, WIDTH), kv_heads=(GROUPS,) * BLOCKS)
    smaller = LayerwiseModel(open_checkpoint(made(llama, first, tmp_path / "first")), 1)
    original = LayerwiseModel(llama.checkpoint, 1)
    source = "model.layers.0.mlp.down_proj.weight"
    fisher = torch.from_numpy(llama.stats.moment(source)).double()
    total, inputs = torch.zeros_like(fisher), []
    with torch.no_grad(), whole(original), whole(smaller):
        down = next(m for m, name in original.linears(0).items() if name == source)
        down.register_forward_pre_hook(lambda _m, args: inputs.append(args[0][0]))
        for window in llama.windows:
            residual_outputs = [
                layerwise.run(0, layerwise.embedded(window[None]))[0] for layerwise in (original, smaller)
            ]
            error = (residual_outputs[0] - residual_outputs[1]).double()
            total += error.T @ error
        z = torch.cat(inputs)
        here = refit.least_squares(down.weight, z.T @ z / len(z), len(z))
        predicted = refit.cheapest_first(here, fisher, 1, removal.ROUNDS, 64).cost[removed]
    measured = float((fisher * total).sum()) / llama.windows.size
    # The prediction has the pull of the form in it, the measurement has not.
    assert 0.4 * predicted < measured <= 1.001 * predicted


def test_what_is_dead_goes_and_no_logit_changes(tmp_path: Path) -> None:
    case = make_case(tmp_path / "model", "llama", "tied", num_hidden_layers=BLOCKS)
    random = np.random.default_rng(0)
    with torch.no_grad():
        for layer in case.model.model.layers:
            dead = random.permutation(WIDTH)[: shape.STEP]
            layer.mlp.down_proj.weight[:, dead] = 0
            layer.mlp.up_proj.weight[dead] = 0
            layer.self_attn.o_proj.weight[:, :32] = 0  # the first KV head's two query heads
    case.model.save_pretrained(case.folder)
    wanted = Shape(ffn=(WIDTH - shape.STEP,) * BLOCKS, kv_heads=(GROUPS - 1,) * BLOCKS)
    found = logs(made(Case(case.folder, case.model, case.windows), wanted, tmp_path / "alive"), case.windows)
    assert torch.allclose(found, naive_logs(case.model, case.windows)[:, :-1], atol=2e-4)


def test_refitting_beats_cutting_and_uneven_beats_even(llama: Case, tmp_path: Path) -> None:
    costs = priced(llama, tmp_path)
    sizes = shape.Sizes.of(llama.checkpoint)
    weights = round(0.3 * BLOCKS * (WIDTH * sizes.channel + GROUPS * sizes.group))
    even = knapsack.without(costs, sizes, weights, PruningLimits(uneven=False, depth=False))
    uneven = knapsack.without(costs, sizes, weights, PruningLimits())
    assert sizes.removed(costs, uneven) >= weights
    original = logs(llama.folder, llama.windows)
    cut = LayerwiseModel(shape.uniform_shape(llama.checkpoint, even), 1)
    with torch.no_grad(), whole(cut):
        crude = kl(original, log_probabilities(cut, llama.windows))
    refitted = [
        kl(original, logs(made(llama, each, tmp_path / name), llama.windows))
        for name, each in (("even", even), ("uneven", uneven))
    ]
    assert refitted[0] < 0.8 * crude
    assert refitted[1] < 1.05 * refitted[0]


def test_a_dropped_block_is_made_good_by_the_one_before(llama: Case, tmp_path: Path) -> None:
    wanted = Shape(ffn=(WIDTH, 0, WIDTH), kv_heads=(GROUPS, 0, GROUPS))
    original = logs(llama.folder, llama.windows)
    patched = kl(original, logs(made(llama, wanted, tmp_path / "patched"), llama.windows))
    crude = LayerwiseModel(shape.uniform_shape(llama.checkpoint, wanted), 1)
    with torch.no_grad(), whole(crude):
        assert patched < 0.7 * kl(original, log_probabilities(crude, llama.windows))


def test_a_killed_run_resumes_to_the_same_bytes(llama: Case, tmp_path: Path) -> None:
    wanted = Shape(ffn=(64, 0, 32), kv_heads=(1, 0, 2))
    expected = files(made(llama, wanted, tmp_path / "whole"))
    assert set(expected) >= {"config.json", "model.safetensors"}
    assert not [name for name in expected if name.endswith((".npy", ".f32"))]
    solve = refit.least_squares
    for solved in (1, 2, 3):
        left = iter(range(solved))

        def dying(*given: Any, left: Any = left) -> Any:
            if next(left, None) is None:
                raise Killed
            return solve(*given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(refit, "least_squares", dying)
            with pytest.raises(Killed):
                made(llama, wanted, tmp_path / f"killed-{solved}")
        assert files(made(llama, wanted, tmp_path / f"killed-{solved}")) == expected
