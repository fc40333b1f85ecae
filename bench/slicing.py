"""SliceGPT (Ashkboos et al. 2024, arXiv 2401.15024): fewer dimensions of the residual stream.

RMSNorm's vector is folded into what reads it; then a rotation of the residual stream changes nothing, and of
rotated states the components of least variance are left out. With another rotation at every half block the
states are carried over by a matrix beside each half, which is counted; with one rotation for the whole model
there is none. The embedding and a head tied to it stay as they are: one matrix leads from the embedding into
the stream, and the last half block writes in the original's coordinates (of one rotation: the same matrix
leads out), which is cheaper than to untie the two as its code does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from pruners import Calibration, Found
from slim import Block, Llama
from torch import Tensor

Weigh = Callable[[Tensor], Tensor]  # hidden states as they count in the covariance


def _raw(hidden: Tensor) -> Tensor:
    return hidden


def _unit(hidden: Tensor) -> Tensor:
    return hidden * torch.rsqrt(hidden.pow(2).sum(-1, keepdim=True))


WEIGHED = {"as they are": _raw, "of length one": _unit}


@torch.no_grad()
def slicegpt(model: Llama, given: Calibration, weights: int) -> Found:
    """A rotation for each half block, from states as they are, as in its code; and of length one."""
    width = _width(model, weights, lambda d: _turned(model, d))
    for how, weigh in WEIGHED.items():
        yield f"{width} of {model.width} dimensions, states {how}", _each(model, given, width, weigh)


@torch.no_grad()
def one_rotation(model: Llama, given: Calibration, weights: int) -> Found:
    """One rotation for all, hence no matrices beside the halves."""
    width = _width(model, weights, lambda d: _plain(model, d) + model.width * d)
    for how, weigh in WEIGHED.items():
        yield f"{width} of {model.width} dimensions, states {how}", _one(model, given, width, weigh)


def _plain(model: Llama, width: int) -> int:
    """Weights of the blocks' matrices in so many dimensions, and the last norm."""
    matrices = sum(t.numel() for b in model.blocks for t in (b.q, b.k, b.v, b.o, b.gate, b.up, b.down))
    return matrices // model.width * width + model.norm.numel()


def _turned(model: Llama, width: int) -> int:
    """The same with a rotation for each half block."""
    last = model.blocks[-1].down
    halves = (2 * len(model.blocks) - 1) * width * width + width * model.width
    return _plain(model, width) + (model.width - width) * last.shape[1] + halves + model.width * width


def _width(model: Llama, weights: int, count: Callable[[int], int]) -> int:
    """The largest that is small enough."""
    return max(d for d in range(1, model.width + 1) if count(d) <= model.parameters() - weights)


def _components(states: list[Tensor], weigh: Weigh, width: int) -> Tensor:
    """[in, width], the directions of most variance."""
    return _top(sum((_square(weigh(state)) for state in states), torch.zeros(())), width)


def _square(states: Tensor) -> Tensor:
    flat = states.reshape(-1, states.shape[-1]).double()
    return flat.T @ flat


def _top(covariance: Tensor, width: int) -> Tensor:
    vectors: Tensor = torch.linalg.eigh(covariance)[1]
    return vectors.flip(1)[:, :width].float()


def _folded(block: Block) -> Block:
    """Without norm vectors."""
    ones, twos = block.norm1, block.norm2
    assert ones is not None
    assert twos is not None
    return replace(
        block,
        norm1=None,
        norm2=None,
        q=block.q * ones,
        k=block.k * ones,
        v=block.v * ones,
        gate=block.gate * twos,
        up=block.up * twos,
    )


def _each(model: Llama, given: Calibration, width: int, weigh: Weigh) -> Llama:
    """Every rotation from what the sliced model before it gives, as in its code."""
    whole = given.begin(model)  # in the original's coordinates, of what is left
    enter = into = _components(whole, weigh, width)
    hidden, blocks = [state @ into for state in whole], []
    for index, block in enumerate(model.blocks):
        now = _folded(block)
        now = replace(now, q=now.q @ into, k=now.k @ into, v=now.v @ into, turn1=into.T)
        whole = [model.attend(now, state) for state in hidden]
        out = _components(whole, weigh, width)
        now = replace(now, turn1=into.T @ out, o=out.T @ now.o, gate=now.gate @ out, up=now.up @ out)
        hidden, into = [state @ out for state in whole], out
        now = replace(now, turn2=into.T)
        whole = [model.feed(now, state) for state in hidden]
        if index + 1 < len(model.blocks):
            out = _components(whole, weigh, width)
            now = replace(now, turn2=into.T @ out, down=out.T @ now.down)
            hidden, into = [state @ out for state in whole], out
        blocks.append(now)
    return replace(model, blocks=tuple(blocks), enter=enter)


def _one(model: Llama, given: Calibration, width: int, weigh: Weigh) -> Llama:
    """From the original's states before every half block."""
    covariance = torch.zeros(model.width, model.width, dtype=torch.float64, device=model.device)
    for ids in given.batches():
        hidden = model.begin(ids)
        for block in model.blocks:
            covariance += _square(weigh(hidden))
            hidden = model.attend(block, hidden)
            covariance += _square(weigh(hidden))
            hidden = model.feed(block, hidden)
        covariance += _square(weigh(hidden))
    turn = _top(covariance, width)
    blocks = []
    for block in map(_folded, model.blocks):
        read = {name: getattr(block, name) @ turn for name in ("q", "k", "v", "gate", "up")}
        blocks.append(replace(block, o=turn.T @ block.o, down=turn.T @ block.down, **read))
    return replace(model, blocks=tuple(blocks), enter=turn, leaves=True)
