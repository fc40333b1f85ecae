"""A Llama in memory whose blocks may differ in every size, for the rivals of bench/structure.py.

What the rivals need and a checkpoint cannot hold is here: biases behind o_proj and down_proj (FLAP), matrices
in the residual stream (SliceGPT), blocks without attention or feed-forward part. Everything is plain float32
tensors on one device; hidden states are [windows, tokens, hidden].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tenth.models.checkpoint import HEAD, Checkpoint


@dataclass(frozen=True)
class Block:
    """Weights [out, in] of one block; without columns, o and down are parts that are gone."""

    norm1: Tensor | None  # None: folded into what reads it
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    norm2: Tensor | None
    gate: Tensor
    up: Tensor
    down: Tensor
    o_bias: Tensor | None = None
    down_bias: Tensor | None = None
    turn1: Tensor | None = None  # [in, out], what the residual stream is multiplied by beside the attention
    turn2: Tensor | None = None  # and beside the feed-forward part

    def tensors(self) -> Iterator[Tensor]:
        """Those that hold a parameter which is used: a part that is gone needs no norm."""
        for name, value in vars(self).items():
            unused = (name == "norm1" and not self.o.numel()) or (name == "norm2" and not self.down.numel())
            if value is not None and value.numel() and not unused:
                yield value


@dataclass(frozen=True)
class Llama:
    """The whole model. width: of the original's hidden states, which RMSNorm divides by; head: of one head;
    per: query heads of a KV head.
    """

    embed: Tensor  # [vocabulary, width]
    norm: Tensor
    lm_head: Tensor | None  # None: the embedding
    blocks: tuple[Block, ...]
    width: int
    head: int
    per: int
    eps: float
    theta: float
    enter: Tensor | None = None  # [width, hidden] behind the embedding
    leaves: bool = False  # whether its transpose stands before the final norm

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.embed.device

    @property
    def channel(self) -> int:
        """Weights of a feed-forward channel."""
        return 3 * self.width

    @property
    def group(self) -> int:
        """Weights of a KV head and its query heads."""
        return 2 * (self.per + 1) * self.head * self.width

    def parameters(self) -> int:
        """Without embedding and head, and with everything that was added."""
        added = 0 if self.enter is None else self.enter.numel()
        return self.norm.numel() + added + sum(t.numel() for b in self.blocks for t in b.tensors())

    def total(self) -> int:
        """Of all parameters."""
        head = 0 if self.lm_head is None else self.lm_head.numel()
        return self.parameters() + self.embed.numel() + head

    def begin(self, ids: Tensor) -> Tensor:
        """Hidden states before the first block."""
        hidden = self.embed[ids]
        return hidden if self.enter is None else functional.linear(hidden, self.enter.T)

    def mix(self, block: Block, hidden: Tensor) -> Tensor:
        """What o_proj reads."""
        x, (count, length, _) = self._normed(hidden, block.norm1), hidden.shape
        q, k, v = (
            functional.linear(x, w).view(count, length, -1, self.head).transpose(1, 2)
            for w in (block.q, block.k, block.v)
        )
        cos, sin = _rotary(length, self.head, self.theta, hidden.device)
        q, k = (
            t * cos + torch.cat([-t[..., self.head // 2 :], t[..., : self.head // 2]], -1) * sin
            for t in (q, k)
        )
        k, v = (t.to(q.dtype).repeat_interleave(self.per, 1) for t in (k, v))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).reshape(count, length, -1)

    def middle(self, block: Block, hidden: Tensor) -> Tensor:
        """What down_proj reads."""
        x = self._normed(hidden, block.norm2)
        return functional.silu(functional.linear(x, block.gate)) * functional.linear(x, block.up)

    def attend(self, block: Block, hidden: Tensor) -> Tensor:
        """The first half of a block."""
        return _half(hidden, block.turn1, block.o, block.o_bias, lambda: self.mix(block, hidden))

    def feed(self, block: Block, hidden: Tensor) -> Tensor:
        """The second half."""
        return _half(hidden, block.turn2, block.down, block.down_bias, lambda: self.middle(block, hidden))

    def hidden(self, ids: Tensor) -> Tensor:
        """Behind the last block."""
        hidden = self.begin(ids)
        for block in self.blocks:
            hidden = self.feed(block, self.attend(block, hidden))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[windows, tokens, vocabulary] from what is behind the last block."""
        if self.leaves and self.enter is not None:
            hidden = functional.linear(hidden, self.enter)
        return functional.linear(
            self._normed(hidden, self.norm), self.embed if self.lm_head is None else self.lm_head
        )

    def trainable(self) -> tuple[Llama, list[Tensor]]:
        """A copy and those of its tensors that can be trained."""

        def own(value: Tensor | None) -> Any:
            return None if value is None else value.detach().clone().requires_grad_(value.numel() > 0)

        blocks = tuple(Block(**{name: own(value) for name, value in vars(b).items()}) for b in self.blocks)
        names = ("embed", "norm", "lm_head", "enter")
        model = replace(self, blocks=blocks, **{name: own(getattr(self, name)) for name in names})
        rest = [getattr(model, name) for name in names if getattr(model, name) is not None]
        return model, rest + [t for block in blocks for t in block.tensors()]

    def _normed(self, hidden: Tensor, weight: Tensor | None) -> Tensor:
        hidden = hidden.float()
        square = hidden.pow(2).sum(-1, keepdim=True) / self.width
        normed = hidden * torch.rsqrt(square + self.eps)
        return normed if weight is None else normed * weight


