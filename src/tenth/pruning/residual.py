"""The two matrices of a block that write into the residual stream, and runs that note what modules read and
give.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tenth.calibration.layerwise import LayerwiseModel
from tenth.calibration.stats import Stats


class Part(NamedTuple):
    """A matrix that writes into the residual stream; `unit` neighbouring columns of it can go together."""

    name: str  # "kv_heads" or "ffn"
    module: torch.nn.Linear  # o_proj or down_proj
    unit: int  # columns of a KV head's query heads, or of a channel

    @property
    def units(self) -> int:
        """How many units the matrix has."""
        return int(self.module.in_features // self.unit)


class ResidualOutputs:
    """The two parts of a filled block, attention first, and the modules that feed them."""

    def __init__(self, layerwise: LayerwiseModel, index: int) -> None:
        checkpoint = layerwise.checkpoint
        modules = {name: module for module, name in layerwise.linears(index).items()}
        self._names = {module: name for name, module in modules.items()}
        self.out, self.down = (modules[name] for name in checkpoint.residual_outputs(index))
        self.parts = (
            Part("kv_heads", self.out, self.out.in_features // max(checkpoint.shape.kv_heads)),
            Part("ffn", self.down, 1),
        )
        roles = {role: entry.source.format(i=index) for role, entry in checkpoint.block().items()}
        self.readers = {  # what is between the residual stream and a part
            part.name: [
                modules[name]
                for role, name in roles.items()
                if role.startswith(prefix) and name in modules and modules[name] not in (self.out, self.down)
            ]
            for part, prefix in zip(self.parts, ("attn_", "ffn_"), strict=True)
        }

    def moment(self, part: Part, stats: Stats) -> torch.Tensor:
        """F = E[g g^T] of the gradients at a part's output (pruning/refit.py), [hidden, hidden]."""
        return torch.from_numpy(stats.moment(self._names[part.module])).to(part.module.weight.device)


class InputGrams:
    """Adds up z z^T of modules' inputs z while the model runs; a context manager."""

    def __init__(self, modules: Sequence[torch.nn.Linear]) -> None:
        self.sums = {
            module: torch.zeros(module.in_features, module.in_features, device=module.weight.device)
            for module in modules
        }

    def __enter__(self) -> InputGrams:
        self._hooks = [module.register_forward_pre_hook(self._add) for module in self.sums]
        return self

    def __exit__(self, *_exc: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _add(self, module: torch.nn.Linear, args: tuple[torch.Tensor, ...]) -> None:
        z = token_rows(args[0])
        self.sums[module].addmm_(z.T, z)


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass at a module."""


@dataclass
class Trace:
    """What modules read and gave in one forward pass, [windows * T, features] each."""

    inputs: dict[torch.nn.Linear, torch.Tensor] = field(default_factory=dict)
    outputs: dict[torch.nn.Linear, torch.Tensor] = field(default_factory=dict)


def traced(
    layerwise: LayerwiseModel,
    index: int,
    hidden: torch.Tensor,
    modules: Iterable[torch.nn.Linear],
    last: torch.nn.Linear,
) -> Trace:
    """Run a filled block as far as the input of the module `last`, noting it and the `modules`."""
    trace = Trace()

    def note_input(module: torch.nn.Linear, args: tuple[torch.Tensor, ...]) -> None:
        trace.inputs[module] = token_rows(args[0])
        if module is last:
            raise _Reached

    def note_output(module: torch.nn.Linear, _args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        trace.outputs[module] = token_rows(out)

    with ExitStack() as stack:
        for module in {*modules, last}:
            stack.callback(module.register_forward_pre_hook(note_input).remove)
            stack.callback(module.register_forward_hook(note_output).remove)
        with suppress(_Reached):
            layerwise.run(index, hidden)
    return trace


def token_rows(states: torch.Tensor) -> torch.Tensor:
    """[windows, T, width] as [windows * T, width]."""
    return states.reshape(-1, states.shape[-1])


def unit_columns(units: Iterable[int], unit: int, device: torch.device) -> torch.Tensor:
    """The columns of units, ascending."""
    ascending = torch.tensor(sorted(units), dtype=torch.long, device=device)
    return (ascending[:, None] * unit + torch.arange(unit, device=device)).reshape(-1)


def with_columns(weight: torch.Tensor, columns: torch.Tensor, values: torch.Tensor) -> torch.nn.Parameter:
    """A matrix of the size of `weight` that is 0 but for those values [out, len(columns)] of its columns."""
    whole = torch.zeros_like(weight)
    whole[:, columns] = values
    return torch.nn.Parameter(whole, requires_grad=False)


def read_windows(files: Sequence[Path]) -> np.ndarray:
    """int32 [windows, T] of several files, one after the other."""
    return np.concatenate([np.load(path, allow_pickle=False) for path in files])
