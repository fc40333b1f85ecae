"""The rivals of bench/structure.py: published ways to take structure out of a Llama without training.

Each function removes `weights` parameters or more beside embedding and head, and returns the models that its
paper leaves a choice between; bench/structure.py takes the one that is nearest the original on calibration
windows, which is kinder to a rival than any fixed choice. Scores of what o_proj and down_proj read are made
first; `Scores` are turned into models by five ways to spread the removal.

    random     seeded
    magnitude  L1 of all weights of a channel or KV group
    wanda      |W| times the norm of the input, summed over outputs (Sun et al. 2023, arXiv 2306.11695; its
               structured form by An et al.), on what the smaller model reads, and on what the original reads
    taylor     |w dL/dw| summed (LLM-Pruner, Ma et al. 2023, arXiv 2305.11627)
    flap       Var(z) |W|^2, standardised, and biases for the mean (An et al. 2023, arXiv 2312.11983)
    shortgpt   blocks of least influence 1 - cos(in, out) (Men et al. 2024, arXiv 2403.03853)
    contiguous neighbouring blocks of least influence together (Gromov et al. 2024, arXiv 2403.17887)
    sleb       blocks one by one by the likelihood of the text (Song et al. 2024, arXiv 2402.09025)
    sublayers  the same of attention and feed-forward parts by KL, per weight
    slicegpt   principal components of the residual stream (Ashkboos et al. 2024, arXiv 2401.15024)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from slim import Block, Llama, Referee, log_probabilities
from torch import Tensor
from torch.nn import functional

Found = Iterator[tuple[str, Llama]]  # (how, model)
Score = Callable[[Block, "Moments", "Moments"], tuple[Tensor, Tensor]]


@dataclass
class Moments:
    """Of what a matrix reads, over all tokens: the sums of z and z^2."""

    tokens: int = 0
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0

    def add(self, z: Tensor) -> None:
        """Count the inputs [..., in] in."""
        z = z.reshape(-1, z.shape[-1]).double()
        self.tokens += len(z)
        self.first, self.second = self.first + z.sum(0), self.second + (z * z).sum(0)

    @property
    def mean(self) -> Tensor:
        """[in]."""
        return torch.as_tensor(self.first / self.tokens).float()

    @property
    def norm(self) -> Tensor:
        """[in], root of the sum of squares."""
        return torch.as_tensor(self.second).sqrt().float()

    @property
    def variance(self) -> Tensor:
        """[in]."""
        return torch.as_tensor(self.second / self.tokens - (self.first / self.tokens) ** 2).float()


@dataclass(frozen=True)
class Scores:
    """How much what o_proj reads [query heads * head] and what down_proj reads [channels] matters, for each
    block; and the means there, where they become a bias.
    """

    attention: list[Tensor]
    feed: list[Tensor]
    means: list[tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True)
class Kept:
    """Units of one block that stay, ascending."""

    groups: Tensor
    channels: Tensor


class Calibration:
    """Windows of ids [count, T], a batch at a time, and how far a model is from the original on some of
    them.
    """

    def __init__(self, original: Llama, windows: Tensor, batch: int, few: int = 16) -> None:
        self.windows, self.batch = windows, batch
        self.referee = Referee(original, windows[:: max(1, len(windows) // few)][:few], 1, batch)

    def batches(self) -> Sequence[Tensor]:
        """[<= batch, T] each."""
        return torch.split(self.windows, self.batch)

    def begin(self, model: Llama) -> list[Tensor]:
        """Hidden states before the first block."""
        return [model.begin(ids) for ids in self.batches()]


@torch.no_grad()
def moments(model: Llama, given: Calibration) -> list[tuple[Moments, Moments]]:
    """Of what o_proj and down_proj read, for each block."""
    found = [(Moments(), Moments()) for _ in model.blocks]
    for ids in given.batches():
        hidden = model.begin(ids)
        for block, (attention, feed) in zip(model.blocks, found, strict=True):
            attention.add(model.mix(block, hidden))
            hidden = model.attend(block, hidden)
            feed.add(model.middle(block, hidden))
            hidden = model.feed(block, hidden)
    return found


def random(model: Llama, given: Calibration, weights: int, seed: int) -> Found:  # noqa: ARG001
    """Every unit as likely as another."""
    draw = torch.Generator().manual_seed(seed)

    def scores(width: int) -> Tensor:
        return torch.rand(width, generator=draw).to(model.device)

    found = [(scores(b.o.shape[1]), scores(b.down.shape[1])) for b in model.blocks]
    yield from spread(model, Scores([a for a, _ in found], [f for _, f in found]), weights)


def magnitude(model: Llama, given: Calibration, weights: int) -> Found:  # noqa: ARG001
    """L1."""
    yield from spread(
        model, _of_weights(model, [[w.abs() for w in _units(b)] for b in model.blocks]), weights
    )


def taylor(model: Llama, given: Calibration, weights: int) -> Found:
    """Of the text's likelihood, summed over all windows."""
    copy, parameters = model.trainable()
    for ids in given.batches():
        found = log_probabilities(copy, ids).gather(-1, ids[:, 1:, None])
        torch.autograd.backward(-found.sum())
    sizes = [[(w * w.grad).abs().detach() for w in _units(b) if w.grad is not None] for b in copy.blocks]
    for parameter in parameters:
        parameter.grad = None
    yield from spread(model, _of_weights(model, sizes), weights)