def _half(
    hidden: Tensor, turn: Tensor | None, out: Tensor, bias: Tensor | None, inner: Callable[[], Tensor]
) -> Tensor:
    past = hidden
    if turn is not None:
        with torch.autocast(hidden.device.type, enabled=False):  # the residual stream stays float32
            past = functional.linear(hidden, turn.T)
    if out.shape[1]:
        return past + functional.linear(inner(), out, bias)
    return past if bias is None else past + bias


_tables: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}


def _rotary(length: int, head: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    key = (length, head, theta, device)
    if key not in _tables:
        speed = theta ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
        angle = torch.outer(torch.arange(length, dtype=torch.float64), speed).repeat(1, 2)
        _tables[key] = (angle.cos().float().to(device), angle.sin().float().to(device))
    return _tables[key]


def load(checkpoint: Checkpoint, device: str) -> Llama:
    """Any Llama folder that tenth opens, blocks of different sizes too. SystemExit where there is more to it
    than this file knows.
    """
    checkpoint.specs()
    model, graph = checkpoint.shape, checkpoint.arch.gguf_arch
    keys = checkpoint.arch.metadata(checkpoint.config)
    plain = f"{graph}.rope.scaling.type" not in keys and not checkpoint.arch.extra_tensors(checkpoint.config)
    biased = any(name.endswith(".bias") for name in checkpoint.tensors)
    if checkpoint.arch.model_type not in ("llama", "mistral") or not plain or biased:
        raise SystemExit(f"{checkpoint.path}: the rivals are only for Llamas with plain rotary angles")

    def tensor(name: str, *shape: int) -> Tensor:
        found = checkpoint.tensors.get(name)
        return torch.zeros(shape) if found is None else torch.from_numpy(found.load())

    width, blocks = model.hidden, []
    for index in range(model.layers):
        at, empty = f"model.layers.{index}", (0, width)
        shapes = {
            "norm1": ("input_layernorm", (width,)),
            "q": ("self_attn.q_proj", empty),
            "k": ("self_attn.k_proj", empty),
            "v": ("self_attn.v_proj", empty),
            "o": ("self_attn.o_proj", (width, 0)),
            "norm2": ("post_attention_layernorm", (width,)),
            "gate": ("mlp.gate_proj", empty),
            "up": ("mlp.up_proj", empty),
            "down": ("mlp.down_proj", (width, 0)),
        }
        blocks.append(
            Block(**{k: tensor(f"{at}.{name}.weight", *s).to(device) for k, (name, s) in shapes.items()})
        )
    return Llama(
        embed=tensor("model.embed_tokens.weight").to(device),
        norm=tensor("model.norm.weight").to(device),
        lm_head=tensor(HEAD).to(device) if HEAD in checkpoint.tensors else None,
        blocks=tuple(blocks),
        width=width,
        head=model.head_dims[0],
        per=model.queries_per_kv,
        eps=keys[f"{graph}.attention.layer_norm_rms_epsilon"],
        theta=keys[f"{graph}.rope.freq_base"],
    )


class Referee:
    """Held-out figures of models on the same windows, against the original's own answers, float32."""

    def __init__(self, original: Llama, windows: Tensor, size: int, batch: int) -> None:
        self._windows, self._size, self._batch = windows, size, batch
        with torch.no_grad():
            self._wanted = [log_probabilities(original, ids) for ids in torch.split(windows, batch)]

    def __call__(self, model: Llama) -> tuple[float, float]:
        """(bits per byte, KL in nats per token)."""
        nll, kl = 0.0, 0.0
        with torch.no_grad():
            for ids, wanted in zip(torch.split(self._windows, self._batch), self._wanted, strict=True):
                found = log_probabilities(model, ids)
                nll -= float(found.gather(-1, ids[:, 1:, None]).sum(dtype=torch.float64))
                kl += float((wanted.exp() * (wanted - found)).sum(dtype=torch.float64))
        return nll / math.log(2) / self._size, kl / self._windows[:, 1:].numel()


def log_probabilities(model: Llama, ids: Tensor) -> Tensor:
    """[windows, T - 1, vocabulary] of the tokens after each of the first T - 1."""
    return model.logits(model.hidden(ids)[:, :-1]).log_softmax(-1)
