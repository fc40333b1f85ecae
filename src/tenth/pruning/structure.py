"""Smaller models: what each removal costs, and the model without what was chosen, refitted in closed form.

Two stages of a fit, each a child process. `removal_costs` runs the original once and gives a `PruningCosts`:
for each block the costs of removing FFN channels and KV groups (pruning/refit.py), scaled half the way to
what removing half of them did to the output, and what removing its attention or all of it did
(pruning/variants.py). `refitted` follows a `Shape`: the original and the smaller model are walked together,
and each o_proj and down_proj is chosen and refitted on what it will really read,

    target = W x + SHARE (r - s),    r, s residual streams of the original and the smaller model there,

so that it makes good what was lost before it too. A block that is dropped whole is part of the target of the
down_proj before it: its closed-form patch, at no weight more (ReplaceMe, Shopkhoev et al. 2025, arXiv
2505.02819). q, k, v, gate and up move DRIFT of the way to giving on the smaller model's stream what they gave
on the original's, then lose rows. Where a norm stands between a matrix and the residual stream, or a block's
halves are parallel, both shares are 0.

Peak memory: one block, and for its widest site a few matrices of [in, in] in float64; hidden states of every
block boundary of the original (removal_costs: of two) are on disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenth.calibration.fisher import Stats
from tenth.calibration.layerwise import Hidden, LayerwiseModel
from tenth.core.jobs import Emit
from tenth.core.records import Shape
from tenth.core.store import atomic, write_text
from tenth.models import edit as surgery
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.models.formats.folder import write_folder
from tenth.pruning import refit, shape
from tenth.pruning.resized import resized
from tenth.pruning.settings import RefitResult, RefitSettings, RemovalSettings
from tenth.pruning.shape import BlockMenu, PruningCosts
from tenth.pruning.variants import Variants

SHARE = 0.85  # of what was lost before; .7 and 1 are up to 1 % worse, .5 is 4 %
ROUNDS = 48  # of removing channels
FEW = 8  # windows that removals are measured on
VARIANTS = 4  # measured for each block
TRUST = 4.0  # how far a measured cost may be from the predicted one
DRIFT = 0.75  # of what was lost before, that the matrices inside a block follow


def removal_costs(settings: RemovalSettings, emit: Emit) -> PruningCosts:
    """What removing each part of the model costs, also written as pruning-costs.json; resumes by block.

    Emits {"done", "total"} in block passes.
    """
    here, windows = settings.folder, _read(settings.tokens)
    layerwise = LayerwiseModel(open_checkpoint(settings.model), settings.threads, settings.device)
    stats = Stats(settings.calibration)
    blocks, arch, config = len(layerwise.blocks), layerwise.checkpoint.arch, layerwise.checkpoint.config
    groups, channels = arch.heads(config)[1], arch.axes(config)["ffn"]
    state = _hidden(here, layerwise, windows)
    few = Variants(
        layerwise, Hidden(here, min(FEW, len(windows)), windows.shape[1], layerwise.width, layerwise.device)
    )
    weight = few.state.windows / len(windows)  # of a pass of a variant, against one of all windows

    def done(index: int) -> float:
        return index + weight * (VARIANTS * index * (index + 1) / 2)

    with torch.no_grad():
        start = max((i for i in range(blocks) if state.has(i) and _priced(here, i)), default=None)
        if start is None:
            _embed(layerwise, windows, state)
        for index in range(start or 0, blocks):
            with layerwise.block(index):
                residual_outputs = _Ends(layerwise, index)
                with _Inputs(residual_outputs.modules) as seen:
                    state.write(index + 1, (layerwise.run(index, hidden) for hidden in state.read(index)))
                few.begin(index, "whole", few.state.read(index), run=False)
                costs = {}
                for name, module, unit in (
                    ("kv_heads", residual_outputs.out, residual_outputs.out.in_features // groups),
                    ("ffn", residual_outputs.down, 1),
                ):
                    found = refit.site(module.weight, seen.sums.pop(module) / windows.size, windows.size)
                    removed = refit.removal(found, residual_outputs.moment(module, stats), unit, ROUNDS)
                    costs[name] = removed.cost
                    tried = {name: len(removed.order) // 2}
                    if module is residual_outputs.out:
                        tried["attention"] = len(removed.order)
                    for variant, gone in tried.items():
                        stay = _columns(removed.order[gone:], unit, layerwise.device)
                        whole = torch.zeros_like(module.weight)
                        whole[:, stay] = refit.refit(found, stay)
                        kept, module.weight = module.weight, torch.nn.Parameter(whole, requires_grad=False)
                        few.begin(index, variant, few.state.read(index))
                        module.weight = kept
                few.step(index)
            write_text(here / f"costs-{index:04d}.json", json.dumps(costs))
            few.drop(index)
            state.drop(index)
            emit({"done": done(index + 1), "total": done(blocks)})
        measured = few.divergences(few.state.read(blocks))
    costs_of = [_block_costs(here, index, measured, channels) for index in range(blocks)]
    costs_of_all = PruningCosts(channels=channels, groups=groups, blocks=tuple(costs_of))
    write_text(here / "pruning-costs.json", costs_of_all.model_dump_json())
    state.clear()
    for index in range(blocks):
        (here / f"costs-{index:04d}.json").unlink()
    return costs_of_all


def _block_costs(
    folder: Path, index: int, measured: Mapping[tuple[int, str], float], channels: int
) -> BlockMenu:
    """The costs of a block, scaled so that half of it costs the geometric mean of predicted and measured."""
    costs = json.loads((folder / f"costs-{index:04d}.json").read_text())

    def scaled(name: str) -> list[float]:
        predicted = costs[name][(len(costs[name]) - 1) // 2]
        factor = measured[index, name] / predicted if predicted > 0 else 1.0
        return [math.sqrt(min(max(factor, 1 / TRUST), TRUST)) * cost for cost in costs[name]]

    groups = scaled("kv_heads")
    attention = max(groups[-2], measured[index, "attention"])
    return BlockMenu(
        ffn=shape.sampled(scaled("ffn"), channels),
        kv_heads=(*groups[:-1], attention),
        whole=measured[index, "whole"],
    )


def refitted(settings: RefitSettings, emit: Emit) -> RefitResult:
    """Write the model of a `Shape` as a Hugging Face folder, float32; resumes by block.

    Emits {"done", "total"} in block passes.
    """
    here, windows, wanted = settings.folder, _read(settings.tokens), settings.shape
    checkpoint, stats = open_checkpoint(settings.model), Stats(settings.calibration)
    layerwise = LayerwiseModel(checkpoint, settings.threads, settings.device)
    blocks, kept = len(layerwise.blocks), wanted.kept
    state = _hidden(here, layerwise, windows)
    share = SHARE if checkpoint.arch.sequential else 0.0
    with torch.no_grad():
        start = next((n for n, i in enumerate(kept) if not (here / _edit(i)).exists()), len(kept))
        if start < len(kept) and not (state.has(kept[start]) and state.has(_own(kept[start]))):
            start = 0
        if start == 0:
            _embed(layerwise, windows, state)
            state.write(_own(kept[0]), state.read(0))
            _original(layerwise, state, 0, kept[0])
        for number in range(start, len(kept)):
            index = kept[number]
            after = kept[number + 1] if number + 1 < len(kept) else blocks
            _original(layerwise, state, index, after)
            _block(layerwise, index, after, state, wanted, stats, share, here)
            for passed in range(index, after):
                state.drop(passed)
            state.drop(_own(index))
            emit({"done": after, "total": blocks})
    state.clear()
    smaller = assembled(checkpoint, wanted, here)
    write_folder(smaller, here)
    for index in kept:
        (here / _edit(index)).unlink()
        for source in _matrices(checkpoint, index):
            (here / f"{source}.npy").unlink()
    return RefitResult(weights=sum(spec.count for spec in smaller.specs()))


def assembled(checkpoint: Checkpoint, wanted: Shape, folder: Path) -> Checkpoint:
    """The checkpoint in that shape with the edits that `refitted` left in the folder: the channels and KV
    heads that stay of a block, and its matrices, in their original sizes.
    """
    stay, values = {}, {}
    for index in wanted.kept:
        edit = json.loads((folder / _edit(index)).read_text())
        stay[index] = edit["ffn"], edit["kv_heads"]
        values.update({source: folder / f"{source}.npy" for source in _matrices(checkpoint, index)})
    return resized(surgery.replaced(checkpoint, values), wanted, stay.__getitem__)


def _matrices(checkpoint: Checkpoint, index: int) -> list[str]:
    """Hugging Face names of a block's matrices."""
    return [spec.source for spec in checkpoint.specs() if spec.layer == index and spec.linear]


