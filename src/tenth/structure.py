"""Smaller models: what each removal costs, and the model without what was chosen, refitted in closed form.

Two stages of a fit, each a child process. `price` walks the original once and gives a `Menu`: for each block
the costs of removing FFN channels and KV groups (refit.py), and what removing its attention or all of it did
to the output (depth.py). `run` follows a `Shape`: the original and the smaller model are walked together, and
each o_proj and down_proj is chosen and refitted on what it will really read,

    target = W x + SHARE (r - s),    r, s residual streams of the original and the smaller model there,

so that it makes good what was lost before it too. A block that is dropped whole is part of the target of the
down_proj before it: its closed-form patch, at no weight more (ReplaceMe, Shopkhoev et al. 2025, arXiv
2505.02819). q, k, v, gate and up only lose rows. Where a norm stands between a matrix and the residual
stream, or a block's halves are parallel, SHARE is 0.

Peak memory: one block, and for its widest site a few matrices of [in, in] in float64; hidden states of every
block boundary of the original (price: of two) are on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenth import depth, refit, shape, surgery
from tenth.calibrate import Stats
from tenth.checkpoint import Checkpoint, open_checkpoint
from tenth.formats.folder import write_folder
from tenth.outline import taken
from tenth.records import Shape
from tenth.shape import BlockMenu, Menu
from tenth.store import atomic, write_text
from tenth.walk import Hidden, Walk

SHARE = 0.7  # of what was lost before; .5 and 1 are 1 to 4 % worse
ROUNDS = 48  # of removing channels
DEPTH_WINDOWS = 4  # that the removal of whole parts is measured on

Windows = Sequence[str]  # files of int32 [windows, T]


def price(
    emit: Callable[[dict[str, Any]], None], model: str, tokens: Windows, calibration: str, folder: str,
    threads: int, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """In a child process: menu.json into `folder`, from the original and its calibration; resumes by block.

    Emits {"done", "total"} in block passes.
    """
    here, windows = Path(folder), _read(tokens)
    walk, stats = Walk(open_checkpoint(Path(model)), threads, device), Stats(Path(calibration))
    blocks, arch, config = len(walk.blocks), walk.checkpoint.arch, walk.checkpoint.config
    few = windows[: min(DEPTH_WINDOWS, len(windows))]
    share = len(few) / len(windows)
    total = blocks + depth.passes(blocks) * share
    groups = arch.heads(config)[1]
    state = Hidden(here, len(windows), windows.shape[1], walk.width, walk.device)
    menus: list[BlockMenu] = []
    with torch.no_grad():
        measured = depth.measure(walk, few, here, lambda done: emit({"done": done * share, "total": total}))
        start = next((i for i in reversed(range(blocks)) if state.has(i) and _saved(here, i)), None)
        if start is None:
            _embed(walk, windows, state)
        for index in range(start or 0, blocks):
            fisher = torch.from_numpy(stats.residual(index)).to(walk.device)
            with walk.block(index):
                ends = _Ends(walk, index)
                with _Inputs(ends.modules) as seen:
                    state.write(index + 1, (walk.run(index, hidden) for hidden in state.read(index)))
                costs = []
                for module, unit in ((ends.down, 1), (ends.out, ends.out.in_features // groups)):
                    here_site = refit.site(module.weight, seen.sums.pop(module) / windows.size)
                    rounds = ROUNDS if unit == 1 else groups
                    costs.append([0.5 * c for c in refit.removal(here_site, fisher, unit, rounds).cost])
            attention = max(costs[1][-2], measured.attention[index])
            menu = BlockMenu(
                ffn=shape.sampled(costs[0], len(costs[0]) - 1), kv_heads=(*costs[1][:-1], attention),
                whole=measured.whole[index],
            )  # fmt: skip
            write_text(here / f"menu-{index:04d}.json", menu.model_dump_json())
            state.drop(index)
            emit({"done": depth.passes(blocks) * share + index + 1, "total": total})
    for index in range(blocks):
        menus.append(BlockMenu.model_validate_json((here / f"menu-{index:04d}.json").read_text()))
        (here / f"menu-{index:04d}.json").unlink()
    found = Menu(channels=arch.axes(config)["ffn"], groups=groups, blocks=tuple(menus))
    write_text(here / "menu.json", found.model_dump_json())
    state.clear()
    depth.clear(here)
    return {"blocks": blocks}


def run(
    emit: Callable[[dict[str, Any]], None], model: str, tokens: Windows, calibration: str,
    chosen: dict[str, Any], folder: str, threads: int, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """In a child process: the model of a `Shape` (its fields) as a Hugging Face folder, float32; resumes by
    block.

    Emits {"done", "total"} in block passes.
    """
    here, windows, wanted = Path(folder), _read(tokens), Shape.model_validate(chosen)
    checkpoint, stats = open_checkpoint(Path(model)), Stats(Path(calibration))
    walk = Walk(checkpoint, threads, device)
    blocks, kept = len(walk.blocks), wanted.kept
    state = Hidden(here, len(windows), windows.shape[1], walk.width, walk.device)
    share = SHARE if checkpoint.arch.sequential else 0.0
    with torch.no_grad():
        start = next((n for n, i in enumerate(kept) if not (here / _edit(i)).exists()), len(kept))
        if start < len(kept) and not (state.has(kept[start]) and state.has(_own(kept[start]))):
            start = 0
        if start == 0:
            _embed(walk, windows, state)
            state.write(_own(kept[0]), state.read(0))
            _original(walk, state, 0, kept[0])
        for number in range(start, len(kept)):
            index = kept[number]
            after = kept[number + 1] if number + 1 < len(kept) else blocks
            fisher = torch.from_numpy(stats.residual(index)).to(walk.device)
            _original(walk, state, index, after)
            _block(walk, index, after, state, wanted, fisher, share, here)
            for passed in range(index, after):
                state.drop(passed)
            state.drop(_own(index))
            emit({"done": after, "total": blocks})
    state.clear()
    smaller = assembled(checkpoint, wanted, here)
    write_folder(smaller, here)
    for index in kept:
        (here / _edit(index)).unlink()
    return {"weights": sum(spec.count for spec in smaller.specs())}


def assembled(checkpoint: Checkpoint, wanted: Shape, folder: Path) -> Checkpoint:
    """The checkpoint in that shape with the edits that `run` left in the folder."""
    edits = {index: _Edit.load(folder / _edit(index)) for index in wanted.kept}
    smaller = taken(checkpoint, wanted, lambda i: (edits[i].ffn.tolist(), edits[i].kv_heads.tolist()))
    block = smaller.arch.block(smaller.config)
    values = {}
    for number, index in enumerate(wanted.kept):
        values[block["ffn_down.weight"].source.format(i=number)] = edits[index].down
        if wanted.kv_heads[index]:
            values[block["attn_output.weight"].source.format(i=number)] = edits[index].out
    return surgery.replaced(smaller, values)


@dataclass(frozen=True)
class _Edit:
    """What stays of a block, ascending, and the refitted matrices, float32 [hidden, columns that stay]."""

    ffn: np.ndarray
    kv_heads: np.ndarray
    down: np.ndarray
    out: np.ndarray

    def save(self, path: Path) -> None:
        with atomic(path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **vars(self))

    @classmethod
    def load(cls, path: Path) -> _Edit:
        with np.load(path, allow_pickle=False) as data:
            return cls(**{name: data[name] for name in data.files})


class _Ends:
    """The two modules of a block that write into the residual stream."""

    def __init__(self, walk: Walk, index: int) -> None:
        block = walk.checkpoint.arch.block(walk.checkpoint.config)
        modules = {name: module for module, name in walk.linears(index).items()}
        self.out, self.down = (
            modules[block[role].source.format(i=index)] for role in ("attn_output.weight", "ffn_down.weight")
        )
        self.modules = (self.out, self.down)


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
        z = args[0].reshape(-1, args[0].shape[-1])
        self.sums[module].addmm_(z.T, z)


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass at a module."""


