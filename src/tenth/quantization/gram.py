r"""Gram matrices of what linear sites read, weighted by how much it matters: what error feedback minimises.

    H = S A S,    A = sum_t e_t x_t x_t^T,    S diagonal, so that H's diagonal is the Fisher information's

x_t is the input at position t and e_t = |g_t|^2 the squared gradient of the output there (GuidedQuant, Kim
et al. 2025, arXiv 2505.07004, with one group): a position whose output does not matter does not count. The
scaling S brings in what A lacks, that errors of one weight at different positions add up
(calibration/fisher.py). Held-out KL of a 46 M Llama, all matrices at 2.3 bits, 256 windows: .361 with e_t =
1, .344 with A, .337 with H, .338 with half A and half the full sum of G^T G over window gradients G, which
takes a product more per window.

Where the blocks before are stored already, a site reads y in place of x (quantization/sequential.py). A and H
are then made of y, and what Q y should come near to is W x. The matrix that does so best, before any
rounding, is

    W (1 + D),    D = K inverse(A),    K = sum_t e_t (x_t - y_t) y_t^T

(Qronos, Zhang et al. 2025, arXiv 2505.11695; QEP, Arai and Ichikawa 2025, arXiv 2504.09629).

float32 [in, in]; one block's matrices are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch

from tenth.quantization.gptq import damped


class Grams:
    """Adds up A for some linear modules while the model runs, one window at a time; a context manager.

    energies: module -> float32 [windows, T], as `Stats.energy` gives them.
    """

    def __init__(self, energies: Mapping[torch.nn.Linear, np.ndarray]) -> None:
        self._energies = energies
        self._seen = dict.fromkeys(energies, 0)
        self._sums = {
            module: torch.zeros(module.in_features, module.in_features, device=module.weight.device)
            for module in energies
        }

    def __enter__(self) -> Self:
        self._hooks = [module.register_forward_pre_hook(self._add) for module in self._energies]
        return self

    def __exit__(self, *_exc: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def take(self, module: torch.nn.Linear, fisher: np.ndarray) -> torch.Tensor:
        """H of a module, [in, in], with the diagonal fisher, float32 [in]; its sum is given up."""
        return scaled(self._sums.pop(module), fisher)

    def _add(self, module: torch.nn.Linear, args: tuple[torch.Tensor, ...]) -> None:
        x = _rows(args) * self._next_root(module)
        self._sums[module].addmm_(x.T, x)

    def _next_root(self, module: torch.nn.Linear) -> torch.Tensor:
        """Roots of the energies of the module's next window, [T, 1]."""
        window = self._seen[module]
        self._seen[module] += 1
        return torch.from_numpy(self._energies[module][window]).to(module.weight.device).sqrt()[:, None]


class Pairs(Grams):
    """The same for a model of which the blocks before are stored; each window is run twice, first as it
    arrives in the original (x), then in the stored model (y).
    """

    def __init__(self, energies: Mapping[torch.nn.Linear, np.ndarray]) -> None:
        super().__init__(energies)
        self._original: dict[torch.nn.Linear, torch.Tensor] = {}
        self._lost = {module: torch.zeros_like(total) for module, total in self._sums.items()}

    def shift(self, module: torch.nn.Linear) -> torch.Tensor:
        """D of a module, [in, in], before its sum is taken."""
        total, lost = self._sums[module], self._lost.pop(module)
        mean = total.diagonal().mean()
        if mean <= 0:
            return lost
        found: torch.Tensor = torch.linalg.solve(damped(total), lost.T / mean).T
        return found

    def _add(self, module: torch.nn.Linear, args: tuple[torch.Tensor, ...]) -> None:
        if module not in self._original:
            self._original[module] = _rows(args)
            return
        root = self._next_root(module)
        x, y = self._original.pop(module) * root, _rows(args) * root
        self._sums[module].addmm_(y.T, y)
        self._lost[module].addmm_((x - y).T, y)


def _rows(args: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What a module was given, [T, in]."""
    inputs = args[0].detach()
    return inputs.reshape(-1, inputs.shape[-1])


def scaled(gram: torch.Tensor, fisher: np.ndarray) -> torch.Tensor:
    """`gram` with its rows and columns scaled so that its diagonal is `fisher`, float32 [in]; in place."""
    wanted = torch.from_numpy(fisher).to(gram.device)
    root = (wanted / gram.diagonal().clamp_min(1e-30)).sqrt_()
    root[gram.diagonal() <= 0] = 0.0
    gram.mul_(root[:, None]).mul_(root)
    gram.diagonal().copy_(wanted)
    return gram