class _Ends:
    """The two modules of a block that write into the residual stream."""

    def __init__(self, layerwise: LayerwiseModel, index: int) -> None:
        modules = {name: module for module, name in layerwise.linears(index).items()}
        self.out, self.down = (
            modules[name]
            for name in layerwise.checkpoint.arch.residual_outputs(layerwise.checkpoint.config, index)
        )
        self.modules = (self.out, self.down)
        block = layerwise.checkpoint.arch.block(layerwise.checkpoint.config)
        self.readers = {  # what is between the residual stream and an end
            end: [
                modules[entry.source.format(i=index)]
                for role, entry in block.items()
                if role.startswith(part)
                and entry.source.format(i=index) in modules
                and modules[entry.source.format(i=index)] not in self.modules
            ]
            for end, part in ((self.out, "attn_"), (self.down, "ffn_"))
        }
        self._names = {module: name for name, module in modules.items()}

    def moment(self, module: Any, stats: Stats) -> torch.Tensor:
        """F of a module (pruning/refit.py)."""
        return torch.from_numpy(stats.moment(self._names[module])).to(module.weight.device)


class _Inputs:
    """Adds up z z^T of modules' inputs while the model runs; a context manager."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self.sums = {
            module: torch.zeros(module.in_features, module.in_features, device=module.weight.device)
            for module in modules
        }

    def __enter__(self) -> _Inputs:
        self._hooks = [module.register_forward_pre_hook(self._add) for module in self.sums]
        return self

    def __exit__(self, *_exc: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _add(self, module: Any, args: tuple[Any, ...]) -> None:
        z = _rows(args[0])
        self.sums[module].addmm_(z.T, z)


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass at a module."""


