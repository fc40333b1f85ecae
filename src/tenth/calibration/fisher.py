r"""How much the output distribution suffers when a weight is disturbed: the Fisher information, streamed.

For a small disturbance dW of one weight matrix the KL divergence to the original is, per token,

    KL = 1/2 E[ <dW, g>^2 ] / T,       g = d(-log p(y | window)) / dW summed over the window's T tokens,

with labels y drawn from the model itself (the true Fisher information, not the empirical one: Kunstner et al.
2019, arXiv 1905.12558). We keep its diagonal as a rank-one product, f[i, j] = rows[i] cols[j] / sum, so that
pricing a candidate encoding costs one weighted sum of squares:

    KL(dW) = 1/2 sum_ij f[i, j] dW[i, j]^2 .

The gradient is summed over the window BEFORE it is squared: errors of one weight at different positions add
up coherently (they do in attn_v, whose output attention averages: without this the predicted KL there is
under-predicted by a factor 1.7). Measured on a 46 M Llama against the true KL of disturbing single matrices,
1.6 to 4.3 bits: mean log-ratio +0.09, standard deviation 0.075; a layer-output error weighted by output
gradients has 0.21. For whole plans see docs/log.md. It fails where the disturbance is not small: below two
bits on everything the sum over-predicts, though the order of choices stays right.

llama.cpp also rounds the ACTIVATIONS to 8 bits before a product with a quantised matrix, in blocks of 256
(K-, I- and ternary types) or 32 (legacy types). That noise is independent of the bits chosen and is the floor
that Q8_0 stands on. We keep what predicts it: `grad2`, the per-position second moment of the output's
gradient, and `noise`, the mean square error of rounding each input column for both block lengths.
For error feedback (quantization/rounding.py) we keep each position's `energy`, the squared gradient of the
site's output; for the removal of structure (pruning/refit.py), of a block's two ends, all of E[g g^T].

Peak memory: one block as float32, its largest weight gradient, and one window of hidden states (on a GPU
layerwise.TOGETHER of both); hidden states at block boundaries are on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tenth.calibration.layerwise import Hidden, LayerwiseModel
from tenth.core.ggml import ACTIVATION_BLOCKS
from tenth.core.jobs import Compute, Emit
from tenth.core.store import atomic
from tenth.models.checkpoint import HEAD, open_checkpoint

ROWS_AT_ONCE = 8192  # of a weight gradient; bounds its memory


class _SiteSums:
    """Adds up one SiteStats over windows."""

    def __init__(self, out: int, columns: int, device: torch.device, whole: bool = False) -> None:
        def zeros(size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.float64, device=device)

        self.rows, self.grad2, self.cols, self.square = zeros(out), zeros(out), zeros(columns), zeros(columns)
        self.noise = {n: zeros(columns) for n in ACTIVATION_BLOCKS}
        self.moment = torch.zeros(out, out, device=device) if whole else None
        self.energy: list[np.ndarray] = []
        self.windows = 0

    def add(self, x: torch.Tensor, g: torch.Tensor) -> None:
        """Windows: inputs [B, T, in], gradients of each one's summed loss at the outputs [B, T, out]."""
        for start in range(0, g.shape[2], ROWS_AT_ONCE):
            square = (g[:, :, start : start + ROWS_AT_ONCE].mT @ x).square_().sum(0)
            self.rows[start : start + ROWS_AT_ONCE] += square.sum(1)
            self.cols += square.sum(0)
        self.windows += len(x)
        self.energy.append(g.square().sum(2).cpu().numpy())
        x, g = x.flatten(0, 1), g.flatten(0, 1)
        if self.moment is not None:
            self.moment.addmm_(g.T, g)
        self.grad2 += g.square().sum(0)
        self.square += x.square().sum(0)
        for n in ACTIVATION_BLOCKS:
            self.noise[n] += rounding_noise(x, n)

    def arrays(self, source: str, length: int) -> dict[str, np.ndarray]:
        """Means per token, ready to store."""
        scale = 1.0 / max(1, self.windows * length)
        values = {"rows": self.rows, "cols": self.cols, "grad2": self.grad2, "square": self.square}
        values |= {f"noise{n}": noise for n, noise in self.noise.items()}
        arrays = {key: (value * scale).cpu().numpy().astype(np.float32) for key, value in values.items()}
        if self.moment is not None:
            arrays["moment"] = (self.moment * scale).cpu().numpy()
        if self.energy:
            arrays["energy"] = np.concatenate(self.energy)
        return {f"{source}/{key}": value for key, value in arrays.items()}


def rounding_noise(x: torch.Tensor, block: int) -> torch.Tensor:
    """[in] float64: summed over tokens, the square error of rounding x [T, in] to 8 bits by blocks.

    The step is amax / 127 (ggml-quants.c, quantize_row_q8_K and quantize_row_q8_0). A last block may be
    short.
    """
    tokens, columns = x.shape
    padded = torch.nn.functional.pad(x, (0, -columns % block)).reshape(tokens, -1, block)
    step = (padded.abs().amax(2, keepdim=True) / 127).clamp_min(1e-30)
    error = padded - step * (padded / step).round_()
    return error.square_().sum(0).reshape(-1)[:columns].double()


def calibrate(model: Path, tokens: Path, seed: int, folder: Path, compute: Compute, emit: Emit) -> None:
    """Fill `folder` with the statistics of every block (calibration/stats.py); resumes in it.

    model: a Hugging Face folder. tokens: npy, int32 [windows, T]. seed: of the labels that are drawn. Emits
    {"done": work, "total": work}, in block passes.
    """
    windows = np.load(tokens, allow_pickle=False)
    layerwise = LayerwiseModel(open_checkpoint(model), compute.threads, compute.device)
    depth = len(layerwise.blocks)
    total = 4 * depth + 2
    state = layerwise.states(folder, windows)

    def done(work: int) -> None:
        emit({"done": work, "total": total})

    _forward(layerwise, windows, state, done)
    _head(layerwise, windows, state, folder, seed)
    done(depth + 1)
    for index in reversed(range(depth)):
        _block(layerwise, index, state, folder)
        done(depth + 1 + 3 * (depth - index))
    _embedding(layerwise, windows, state, folder)
    done(total)
    state.clear()


