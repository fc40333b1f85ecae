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
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from tenth.core import jobs
from tenth.core.divergence import log_softmax
from tenth.core.errors import NativeError
from tenth.core.records import Record, Runtime
from tenth.evaluation.runtimes import TextModel, opened

Progress = Callable[[int], None]  # gets the number of requests answered
_Request = tuple[tuple[int, ...], int, int]  # ids, how many are context, which request
_PIECE = 256  # rows of logits at a time
Request = TypeVar("Request")
Answer = TypeVar("Answer")


def split(model: TextModel, context: str, continuation: str) -> tuple[list[int], int]:
    """Ids of both together, and how many are context.

    As lm-eval does it, spaces that end the context count as continuation. Where the tokenizer joins letters
    of both in one token, that token is continuation.
    """
    cut = len(context.rstrip())
    context, continuation = context[:cut], context[cut:] + continuation
    if not context:
        ids = model.encode(continuation)
        return (ids, 1) if len(ids) > 1 and ids[0] == model.start else ([model.start, *ids], 1)
    before, ids = model.encode(context), model.encode(context + continuation)
    return ids, max(1, min(shared(before, ids), len(ids) - 1))


def latest(model: TextModel, ids: Sequence[int], most: int) -> list[int]:
    """The last `most` of ids; the token that the model's tokenizer puts before a text stays in front."""
    if len(ids) <= most:
        return list(ids)
    begin = model.encode("")[:1]
    if most < 2 or not begin or ids[0] != begin[0]:
        return list(ids[len(ids) - most :])
    return [*begin, *ids[len(ids) - most + 1 :]]


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def loglikelihoods(
    model: TextModel,
    pairs: Sequence[tuple[str, str]],
    progress: Progress = lambda _: None,
    reuse: bool = True,
) -> list[tuple[float, bool]]:
    """(nats, whether greedy decoding would give it) of each continuation after its context.

    Too long a text loses the beginning of its context. reuse: False evaluates every pair from its first
    token, for comparison.
    """
    requests: list[_Request] = []
    for number, (context, continuation) in enumerate(pairs):
        ids, count = split(model, context, continuation)
        drop = max(0, len(ids) - 1 - model.n_ctx)
        requests.append((tuple(latest(model, ids, model.n_ctx + 1)), max(1, count - drop), number))
    answers: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    requests.sort()
    held: tuple[int, ...] = ()
    done = 0
    for group in _groups(requests):
        before = group[0][0][: group[0][1]]
        # At least the context's last token is evaluated again: its logits are needed.
        kept = min(shared(held, before), len(before) - 1) if reuse else 0
        last = None
        for whole, count, number in group:
            targets = whole[count:]
            if last is None or not reuse:
                last = model.extend(kept, before[kept:], every=False)
            rows = last
            if len(targets) > 1:
                rows = np.concatenate([last, model.extend(count, targets[:-1], every=True)])
            answers[number] = _sum(rows, targets)
            held = whole[:-1] if len(targets) > 1 else before
        done += len(group)
        progress(done)
    return answers


def _groups(requests: Sequence[_Request]) -> Iterator[list[_Request]]:
    """Neighbours with the same context."""
    group: list[_Request] = []
    for request in requests:
        if group and (request[1] != group[0][1] or request[0][: request[1]] != group[0][0][: request[1]]):
            yield group
            group = []
        group.append(request)
    if group:
        yield group


def _likeliest(row: np.ndarray) -> int:
    """The token of the largest logit; NativeError for NaN, which argmax takes for the largest."""
    token = int(row.argmax())
    if not math.isfinite(row[token]):
        raise NativeError("the model gives NaN or infinite logits; it cannot be asked")
    return token


def _sum(rows: np.ndarray, targets: Sequence[int]) -> tuple[float, bool]:
    """Nats of the targets under rows of logits, and whether each is the likeliest; NativeError for NaN."""
    tokens = np.asarray(targets)
    nats = log_softmax(rows)[np.arange(len(tokens)), tokens]
    total = float(nats.sum(dtype=np.float64))
    if not math.isfinite(total):
        raise NativeError("the model gives NaN or infinite logits; it cannot be scored")
    return total, bool((rows.argmax(axis=1) == tokens).all())