@dataclass
class _Notes:
    """What modules got and gave in one forward pass."""

    inputs: dict[Any, torch.Tensor] = field(default_factory=dict)
    outputs: dict[Any, torch.Tensor] = field(default_factory=dict)


def _pass(
    layerwise: LayerwiseModel, index: int, hidden: torch.Tensor, residual_outputs: _Ends, last: Any
) -> _Notes:
    """Run a block as far as the input of the module `last`."""
    notes = _Notes()

    def note_input(module: Any, args: tuple[Any, ...]) -> None:
        notes.inputs[module] = _rows(args[0])
        if module is last:
            raise _Reached

    def note_output(module: Any, _args: tuple[Any, ...], out: torch.Tensor) -> None:
        notes.outputs[module] = _rows(out)

    with ExitStack() as stack:
        for module in {*residual_outputs.modules, last}:
            stack.callback(module.register_forward_pre_hook(note_input).remove)
            stack.callback(module.register_forward_hook(note_output).remove)
        with suppress(_Reached):
            layerwise.run(index, hidden)
    return notes


def _block(
    layerwise: LayerwiseModel,
    index: int,
    after: int,
    state: Hidden,
    wanted: Shape,
    stats: Stats,
    share: float,
    here: Path,
) -> None:
    """Choose and refit a block's two ends; leaves the smaller model's hidden states where block `after`
    begins.
    """
    groups = layerwise.checkpoint.arch.heads(layerwise.checkpoint.config)[1]
    with layerwise.block(index):
        residual_outputs = _Ends(layerwise, index)
        weights = {module: module.weight for module in layerwise.linears(index)}
        edited = dict(weights)
        columns = {}

        def both(last: Any) -> Iterator[tuple[_Notes, _Notes, torch.Tensor, torch.Tensor]]:
            """Each window through the original's block and the smaller model's, and the residual streams."""
            for original, own in zip(state.read(index), state.read(_own(index)), strict=True):
                _set(weights)
                first = _pass(layerwise, index, original, residual_outputs, last)
                _set(edited)
                yield first, _pass(layerwise, index, own, residual_outputs, last), _rows(original), _rows(own)

        for module, keep, unit in (
            (residual_outputs.out, wanted.kv_heads[index], residual_outputs.out.in_features // groups),
            (residual_outputs.down, wanted.ffn[index], 1),
        ):
            if share:
                _follow(residual_outputs.readers[module], both, edited)
            weight = weights[module]
            gram = torch.zeros(module.in_features, module.in_features, device=weight.device)
            cross, tokens = torch.zeros_like(weight), 0
            beyond = _beyond(state, index + 1, after) if module is residual_outputs.down and share else None
            for first, second, original, own in both(module):
                x, y = first.inputs[module], second.inputs[module]
                lost = original - own
                if module is residual_outputs.down:
                    lost = lost + first.outputs[residual_outputs.out] - second.outputs[residual_outputs.out]
                target = (x - y) @ weight.T + share * lost
                if beyond is not None:
                    target = target + next(beyond)
                gram.addmm_(y.T, y)
                cross.addmm_(target.T, y)
                tokens += len(y)
            found = refit.site(weight, gram / tokens, tokens, cross / tokens)
            order = refit.removal(found, residual_outputs.moment(module, stats), unit, ROUNDS, keep).order
            stay = set(range(module.in_features // unit)) - set(order)
            columns[module] = _columns(stay, unit, weight.device)
            values = refit.refit(found, columns[module])
            whole = torch.zeros_like(weight)
            whole[:, columns[module]] = values
            edited[module] = torch.nn.Parameter(whole, requires_grad=False)
        _set(edited)
        state.write(_own(after), (layerwise.run(index, own) for own in state.read(_own(index))))
        unit = residual_outputs.out.in_features // groups
        for module, source in layerwise.linears(index).items():
            with atomic(here / f"{source}.npy") as partial, partial.open("wb") as file:
                np.save(file, edited[module].cpu().numpy(), allow_pickle=False)
        groups_left = (columns[residual_outputs.out][::unit] // unit).tolist()
        edit = {"ffn": columns[residual_outputs.down].tolist(), "kv_heads": groups_left}
        write_text(here / _edit(index), json.dumps(edit))


def _follow(readers: Sequence[Any], both: Callable[[Any], Iterator[Any]], edited: dict[Any, Any]) -> None:
    """Bring matrices that read the residual stream nearer to giving what they gave on the original's."""
    first = readers[0]
    gram = torch.zeros(first.in_features, first.in_features, device=first.weight.device)
    cross, tokens = torch.zeros_like(gram), 0
    for original, own, *_ in both(first):
        x, y = original.inputs[first], own.inputs[first]
        gram.addmm_(y.T, y)
        cross.addmm_((x - y).T, y)
        tokens += len(y)
    for module in readers:
        weight = edited[module]
        best = refit.site(weight, gram / tokens, tokens, weight @ cross / tokens).best.float()
        edited[module] = torch.nn.Parameter(weight.lerp(best, DRIFT), requires_grad=False)


def _columns(units: Iterable[int], unit: int, device: torch.device) -> torch.Tensor:
    """The columns of units, ascending."""
    stay = torch.tensor(sorted(units), dtype=torch.long, device=device)
    return (stay[:, None] * unit + torch.arange(unit, device=device)).reshape(-1)


def _set(weights: dict[Any, Any]) -> None:
    for module, weight in weights.items():
        module.weight = weight


def _beyond(state: Hidden, first: int, after: int) -> Iterator[torch.Tensor] | None:
    """What the blocks first..after - 1 added to the residual stream of the original; None where none are."""
    if first == after:
        return None
    return (_rows(end - begin) for begin, end in zip(state.read(first), state.read(after), strict=True))


def _original(layerwise: LayerwiseModel, state: Hidden, first: int, after: int) -> None:
    """The original's hidden states at the boundaries first + 1..after."""
    for index in range(first, after):
        if not state.has(index + 1):
            with layerwise.block(index):
                state.write(index + 1, (layerwise.run(index, hidden) for hidden in state.read(index)))


def _rows(states: torch.Tensor) -> torch.Tensor:
    """[windows, T, width] as [windows * T, width]."""
    return states.reshape(-1, states.shape[-1])


def _hidden(folder: Path, layerwise: LayerwiseModel, windows: np.ndarray) -> Hidden:
    return Hidden(
        folder, len(windows), windows.shape[1], layerwise.width, layerwise.device, layerwise.together
    )


def _embed(layerwise: LayerwiseModel, windows: np.ndarray, state: Hidden) -> None:
    with layerwise.embed() as embed:
        state.write(0, (embed(window) for window in windows))


def _read(tokens: Sequence[Path]) -> np.ndarray:
    return np.concatenate([np.load(path, allow_pickle=False) for path in tokens])


def _priced(folder: Path, index: int) -> bool:
    """Whether the costs of all blocks before are there."""
    return all((folder / f"costs-{i:04d}.json").exists() for i in range(index))


def _own(index: int) -> str:
    """The smaller model's key of a boundary."""
    return f"own-{index}"


def _edit(index: int) -> str:
    return f"edit-{index:04d}.json"
