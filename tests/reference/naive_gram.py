"""Gram matrices written for reading: the whole model, plain sums over hooks, float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn


def weighted(model: Any, windows: np.ndarray, energies: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weight name -> sum over positions of energy x x^T, [in, in]. energies: weight name -> [windows, T]."""
    sums: dict[str, np.ndarray] = {}
    seen: dict[str, np.ndarray] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and f"{name}.weight" in energies:

            def keep(_module: object, args: tuple[torch.Tensor, ...], name: str = f"{name}.weight") -> None:
                seen[name] = args[0][0].double().numpy()

            hooks.append(module.register_forward_pre_hook(keep))
    for number, window in enumerate(windows):
        with torch.no_grad():
            model(input_ids=torch.from_numpy(window[None].astype(np.int64)), use_cache=False)
        for name, inputs in seen.items():
            for x, energy in zip(inputs, energies[name][number], strict=True):
                sums[name] = sums.get(name, 0.0) + float(energy) * np.outer(x, x)
    for hook in hooks:
        hook.remove()
    return sums


def with_diagonal(gram: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """Rows and columns scaled so that the diagonal is that one; a column without input stands alone."""
    scaled = np.diag(diagonal.astype(np.float64))
    for i in range(len(gram)):
        for j in range(len(gram)):
            power = gram[i, i] * gram[j, j]
            if i != j and power > 0:
                scaled[i, j] = gram[i, j] * np.sqrt(scaled[i, i] * scaled[j, j] / power)
    return scaled
