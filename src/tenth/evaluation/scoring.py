"""Log-likelihoods of continuations and greedy answers, on anything that can extend and roll back a text.

The choices of an item share a context. It is evaluated once; then every choice is evaluated after it and the
cache rolled back. What two items share (examples in front of the question) is not evaluated twice either.
Requests are answered in the order of their tokens, so neither the order of items nor that of choices can
change an answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from tenth.core.errors import NativeError

if TYPE_CHECKING:
    import numpy as np

Progress = Callable[[int], None]  # gets the number of requests answered
_Asked = tuple[tuple[int, ...], int, int]  # ids, how many are context, which request
_PIECE = 256  # rows of logits at a time


class TextModel(Protocol):
    """A model with a text of token ids in it, at most n_ctx long."""

    n_ctx: int
    start: int  # the token before an empty text

    def encode(self, text: str) -> list[int]:
        """Ids, with the begin token where the model's tokenizer adds one."""

    def text(self, before: int, ids: Sequence[int]) -> str:
        """What ids add to a text that ends with the token `before`."""

    def ends(self, token: int) -> bool:
        """Whether a token ends a text."""

    def extend(self, keep: int, ids: Sequence[int], every: bool) -> np.ndarray:
        """Forget all but `keep` tokens, go on with ids; logits [ids, vocabulary], or [1, .] of the last."""


def split(tape: TextModel, context: str, continuation: str) -> tuple[list[int], int]:
    """Ids of both together, and how many are context.

    As lm-eval does it, spaces that end the context count as continuation. Where the tokenizer joins letters
    of both in one token, that token is continuation.
    """
    cut = len(context.rstrip())
    context, continuation = context[:cut], context[cut:] + continuation
    if not context:
        ids = tape.encode(continuation)
        return (ids, 1) if len(ids) > 1 and ids[0] == tape.start else ([tape.start, *ids], 1)
    before, ids = tape.encode(context), tape.encode(context + continuation)
    return ids, max(1, min(shared(before, ids), len(ids) - 1))


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def loglikelihoods(
    tape: TextModel, pairs: Sequence[tuple[str, str]], progress: Progress = lambda _: None, reuse: bool = True
) -> list[tuple[float, bool]]:
    """(nats, whether greedy decoding would give it) of each continuation after its context.

    Too long a text loses the beginning of its context. reuse: False evaluates every pair from its first
    token, for comparison.
    """
    asked: list[_Asked] = []
    for number, (context, continuation) in enumerate(pairs):
        ids, count = split(tape, context, continuation)
        drop = max(0, len(ids) - 1 - tape.n_ctx)
        asked.append((tuple(ids[drop:]), max(1, count - drop), number))
    answers: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    asked.sort()
    held: tuple[int, ...] = ()
    done = 0
    for group in _groups(asked):
        before = group[0][0][: group[0][1]]
        # At least the context's last token is evaluated again: its logits are needed.
        known = min(shared(held, before), len(before) - 1) if reuse else 0
        last = None
        for whole, count, number in group:
            targets = whole[count:]
            if last is None or not reuse:
                last = tape.extend(known, before[known:], every=False)
            rows = last
            if len(targets) > 1:
                rows = _joined(last, tape.extend(count, targets[:-1], every=True))
            answers[number] = _sum(rows, targets)
            held = whole[:-1] if len(targets) > 1 else before
        done += len(group)
        progress(done)
    return answers


