"""Calibration written for reading: the whole model in memory, autograd, window by window."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

Stats = dict[str, np.ndarray]


def rounding_errors(x: np.ndarray, block: int) -> np.ndarray:
    """[tokens, columns]: what 8-bit rounding in blocks of that length changes; one block after the other."""
    errors = np.zeros_like(x)
    for token in range(x.shape[0]):
        for start in range(0, x.shape[1], block):
            piece = x[token, start : start + block]
            step = np.abs(piece).max() / np.float32(127)
            if step > 0:
                errors[token, start : start + block] = piece - step * np.round(piece / step)
    return errors


def labels_of(model: Any, windows: np.ndarray, seed: int) -> list[torch.Tensor]:
    """Labels drawn from the model, in the order of the windows."""
    draw = torch.Generator().manual_seed(seed)
    drawn = []
    with torch.no_grad():
        for window in windows:
            logits = model(input_ids=torch.from_numpy(window[None].astype(np.int64)), use_cache=False).logits[
                0
            ]
            points = torch.rand(len(window), 1, generator=draw)[:, 0]
            rows = logits.softmax(-1).double().cumsum(-1)
            labels = [
                int((row > point * row[-1]).nonzero()[0]) for row, point in zip(rows, points, strict=True)
            ]
            drawn.append(torch.tensor(labels))
    return drawn


def fisher(model: Any, windows: np.ndarray, seed: int) -> dict[str, Stats]:
    """Weight name -> rows, cols, grad2, square, noise256, noise32, energy.

    The two uses of a tied matrix are apart: a tied head is "lm_head.weight"; the embedding has rows and cols
    only. energy is [windows, T].
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.detach().clone())
    names = {
        module: f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    drawn = labels_of(model, windows, seed)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    inputs: dict[nn.Module, np.ndarray] = {}
    outputs: dict[nn.Module, torch.Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> None:
        inputs[module] = args[0].detach().reshape(-1, args[0].shape[-1]).numpy()
        out.retain_grad()
        outputs[module] = out

    hooks = [module.register_forward_hook(keep) for module in names]
    sums: dict[str, dict[str, Any]] = {}
    energies: dict[str, list[np.ndarray]] = {name: [] for name in names.values()}
    tokens = windows.size
    for window, labels in zip(windows, drawn, strict=True):
        model.zero_grad()
        logits = model(input_ids=torch.from_numpy(window[None].astype(np.int64)), use_cache=False).logits[0]
        (-logits.log_softmax(-1)[torch.arange(len(labels)), labels].sum()).backward()
        found = {"model.embed_tokens.weight": _weight(embedding)}
        for module, name in names.items():
            output = outputs[module].grad
            assert output is not None
            energies[name].append(output.double().square().sum(-1).numpy().reshape(-1))
            found[name] = {
                **_weight(module),
                "grad2": output.reshape(-1, output.shape[-1]).double().square().sum(0).numpy(),
                "square": (inputs[module].astype(np.float64) ** 2).sum(0),
                "noise256": (rounding_errors(inputs[module], 256).astype(np.float64) ** 2).sum(0),
                "noise32": (rounding_errors(inputs[module], 32).astype(np.float64) ** 2).sum(0),
            }
        for name, parts in found.items():
            kept = sums.setdefault(name, {})
            for key, value in parts.items():
                kept[key] = kept.get(key, 0.0) + value / tokens
    for hook in hooks:
        hook.remove()
    for name, windows_of in energies.items():
        sums[name]["energy"] = np.stack(windows_of)
    return sums


def _weight(module: Any) -> Stats:
    square = module.weight.grad.double().square()
    return {"rows": square.sum(1).numpy(), "cols": square.sum(0).numpy()}