def wanda(model: Llama, given: Calibration, weights: int) -> Found:
    """Of o_proj and down_proj."""

    def score(block: Block, attention: Moments, feed: Moments) -> tuple[Tensor, Tensor]:
        return block.o.abs().sum(0) * attention.norm, block.down.abs().sum(0) * feed.norm

    pairs = [score(b, *seen) for b, seen in zip(model.blocks, moments(model, given), strict=True)]
    yield from spread(model, Scores([a for a, _ in pairs], [f for _, f in pairs]), weights)
    for how, counts in even(model, weights).items():
        yield f"{how}, in turn", _in_turn(model, given, counts, score)


def flap(model: Llama, given: Calibration, weights: int) -> Found:
    """Its code squares the scores of attention ("squared"), its paper does not; "ranked" is the paper's way
    to spread.
    """
    seen = moments(model, given)
    means = [(attention.mean, feed.mean) for attention, feed in seen]
    attention = [a.variance * b.o.pow(2).sum(0) for b, (a, _) in zip(model.blocks, seen, strict=True)]
    feed = [f.variance * b.down.pow(2).sum(0) for b, (_, f) in zip(model.blocks, seen, strict=True)]
    yield from spread(model, Scores(attention, feed, means), weights)
    for how, cut in spread(model, Scores([a * a for a in attention], feed, means), weights):
        yield f"{how}, squared", cut


def shortgpt(model: Llama, given: Calibration, weights: int) -> Found:
    """As many whole blocks as it takes."""
    count, away = _blocks_for(model, weights), _distances(model, given)
    order = sorted(range(len(model.blocks)), key=lambda i: float(away[i, i + 1]))
    yield _without(model, order[:count])


def contiguous(model: Llama, given: Calibration, weights: int) -> Found:
    """As many neighbours as it takes."""
    count, away = _blocks_for(model, weights), _distances(model, given)
    first = min(range(len(model.blocks) - count + 1), key=lambda i: float(away[i, i + count]))
    yield _without(model, list(range(first, first + count)))


def sleb(model: Llama, given: Calibration, weights: int) -> Found:
    """On some of the calibration windows."""
    gone: list[int] = []
    while len(gone) < _blocks_for(model, weights):
        left = [i for i in range(len(model.blocks)) if i not in gone]
        gone.append(min(left, key=lambda i: given.referee(_without(model, [*gone, i])[1])[0]))
    yield _without(model, gone)


def sublayers(model: Llama, given: Calibration, weights: int) -> Found:
    """By the KL they add per weight that still has to go."""
    start, kl, gone = model.parameters(), 0.0, []
    while (missing := weights - (start - model.parameters())) > 0:
        tried = []
        for index, block in enumerate(model.blocks):
            for kind, out in (("attention", block.o), ("feed", block.down)):
                if out.numel():
                    cut = _silenced(model, index, kind)
                    more = given.referee(cut)[1]
                    removed = model.parameters() - cut.parameters()
                    tried.append(((more - kl) / min(removed, missing), more, f"{kind} {index}", cut))
        _, kl, name, model = min(tried, key=lambda item: item[0])
        gone.append(name)
    yield ", ".join(gone), model


