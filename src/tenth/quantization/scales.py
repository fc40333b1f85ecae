"""Training what stays continuous, super-block scales, minima and norms, towards the original's distribution.

Codes and sub-scales are frozen, so every weight is linear in its block's one or two half-precision scales.
These are multiplied by 1 + theta, to the vectors of norms a theta is added; theta follows Adam (Kingma and Ba
2014, arXiv 1412.6980) down KL(original || stored) on windows of the text, more than are calibrated on where
it has more. The last windows of those are not trained on: theta is what was best there, and what does not
help there is not taken. It pays where bits are few (docs/log.md).

The whole model is in memory: about 20 bytes a weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch

from tenth.calibration.layerwise import LayerwiseModel
from tenth.core import digests
from tenth.core.jobs import Compute, Emit
from tenth.core.records import TensorSpec
from tenth.core.store import atomic
from tenth.models.checkpoint import open_checkpoint
from tenth.quantization.encode import keep, path_of
from tenth.quantization.gptq import decode
from tenth.quantization.grids import GRIDS, Grid
from tenth.quantization.settings import ScaleTraining, Trained

HELD_BACK = 16  # windows to judge on
RATE = 1e-3  # of theta, at the start
FULL_RATE_AT = 0.1  # nats of KL; where there is less, the rate falls with its root
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
EVERY = 25  # steps between judgements


def train_scales(
    model: Path,
    texts: tuple[Path, Path],
    rounded: Path,
    types: Mapping[str, str],
    folder: Path,
    training: ScaleTraining,
    compute: Compute,
    emit: Emit,
) -> Trained:
    """Put the tensors in `rounded` with trained scales, and trained vectors, into `folder`; resumes.

    texts: two npy files of int32 [windows, T]; the last of the first are judged on. Emits {"done": steps,
    "total": steps}.
    """
    tokens, further = (np.load(path, allow_pickle=False) for path in texts)
    held = max(1, min(HELD_BACK, len(tokens) // 4))
    train, judge = np.concatenate([tokens[:-held], further]), tokens[-held:]
    checkpoint, steps, batch = open_checkpoint(model), training.steps, training.batch
    original, stored = (LayerwiseModel(checkpoint, compute.threads, compute.device) for _ in range(2))
    with whole(original), whole(stored):
        tensors: list[_Matrix | _Vector] = [*_matrices(stored, types, rounded), *_vectors(stored)]
        for tensor in tensors:
            tensor.show()
        state = _State(tensors, folder / "state.npz")
        if not state.known:
            state.judged(divergence(original, stored, judge, batch))
        rate = RATE * min(1.0, math.sqrt(state.first / FULL_RATE_AT))
        while state.step < steps:
            draw = np.random.default_rng([training.seed, state.step])
            _slope(original, stored, train[draw.choice(len(train), min(batch, len(train)), replace=False)])
            state.move(rate * min(1.0, 2 * (1 - state.step / steps)))
            if state.step % EVERY == 0 or state.step == steps:
                state.judged(divergence(original, stored, judge, batch))
                emit({"done": state.step, "total": steps})
        for tensor, theta in zip(tensors, state.best, strict=True):
            keep(folder, tensor.name, tensor.kind, tensor.with_theta(theta))
    digests.forget(state.path)
    return Trained(before=state.first, after=state.least)


@contextmanager
def whole(layerwise: LayerwiseModel) -> Iterator[None]:
    """Every part of the model filled at once, as its own parameters."""
    with ExitStack() as stack:
        stack.enter_context(layerwise.embed())
        for index in range(len(layerwise.blocks)):
            stack.enter_context(layerwise.block(index))
        stack.enter_context(layerwise.head())
        yield


def log_probabilities(layerwise: LayerwiseModel, tokens: np.ndarray) -> torch.Tensor:
    """[windows, T - 1, vocabulary] of a whole model."""
    hidden = layerwise.embedded(tokens)
    for index in range(len(layerwise.blocks)):
        hidden = layerwise.run(index, hidden)
    return layerwise.logits(hidden)[:, :-1].log_softmax(-1)


def divergence(original: LayerwiseModel, stored: LayerwiseModel, windows: np.ndarray, batch: int) -> float:
    """KL in nats per token over all windows."""
    with torch.no_grad():
        parts = [windows[i : i + batch] for i in range(0, len(windows), batch)]
        sums = [float(_divergence(original, stored, part)) * len(part) for part in parts]
    return sum(sums) / len(windows)


def _divergence(original: LayerwiseModel, stored: LayerwiseModel, tokens: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        wanted = log_probabilities(original, tokens)
    return (wanted.exp() * (wanted - log_probabilities(stored, tokens))).sum(-1).mean()


def _slope(original: LayerwiseModel, stored: LayerwiseModel, tokens: np.ndarray) -> None:
    """Leaves the gradient in the stored model's weights."""
    for part in (
        stored.model,
        *stored.blocks,
    ):  # the blocks stand apart from the model (calibration/layerwise.py)
        part.zero_grad()
    for share in np.split(tokens, len(tokens)) if original.device.type == "cpu" else [tokens]:
        torch.autograd.backward(_divergence(original, stored, share) * (len(share) / len(tokens)))