def _groups(asked: Sequence[_Asked]) -> Iterator[list[_Asked]]:
    """Neighbours with the same context."""
    group: list[_Asked] = []
    for one in asked:
        if group and (one[1] != group[0][1] or one[0][: one[1]] != group[0][0][: one[1]]):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _joined(first: np.ndarray, rest: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.concatenate([first, rest])


def _likeliest(row: np.ndarray) -> int:
    """The token of the largest logit; NativeError for NaN, which argmax takes for the largest."""
    token = int(row.argmax())
    if not math.isfinite(row[token]):
        raise NativeError("the model gives NaN or infinite logits; it cannot be asked")
    return token


def _sum(rows: np.ndarray, targets: Sequence[int]) -> tuple[float, bool]:
    """Nats of the targets under rows of logits, and whether each is the likeliest; NativeError for NaN."""
    import numpy as np

    from tenth.core.divergence import log_softmax

    wanted = np.asarray(targets)
    nats = log_softmax(rows)[np.arange(len(wanted)), wanted]
    total = float(nats.sum(dtype=np.float64))
    if not math.isfinite(total):
        raise NativeError("the model gives NaN or infinite logits; it cannot be scored")
    return total, bool((rows.argmax(axis=1) == wanted).all())


def rolling(tape: TextModel, texts: Sequence[str], progress: Progress = lambda _: None) -> list[float]:
    """Nats of whole texts, every token predicted once with as much before it as fits.

    Windows are those of lm-eval: full ones side by side, the last one pulled back to be full as well.
    """
    totals = []
    for number, text in enumerate(texts):
        ids = tape.encode(text)
        ids = ids if ids[:1] == [tape.start] else [tape.start, *ids]
        total, done = 0.0, 1  # tokens already predicted, and the first
        while done < len(ids):
            end = min(done + tape.n_ctx, len(ids))
            begin = max(0, end - 1 - tape.n_ctx)
            window = ids[begin : end - 1]
            for at in range(0, len(window), _PIECE):
                rows = tape.extend(at, window[at : at + _PIECE], every=True)
                skip = max(0, done - 1 - begin - at)
                if skip < len(rows):
                    first = begin + at + skip + 1
                    total += _sum(rows[skip:], ids[first : first + len(rows) - skip])[0]
            done = end
        totals.append(total)
        progress(number + 1)
    return totals


def generate(
    tape: TextModel, asked: Sequence[tuple[str, Sequence[str], int]], progress: Progress = lambda _: None
) -> list[str]:
    """Greedy answers to (context, stops, most tokens): up to an end token, a stop or the limit.

    An answer may fill half of n_ctx at most; what then does not fit is lost from the context's beginning.
    """
    order = sorted((tape.encode(one[0]) or [tape.start], number) for number, one in enumerate(asked))
    answers = [""] * len(asked)
    held: list[int] = []
    for done, (whole, number) in enumerate(order):
        _, stops, limit = asked[number]
        limit = min(limit, max(1, tape.n_ctx // 2))
        context = whole[-(tape.n_ctx - limit) :]
        known = min(shared(held, context), len(context) - 1)
        row = tape.extend(known, context[known:], every=False)
        made: list[int] = []
        text = ""
        while len(made) < limit:
            token = _likeliest(row[0])
            if tape.ends(token):
                break
            made.append(token)
            text = tape.text(context[-1], made)
            if any(stop and stop in text for stop in stops) or len(made) == limit:
                break
            row = tape.extend(len(context) + len(made) - 1, [token], every=False)
        places = [text.find(stop) for stop in stops if stop and stop in text]
        answers[number] = text[: min(places)] if places else text
        held = [*context, *made[:-1]]
        progress(done + 1)
    return answers


def run(
    emit: Callable[[dict[str, Any]], None],
    model: dict[str, Any],
    kind: str,
    asked: list[Any],
    labels: list[str],
    threads: int,
) -> dict[str, Any]:
    """The child's side of `harness.Child`. kind: one of the functions above; asked: its requests; labels: the
    task of each.

    Returns the answers, and by task the seconds they took, without those of loading the model.
    """
    from tenth.evaluation import runtimes

    functions: dict[str, Callable[..., list[Any]]] = {
        "loglikelihood": loglikelihoods,
        "rolling": rolling,
        "generate": generate,
    }
    answers: list[Any] = [None] * len(asked)
    seconds, done = {}, 0
    with runtimes.opened(**model, threads=threads) as tape:
        for label in dict.fromkeys(labels):
            numbers = [number for number, of in enumerate(labels) if of == label]
            begin = time.monotonic()
            tell = partial(_tell, emit, done)
            found = functions[kind](tape, [asked[n] for n in numbers], progress=tell)
            for number, answer in zip(numbers, found, strict=True):
                answers[number] = answer
            seconds[label] = time.monotonic() - begin
            done += len(numbers)
    return {"answers": answers, "seconds": seconds}


def _tell(emit: Callable[[dict[str, Any]], None], before: int, count: int) -> None:
    emit({"done": before + count})
