"""Gram matrices written for reading: the whole model, plain sums over hooks, float64."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn


def inputs(model: Any, windows: np.ndarray, names: Iterable[str]) -> dict[str, list[np.ndarray]]:
    """Weight name -> what that linear module reads in each window, float64 [T, in]."""
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and f"{name}.weight" in seen:

            def keep(_module: object, args: tuple[torch.Tensor, ...], name: str = f"{name}.weight") -> None:
                seen[name].append(args[0][0].double().numpy())

            hooks.append(module.register_forward_pre_hook(keep))
    for window in windows:
        with torch.no_grad():
            model(input_ids=torch.from_numpy(window[None].astype(np.int64)), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def weighted(model: Any, windows: np.ndarray, energies: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weight name -> sum over positions of energy x x^T, [in, in]. energies: weight name -> [windows, T]."""
    sums: dict[str, np.ndarray] = {}
    for name, read in inputs(model, windows, energies).items():
        for x, energy in zip(np.concatenate(read), energies[name].reshape(-1), strict=True):
            sums[name] = sums.get(name, 0.0) + float(energy) * np.outer(x, x)
    return sums


def nearest_weight(
    weight: np.ndarray, x: np.ndarray, y: np.ndarray, energy: np.ndarray, pull: float
) -> np.ndarray:
    """V [out, in] of least sum over positions of energy |W x - V y|^2, plus pull |V - W|^2, by ordinary least
    squares. x, y: [positions, in].
    """
    root = np.sqrt(energy.astype(np.float64))[:, None]
    left = np.concatenate([root * y, np.sqrt(pull) * np.eye(y.shape[1])])
    right = np.concatenate([root * (x @ weight.T), np.sqrt(pull) * weight.T])
    found: np.ndarray = np.linalg.lstsq(left, right, rcond=None)[0].T
    return found


def with_diagonal(gram: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """Rows and columns scaled so that the diagonal is that one; a column without input stands alone."""
    scaled = np.diag(diagonal.astype(np.float64))
    for i in range(len(gram)):
        for j in range(len(gram)):
            power = gram[i, i] * gram[j, j]
            if i != j and power > 0:
                scaled[i, j] = gram[i, j] * np.sqrt(scaled[i, i] * scaled[j, j] / power)
    return scaled