def spread(model: Llama, scores: Scores, weights: int) -> Found:
    """Five ways to remove by scores: channels alone, the same number in every block; channels and groups
    likewise; the same but for the first and the last block (as LLM-Pruner spares them); everything ranked by
    scores that are standardised in each block and kind (as FLAP does); and by scores per weight as they are.
    """
    if scores.means is not None:
        weights += 2 * len(model.blocks) * model.width  # biases have to be paid for
    groups = [s.reshape(-1, model.per * model.head) for s in scores.attention]
    for how, counts in even(model, weights).items():
        kept = [
            Kept(_best(a.sum(1), n), _best(f, m))
            for a, f, (n, m) in zip(groups, scores.feed, counts, strict=True)
        ]
        yield how, cut(model, kept, scores.means)
    standard = [_standard(s).reshape(g.shape).mean(1) for s, g in zip(scores.attention, groups, strict=True)]
    yield "ranked", _ranked(model, standard, [_standard(f) for f in scores.feed], weights, scores)
    sums = [g.sum(1) / model.group for g in groups]
    yield (
        "ranked as they are",
        _ranked(model, sums, [f / model.channel for f in scores.feed], weights, scores),
    )


def even(model: Llama, weights: int) -> dict[str, list[tuple[int, int]]]:
    """(KV groups, channels) that stay in each block, for the ways that need no scores."""
    depth, first = len(model.blocks), model.blocks[0]
    groups, channels = first.k.shape[0] // model.head, first.down.shape[1]
    share = weights / (depth * (groups * model.group + channels * model.channel))

    def counts(places: list[int], fewer: int) -> list[tuple[int, int]]:
        gone = max(0, math.ceil((weights - len(places) * fewer * model.group) / model.channel))
        each, more = divmod(gone, len(places))
        found = [(groups, channels)] * depth
        for number, place in enumerate(places):
            found[place] = (groups - fewer, channels - each - (number < more))
        return found

    everywhere, inner = list(range(depth)), list(range(1, depth - 1)) or [0]
    within = share * depth / len(inner)
    options = {
        "channels": counts(everywhere, 0),
        "even": counts(everywhere, round(share * groups)),
        "inner": counts(inner, round(within * groups)),
    }
    sound = {how: found for how, found in options.items() if all(n > 0 and m > 0 for n, m in found)}
    return {how: sound[how] for how in sound if how == "channels" or sound[how] != options["channels"]}


def cut(model: Llama, kept: list[Kept], means: list[tuple[Tensor, Tensor]] | None = None) -> Llama:
    """The model with those units; what the others gave in the mean becomes a bias."""
    blocks = []
    for index, (block, keep) in enumerate(zip(model.blocks, kept, strict=True)):
        key = _spans(keep.groups, model.head)
        query = _spans(keep.groups, model.per * model.head)
        biases: tuple[Tensor | None, Tensor | None] = (None, None)
        if means is not None:
            attention, feed = (m.clone() for m in means[index])
            attention[query], feed[keep.channels] = 0.0, 0.0
            biases = (block.o @ attention, block.down @ feed)
        blocks.append(
            replace(
                block,
                q=block.q[query],
                k=block.k[key],
                v=block.v[key],
                o=block.o[:, query],
                gate=block.gate[keep.channels],
                up=block.up[keep.channels],
                down=block.down[:, keep.channels],
                o_bias=biases[0],
                down_bias=biases[1],
            )
        )
    return replace(model, blocks=tuple(blocks))