def rolling(model: TextModel, texts: Sequence[str], progress: Progress = lambda _: None) -> list[float]:
    """Nats of whole texts, every token predicted once with as much before it as fits.

    Windows are those of lm-eval: full ones side by side, the last one pulled back to be full as well. But the
    token that the model's tokenizer puts before a text begins them all.
    """
    totals = []
    for number, text in enumerate(texts):
        ids = model.encode(text)
        ids = ids if ids[:1] == [model.start] else [model.start, *ids]
        total, done = 0.0, 1  # tokens already predicted, and the first
        while done < len(ids):
            end = min(done + model.n_ctx, len(ids))
            begin = max(0, end - 1 - model.n_ctx)
            window = latest(model, ids[: end - 1], end - 1 - begin)
            for at in range(0, len(window), _PIECE):
                rows = model.extend(at, window[at : at + _PIECE], every=True)
                skip = max(0, done - 1 - begin - at)
                if skip < len(rows):
                    first = begin + at + skip + 1
                    total += _sum(rows[skip:], ids[first : first + len(rows) - skip])[0]
            done = end
        totals.append(total)
        progress(number + 1)
    return totals


def generate(
    model: TextModel, prompts: Sequence[tuple[str, Sequence[str], int]], progress: Progress = lambda _: None
) -> list[str]:
    """Greedy answers to (context, stops, most tokens): up to an end token, a stop or the limit.

    An answer may fill half of n_ctx at most; what then does not fit is lost from the context's beginning.
    """
    order = sorted(
        (model.encode(prompt[0]) or [model.start], number) for number, prompt in enumerate(prompts)
    )
    answers = [""] * len(prompts)
    held: list[int] = []
    for done, (whole, number) in enumerate(order):
        _, stops, limit = prompts[number]
        limit = min(limit, max(1, model.n_ctx // 2))
        context = latest(model, whole, model.n_ctx - limit)
        kept = min(shared(held, context), len(context) - 1)
        row = model.extend(kept, context[kept:], every=False)
        made: list[int] = []
        text = ""
        while len(made) < limit:
            token = _likeliest(row[0])
            if model.ends(token):
                break
            made.append(token)
            text = model.text(context[-1], made)
            if any(stop and stop in text for stop in stops) or len(made) == limit:
                break
            row = model.extend(len(context) + len(made) - 1, [token], every=False)
        places = [text.find(stop) for stop in stops if stop and stop in text]
        answers[number] = text[: min(places)] if places else text
        held = [*context, *made[:-1]]
        progress(done + 1)
    return answers


class Answers(Record, Generic[Answer]):
    """One answer a request; by task the seconds they took, without those of loading the model."""

    answers: list[Answer]
    seconds: dict[str, float]


class _Requests(Record):
    """What jobs of requests have in common: the model, and the task of each request."""

    path: Path  # a GGUF or a Hugging Face folder
    runtime: Runtime | None
    threads: int
    labels: list[str]

    def answers(
        self,
        function: Callable[[TextModel, Sequence[Request], Progress], list[Answer]],
        requests: Sequence[Request],
        emit: jobs.Emit,
    ) -> tuple[list[Answer], dict[str, float]]:
        """(answers, seconds by task); emits the number of requests that are answered."""
        answers: dict[int, Answer] = {}
        seconds: dict[str, float] = {}
        with opened(self.path, self.runtime, self.threads) as model:
            for label in dict.fromkeys(self.labels):
                numbers = [number for number, of in enumerate(self.labels) if of == label]
                begin, before = time.monotonic(), len(answers)
                asked = [requests[number] for number in numbers]
                answered = function(model, asked, _progress(emit, before))
                answers |= zip(numbers, answered, strict=True)
                seconds[label] = time.monotonic() - begin
        return [answers[number] for number in range(len(requests))], seconds


def _progress(emit: jobs.Emit, before: int) -> Progress:
    """Tells the parent how many requests are answered; so many were before."""
    return lambda count: emit({"done": before + count})


class ScorePairs(_Requests, jobs.Job[Answers[tuple[float, bool]]]):
    """Score pairs of (context, continuation) with `loglikelihoods` in a child."""

    pairs: list[tuple[str, str]]

    def run(self, emit: jobs.Emit) -> Answers[tuple[float, bool]]:
        """Answer all requests; emits how many are done."""
        answers, seconds = self.answers(loglikelihoods, self.pairs, emit)
        return Answers(answers=answers, seconds=seconds)


class ScoreTexts(_Requests, jobs.Job[Answers[float]]):
    """Score whole texts with `rolling` in a child."""

    texts: list[str]

    def run(self, emit: jobs.Emit) -> Answers[float]:
        """Answer all requests; emits how many are done."""
        answers, seconds = self.answers(rolling, self.texts, emit)
        return Answers(answers=answers, seconds=seconds)


class Generate(_Requests, jobs.Job[Answers[str]]):
    """Answer prompts, given as (context, stops, most tokens), with `generate` in a child."""

    prompts: list[tuple[str, list[str], int]]

    def run(self, emit: jobs.Emit) -> Answers[str]:
        """Answer all requests; emits how many are done."""
        answers, seconds = self.answers(generate, self.prompts, emit)
        return Answers(answers=answers, seconds=seconds)