def _forward(
    layerwise: LayerwiseModel, windows: np.ndarray, state: Hidden, done: Callable[[int], None]
) -> None:
    """Hidden states at every block boundary, on disk: boundary i enters block i."""
    if not state.has(0):
        layerwise.embed_windows(windows, state)
    with torch.no_grad():
        for index in range(len(layerwise.blocks)):
            if not state.has(index + 1):
                with layerwise.block(index):
                    layerwise.advance(index, state)
            done(index + 1)


def _head(layerwise: LayerwiseModel, windows: np.ndarray, state: Hidden, here: Path, seed: int) -> None:
    """Draw labels from the model, start the gradient, and keep the head's own stats."""
    if (here / "stats-head.npz").exists():
        return
    draw = torch.Generator().manual_seed(seed)
    with layerwise.head() as head:
        site = _SiteSums(head.out_features, head.in_features, layerwise.device)
        seen: list[torch.Tensor] = []
        hook = head.register_forward_hook(lambda _m, args, out: seen.extend((args[0].detach(), out)))

        def gradients() -> Iterator[torch.Tensor]:
            for hidden in (
                window for part in state.read(len(layerwise.blocks)) for window in torch.split(part, 1)
            ):
                seen.clear()
                hidden.requires_grad_(True)
                logits = layerwise.logits(hidden)[0]
                with torch.no_grad():
                    points = torch.rand(len(logits), 1, generator=draw).to(logits.device)
                    below = logits.softmax(-1).cumsum(-1)
                    labels = torch.searchsorted(below, points * below[:, -1:], right=True)[:, 0]
                    labels.clamp_(max=below.shape[1] - 1)
                    del below
                loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
                g_out, g_in = torch.autograd.grad(loss, (seen[1], hidden))
                site.add(seen[0], g_out)
                yield g_in

        state.write(f"gradient-{len(layerwise.blocks)}", gradients())
        hook.remove()
        _save(here / "stats-head.npz", site.arrays(layerwise.source_of(head), windows.shape[1]))


def _block(layerwise: LayerwiseModel, index: int, state: Hidden, here: Path) -> None:
    """One block backward: run it again with gradients, keep its sites' stats, hand the gradient down."""
    path = here / f"stats-{index:04d}.npz"
    if path.exists():
        return
    with layerwise.block(index):
        linears = layerwise.linears(index)
        residual_outputs = layerwise.checkpoint.residual_outputs(index)
        sites = {
            m: _SiteSums(m.out_features, m.in_features, layerwise.device, name in residual_outputs)
            for m, name in linears.items()
        }
        seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
        hooks = [
            m.register_forward_hook(lambda m, args, out: seen.update({m: (args[0].detach(), out)}))
            for m in linears
        ]

        def gradients() -> Iterator[torch.Tensor]:
            for hidden, gradient in zip(state.read(index), state.read(f"gradient-{index + 1}"), strict=True):
                seen.clear()
                hidden.requires_grad_(True)
                out = layerwise.run(index, hidden)
                outputs = [seen[m][1] for m in linears]
                *g_outs, g_in = torch.autograd.grad(out, (*outputs, hidden), gradient)
                for m, g in zip(linears, g_outs, strict=True):
                    sites[m].add(*(t.reshape(len(hidden), -1, t.shape[-1]) for t in (seen[m][0], g)))
                yield g_in

        state.write(f"gradient-{index}", gradients())
        for hook in hooks:
            hook.remove()
        arrays = [site.arrays(linears[module], state.length) for module, site in sites.items()]
        _save(path, {key: value for part in arrays for key, value in part.items()})
    state.drop(f"gradient-{index + 1}")  # only now: a killed run starts this block again from it


def _embedding(layerwise: LayerwiseModel, windows: np.ndarray, state: Hidden, here: Path) -> None:
    """The embedding's stats: gradients of one token's occurrences add up before they are squared."""
    path, source = here / "stats-embedding.npz", layerwise.source_of(layerwise.embedding)
    if path.exists():
        return
    rows, columns = layerwise.checkpoint.tensors[source].shape
    site = _SiteSums(rows, columns, layerwise.device)
    with layerwise.embed() as embed:  # some families scale what they look up
        weight = layerwise.embedding.weight
        assert isinstance(weight, torch.Tensor)
        looked_up = weight[layerwise.ids(windows[0])]
        scale = float(embed(windows[0]).norm() / looked_up.norm().clamp_min(1e-30))
    gradients = (window for part in state.read("gradient-0") for window in part)
    for window, gradient in zip(windows, gradients, strict=True):
        ids, where = np.unique(window, return_inverse=True)
        summed = torch.zeros(len(ids), columns, device=layerwise.device)
        summed.index_add_(0, layerwise.ids(where), gradient * scale)
        square = summed.square_()
        site.rows[layerwise.ids(ids)] += square.sum(1)
        site.cols += square.sum(0)
        site.windows += 1
    arrays = site.arrays(source, windows.shape[1])
    if layerwise.checkpoint.shape.tied:  # the two uses are independent
        with np.load(here / "stats-head.npz", allow_pickle=False) as head:
            arrays = {key: value + head[key.replace(source, HEAD)] for key, value in arrays.items()}
    _save(path, arrays)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with atomic(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