@dataclass
class _Notes:
    """What modules got and gave in one forward pass."""

    inputs: dict[Any, torch.Tensor] = field(default_factory=dict)
    outputs: dict[Any, torch.Tensor] = field(default_factory=dict)


def _pass(walk: Walk, index: int, hidden: torch.Tensor, ends: _Ends, last: Any) -> _Notes:
    """Run a block as far as the input of the module `last`."""
    notes = _Notes()

    def note_input(module: Any, args: tuple[Any, ...]) -> None:
        notes.inputs[module] = args[0].reshape(-1, args[0].shape[-1])
        if module is last:
            raise _Reached

    def note_output(module: Any, _args: tuple[Any, ...], out: torch.Tensor) -> None:
        notes.outputs[module] = out.reshape(-1, out.shape[-1])

    with ExitStack() as stack:
        for module in ends.modules:
            stack.callback(module.register_forward_pre_hook(note_input).remove)
            stack.callback(module.register_forward_hook(note_output).remove)
        with suppress(_Reached):
            walk.run(index, hidden)
    return notes


def _block(
    walk: Walk, index: int, after: int, state: Hidden, wanted: Shape, fisher: torch.Tensor, share: float,
    here: Path,
) -> None:  # fmt: skip
    """Choose and refit a block's two ends; leaves the smaller model's hidden states where block `after`
    begins.
    """
    groups = walk.checkpoint.arch.heads(walk.checkpoint.config)[1]
    with walk.block(index):
        ends = _Ends(walk, index)
        weights = {module: module.weight for module in ends.modules}
        edited = dict(weights)
        columns = {}

        def both(last: Any) -> Iterator[tuple[_Notes, _Notes, torch.Tensor, torch.Tensor]]:
            """Each window through the original's block and the smaller model's, and the residual streams."""
            for original, own in zip(state.read(index), state.read(_own(index)), strict=True):
                _set(weights)
                first = _pass(walk, index, original, ends, last)
                _set(edited)
                yield first, _pass(walk, index, own, ends, last), original[0], own[0]

        for module, keep, unit in (
            (ends.out, wanted.kv_heads[index], ends.out.in_features // groups),
            (ends.down, wanted.ffn[index], 1),
        ):
            weight = weights[module]
            gram = torch.zeros(module.in_features, module.in_features, device=weight.device)
            cross, tokens = torch.zeros_like(weight), 0
            beyond = _beyond(state, index + 1, after) if module is ends.down and share else None
            for first, second, original, own in both(module):
                x, y = first.inputs[module], second.inputs[module]
                lost = original - own
                if module is ends.down:
                    lost = lost + first.outputs[ends.out] - second.outputs[ends.out]
                target = (x - y) @ weight.T + share * lost
                if beyond is not None:
                    target = target + next(beyond)
                gram.addmm_(y.T, y)
                cross.addmm_(target.T, y)
                tokens += len(y)
            found = refit.site(weight, gram / tokens, cross / tokens)
            columns[module] = _columns(found, fisher, unit, keep)
            values = refit.refit(found, columns[module])
            whole = torch.zeros_like(weight)
            whole[:, columns[module]] = values
            edited[module] = torch.nn.Parameter(whole, requires_grad=False)
        _set(edited)
        state.write(_own(after), (walk.run(index, own) for own in state.read(_own(index))))
        unit = ends.out.in_features // groups
        _Edit(
            columns[ends.down].cpu().numpy(), (columns[ends.out][::unit] // unit).cpu().numpy(),
            edited[ends.down][:, columns[ends.down]].cpu().numpy(),
            edited[ends.out][:, columns[ends.out]].cpu().numpy(),
        ).save(here / _edit(index))  # fmt: skip


def _columns(found: refit.Site, fisher: torch.Tensor, unit: int, keep: int) -> torch.Tensor:
    """The columns that stay, ascending."""
    units = found.best.shape[1] // unit
    gone = refit.removal(found, fisher, unit, ROUNDS, keep).order if keep < units else []
    stay = torch.tensor(sorted(set(range(units)) - set(gone)), dtype=torch.long, device=fisher.device)
    return (stay[:, None] * unit + torch.arange(unit, device=fisher.device)).reshape(-1)


def _set(weights: dict[Any, Any]) -> None:
    for module, weight in weights.items():
        module.weight = weight


def _beyond(state: Hidden, first: int, after: int) -> Iterator[torch.Tensor] | None:
    """What the blocks first..after - 1 added to the residual stream of the original; None where none are."""
    if first == after:
        return None
    return (end[0] - begin[0] for begin, end in zip(state.read(first), state.read(after), strict=True))


def _original(walk: Walk, state: Hidden, first: int, after: int) -> None:
    """The original's hidden states at the boundaries first + 1..after."""
    for index in range(first, after):
        if not state.has(index + 1):
            with walk.block(index):
                state.write(index + 1, (walk.run(index, hidden) for hidden in state.read(index)))


def _embed(walk: Walk, windows: np.ndarray, state: Hidden) -> None:
    with walk.embed() as embed:
        state.write(0, (embed(window) for window in windows))


def _read(tokens: Windows) -> np.ndarray:
    return np.concatenate([np.load(path, allow_pickle=False) for path in tokens])


def _saved(folder: Path, index: int) -> bool:
    """Whether the menus of all blocks before are there."""
    return all((folder / f"menu-{i:04d}.json").exists() for i in range(index))


def _own(index: int) -> str:
    """The smaller model's key of a boundary."""
    return f"own-{index}"


def _edit(index: int) -> str:
    return f"edit-{index:04d}.npz"