class _Matrix:
    """A stored matrix whose scales are trained."""

    def __init__(
        self,
        spec: TensorSpec,
        kind: str,
        blocks: np.ndarray,
        modules: list[torch.nn.Linear | torch.nn.Embedding],
    ) -> None:
        self.name, self.kind, self._blocks = spec.name, kind, blocks
        self._grid: Grid = GRIDS[kind]
        self._scales = self._grid.super_scales(blocks)
        order, device = spec.row_order(), modules[0].weight.device
        self._order = None if order is None else torch.from_numpy(order).to(device)
        self._basis = []  # what each kind of scale contributes to the weights, in the GGUF's order of rows
        for kind_of_scale in range(self._scales.shape[2]):
            only = np.zeros_like(self._scales)
            only[..., kind_of_scale] = self._scales[..., kind_of_scale]
            self._basis.append(decode(self._grid, self._grid.with_super_scales(blocks, only), device))
        self.theta = torch.zeros(self._scales.shape, device=device)
        self.weight = torch.nn.Parameter(torch.empty_like(modules[0].weight))
        for module in modules:
            module.weight = self.weight

    def show(self) -> None:
        """Give the model the weights of theta."""
        factors = (1 + self.theta).unbind(2)
        weight = sum(
            (basis.reshape(*factor.shape, -1) * factor[..., None]).flatten(1)
            for basis, factor in zip(self._basis, factors, strict=True)
        )
        assert isinstance(weight, torch.Tensor)
        if self._order is not None:
            weight = torch.empty_like(weight).index_copy_(0, self._order, weight)
        self.weight.data.copy_(weight)

    def slope(self) -> torch.Tensor:
        """The gradient of theta from the weights'."""
        gradient = self.weight.grad
        assert gradient is not None
        if self._order is not None:
            gradient = gradient[self._order]
        blocks = self.theta.shape[:2]
        return torch.stack([(gradient * basis).reshape(*blocks, -1).sum(2) for basis in self._basis], 2)

    def with_theta(self, theta: torch.Tensor) -> np.ndarray:
        """The blocks with the scales of a theta."""
        return self._grid.with_super_scales(self._blocks, self._scales * (1 + theta.cpu().numpy()))


class _Vector:
    """The weight of a norm."""

    kind = "F32"

    def __init__(self, spec: TensorSpec, module: torch.nn.Module) -> None:
        self.name, self._add = spec.name, spec.add
        self._start = module.get_parameter("weight").detach().clone()
        self.theta = torch.zeros_like(self._start)
        self.weight = module.weight = torch.nn.Parameter(self._start.clone())

    def show(self) -> None:
        """Give the model the weight of theta."""
        self.weight.data.copy_(self._start + self.theta)

    def slope(self) -> torch.Tensor:
        """The gradient of theta."""
        assert self.weight.grad is not None
        return self.weight.grad

    def with_theta(self, theta: torch.Tensor) -> np.ndarray:
        """The values as the GGUF has them."""
        return np.asarray((self._start + theta + self._add).cpu().numpy())