@torch.no_grad()
def _in_turn(model: Llama, given: Calibration, counts: list[tuple[int, int]], score: Score) -> Llama:
    """Block after block, scored on what the blocks before it leave."""
    hidden, blocks = given.begin(model), []
    for block, (groups, channels) in zip(model.blocks, counts, strict=True):
        seen = Moments(), Moments()
        for h in hidden:
            seen[0].add(model.mix(block, h))
            seen[1].add(model.middle(block, model.attend(block, h)))
        attention, feed = score(block, *seen)
        kept = Kept(
            _best(attention.reshape(-1, model.per * model.head).sum(1), groups), _best(feed, channels)
        )
        narrow = cut(replace(model, blocks=(block,)), [kept]).blocks[0]
        hidden = [model.feed(narrow, model.attend(narrow, h)) for h in hidden]
        blocks.append(narrow)
    return replace(model, blocks=tuple(blocks))


def _ranked(
    model: Llama, groups: list[Tensor], channels: list[Tensor], weights: int, scores: Scores
) -> Llama:
    """Without the units of least score, of whatever kind and block, as many as it takes."""
    units = sorted(
        (float(score), kind, block, unit)
        for kind, found in enumerate((groups, channels))
        for block, values in enumerate(found)
        for unit, score in enumerate(values.tolist())
    )
    stay = [(set(range(len(g))), set(range(len(c)))) for g, c in zip(groups, channels, strict=True)]
    missing = weights
    for _, kind, block, unit in units:
        if missing <= 0:
            break
        stay[block][kind].remove(unit)
        missing -= (model.group, model.channel)[kind]
        missing -= 0 if stay[block][kind] else model.width  # the norm before it
    kept = [Kept(*(torch.tensor(sorted(u), dtype=torch.long, device=model.device) for u in s)) for s in stay]
    return cut(model, kept, scores.means)


def _units(block: Block) -> list[Tensor]:
    return [block.q, block.k, block.v, block.o, block.gate, block.up, block.down]


def _of_weights(model: Llama, sizes: list[list[Tensor]]) -> Scores:
    """Sums over all weights of each unit, from the weights' own scores."""
    attention, feed = [], []
    for q, k, v, o, gate, up, down in sizes:
        shared = (k.sum(1) + v.sum(1)).reshape(-1, 1, model.head) / model.per
        alone = (q.sum(1) + o.sum(0)).reshape(-1, model.per, model.head)
        attention.append((alone + shared).reshape(-1))
        feed.append(gate.sum(1) + up.sum(1) + down.sum(0))
    return Scores(attention, feed)


def _best(scores: Tensor, count: int) -> Tensor:
    return scores.topk(count).indices.sort().values


def _standard(scores: Tensor) -> Tensor:
    return (scores - scores.mean()) / scores.std()


def _spans(units: Tensor, width: int) -> Tensor:
    return (units[:, None] * width + torch.arange(width, device=units.device)).reshape(-1)


def _blocks_for(model: Llama, weights: int) -> int:
    return math.ceil(weights / sum(t.numel() for t in model.blocks[0].tensors()))


def _without(model: Llama, gone: list[int]) -> tuple[str, Llama]:
    blocks = tuple(block for i, block in enumerate(model.blocks) if i not in gone)
    return f"without blocks {sorted(gone)}", replace(model, blocks=blocks)


def _silenced(model: Llama, index: int, kind: str) -> Llama:
    block, none = model.blocks[index], model.embed[:0]
    if kind == "attention":
        block = replace(block, q=none, k=none, v=none, o=block.o[:, :0])
    else:
        block = replace(block, gate=none, up=none, down=block.down[:, :0])
    return replace(model, blocks=(*model.blocks[:index], block, *model.blocks[index + 1 :]))


@torch.no_grad()
def _distances(model: Llama, given: Calibration) -> Tensor:
    """1 - cos of the hidden states at two boundaries, the mean over tokens: [boundaries, boundaries]."""
    total, tokens = torch.zeros(len(model.blocks) + 1, len(model.blocks) + 1, device=model.device), 0
    for ids in given.batches():
        hidden = model.begin(ids)
        states = [functional.normalize(hidden, dim=-1)]
        for block in model.blocks:
            hidden = model.feed(block, model.attend(block, hidden))
            states.append(functional.normalize(hidden, dim=-1))
        together = torch.stack(states).reshape(len(states), -1)
        total += together @ together.T
        tokens += ids.numel()
    return 1 - total / tokens
