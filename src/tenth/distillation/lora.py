"""Low-rank adapters, W + SCALE B A (Hu et al. 2021, arXiv 2106.09685), for when W's moments find no room."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tenth.calibration.layerwise import LayerwiseModel

SCALE = 2.0


class Adapter(nn.Module):
    """In the place of a linear module, whose weights it shares and leaves as they are."""

    def __init__(self, linear: nn.Linear, rank: int, seed: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        rows, columns = linear.weight.shape
        rank, device = min(rank, rows, columns), linear.weight.device
        start = torch.randn(rank, columns, generator=torch.Generator().manual_seed(seed)) * columns**-0.5
        self.down = nn.Parameter(start.to(device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=device))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The linear map with what was learnt."""
        low = functional.linear(functional.linear(inputs, self.down), self.up)
        return functional.linear(inputs, self.weight, self.bias) + SCALE * low

    def merge(self) -> None:
        """Move what was learnt into the weights, in place."""
        with torch.no_grad():
            self.weight.addmm_(self.up, self.down, alpha=SCALE)
            self.up.zero_()


def adapt(layerwise: LayerwiseModel, rank: int, seed: int) -> list[Adapter]:
    """Put an adapter in the place of every linear module of the filled blocks."""
    adapters: list[Adapter] = []
    for block in layerwise.blocks:
        linears = [(path, module) for path, module in block.named_modules() if isinstance(module, nn.Linear)]
        for path, linear in linears:
            adapters.append(Adapter(linear, rank, seed + len(adapters)))
            block.set_submodule(path, adapters[-1])
    return adapters