def _vectors(layerwise: LayerwiseModel) -> Iterator[_Vector]:
    """The norms."""
    modules = dict(layerwise.named_modules())
    for spec in layerwise.checkpoint.specs():
        module = modules.get(spec.source.removesuffix(".weight"))
        if len(spec.shape) == 1 and spec.source.endswith(".weight") and module is not None:
            yield _Vector(spec, module)


def _matrices(layerwise: LayerwiseModel, types: Mapping[str, str], rounded: Path) -> Iterator[_Matrix]:
    """Those that were rounded and have scales; a tied matrix is both the embedding and the head."""
    places: dict[str, list[torch.nn.Linear | torch.nn.Embedding]] = {
        source: [module]
        for index in range(len(layerwise.blocks))
        for module, source in layerwise.linears(index).items()
    }
    head, tied = layerwise.model.get_output_embeddings(), layerwise.checkpoint.shape.tied
    places[layerwise.source_of(layerwise.embedding if tied else head)] = (
        [head, layerwise.embedding] if tied else [head]
    )
    for spec in (spec for spec in layerwise.checkpoint.specs() if spec.name in types):
        kind = types[spec.name]
        path = path_of(rounded, spec.name, kind)
        if path.exists() and spec.source in places:
            blocks = np.load(path, allow_pickle=False)
            if GRIDS[kind].super_scales(blocks).shape[2]:
                yield _Matrix(spec, kind, blocks, places[spec.source])


class _State:
    """Where training stands; in a file since the last judgement."""

    def __init__(self, tensors: list[_Matrix | _Vector], path: Path) -> None:
        self._tensors, self.path = tensors, path
        self.step, self.first, self.least = 0, math.inf, math.inf
        self.best = [tensor.theta.clone() for tensor in tensors]
        self._mean = [torch.zeros_like(tensor.theta) for tensor in tensors]
        self._square = [torch.zeros_like(tensor.theta) for tensor in tensors]
        self.known = path.exists()
        if self.known:
            with np.load(path, allow_pickle=False) as data:
                self.step, (self.first, self.least) = int(data["step"]), data["kl"].tolist()
                for label, arrays in self._arrays().items():
                    for i, array in enumerate(arrays):
                        array.copy_(torch.from_numpy(data[f"{label}{i}"]))
            for tensor in tensors:
                tensor.show()

    def move(self, rate: float) -> None:
        """Take one step of Adam."""
        self.step += 1
        for tensor, mean, square in zip(self._tensors, self._mean, self._square, strict=True):
            slope = tensor.slope()
            mean.lerp_(slope, 1 - BETA1)
            square.lerp_(slope.square(), 1 - BETA2)
            root = (square / (1 - BETA2**self.step)).sqrt_().add_(EPSILON)
            tensor.theta.sub_(rate / (1 - BETA1**self.step) * mean / root)
            tensor.show()

    def judged(self, kl: float) -> None:
        """Note the KL of the present scales on the held-back windows, and save."""
        if self.step == 0:
            self.first = kl
        if kl < self.least:
            self.least = kl
            for best, tensor in zip(self.best, self._tensors, strict=True):
                best.copy_(tensor.theta)
        arrays = {
            f"{label}{i}": array.cpu().numpy()
            for label, group in self._arrays().items()
            for i, array in enumerate(group)
        }
        with atomic(self.path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, step=self.step, kl=[self.first, self.least], **arrays)

    def _arrays(self) -> dict[str, list[torch.Tensor]]:
        theta = [tensor.theta for tensor in self._tensors]
        return {"theta": theta, "best": self.best, "mean": self._mean, "square": self._square}
