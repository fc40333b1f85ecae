"""Whether a run's answers are the file's: the same tokens must have the same log-probabilities elsewhere.

Two comparisons, both by the mean distance of log-probabilities of chosen tokens: with an independent run of
the same file in another process, all tokens at once instead of one by one; and with the `Sample` that was
recorded on the machine that made the bundle. Other kernels round differently (an ARM processor is not an
x86), so a small distance is allowed; a broken kernel, a wrong setting or a damaged file is whole nats away.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenth.core import jobs
from tenth.core.records import Runtime, Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

TOLERANCE = 0.1  # nats, mean over tokens
_TOKENS = 32
_LETTERS = 300  # of the packaged text


def sample(gguf: Path, runtime: Runtime, log: Path | None = None) -> Sample:
    """The file's greedy answer to the beginning of the packaged text, on this machine."""
    from tenth.models import text

    arguments = {"path": str(gguf), "runtime": runtime.model_dump(), "threads": runtime.threads}
    asked = text.bundled()[:_LETTERS]
    found = jobs.call("tenth.measurement.check:answer", {**arguments, "text": asked, "tokens": None}, log=log)
    return Sample(text=asked, **found)


def answer(
    emit: jobs.Emit,  # noqa: ARG001
    path: str,
    runtime: dict[str, Any],
    threads: int,
    text: str,
    tokens: list[int] | None,
) -> dict[str, Any]:
    """In a child process: the prompt's ids, the greedy tokens (or the given ones), their log-probabilities.

    A prompt that would fill more than half of the context is cut.
    """
    from tenth.core.divergence import log_probability
    from tenth.runtime import llama

    settings = Runtime(**runtime)
    with llama.Session.serving(path, settings, threads) as session:
        prompt = session.tokenize(text)[: max(1, settings.n_ctx // 2)]
        row = session.decode(prompt, 0, all_logits=False)[0]
        said, nats = [], []
        for i in range(len(tokens) if tokens else min(_TOKENS, settings.n_ctx - len(prompt))):
            token = tokens[i] if tokens else int(row.argmax())
            said.append(token)
            nats.append(log_probability(row, token))
            if len(prompt) + i < settings.n_ctx:
                row = session.decode([token], len(prompt) + i, all_logits=False)[0]
    return {"prompt": prompt.tolist(), "tokens": said, "logprobs": nats}


def rescore(
    emit: jobs.Emit,
    path: str,
    runtime: dict[str, Any],
    threads: int,
    ids: list[int],
    scored: Sequence[Sequence[int]],
) -> list[float]:
    """In a child process: the log-probabilities of tokens [(position, token after it)], in whole batches."""
    from tenth.core.divergence import log_probability
    from tenth.runtime import llama

    settings = Runtime(**runtime)
    wanted = {int(position): int(token) for position, token in scored}
    found: dict[int, float] = {}
    with llama.Session.open(
        path,
        n_ctx=settings.n_ctx,
        n_batch=settings.n_ubatch,
        n_ubatch=settings.n_ubatch,
        type_k=settings.type_k,
        type_v=settings.type_v,
        flash_attention=settings.flash_attention,
        repack=settings.repack,
        threads=threads,
    ) as session:
        for begin in range(0, len(ids), settings.n_ubatch):
            piece = ids[begin : begin + settings.n_ubatch]
            here = [position for position in range(begin, begin + len(piece)) if position in wanted]
            rows = session.decode(piece, begin, all_logits=bool(here))
            for position in here:
                found[position] = log_probability(rows[position - begin], wanted[position])
            emit({"done": (begin + len(piece)) / len(ids)})
    return [found[position] for position, _ in scored]
