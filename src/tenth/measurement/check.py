"""Whether a run's answers are the file's: the same tokens must have the same log-probabilities elsewhere.

Two comparisons, both by the mean distance of log-probabilities of chosen tokens: with an independent run of
the same file in another process, all tokens at once instead of one by one; and with the `Sample` that was
recorded on the machine that made the bundle. Other kernels round differently (an ARM processor is not an
x86), so a small distance is allowed; a broken kernel, a wrong setting or a damaged file is whole nats away.
"""

from __future__ import annotations

from pathlib import Path

from tenth.core import jobs
from tenth.core.divergence import log_probability
from tenth.core.records import Runtime, Sample
from tenth.models import text
from tenth.runtime import llama

TOLERANCE = 0.1  # nats, mean over tokens
_TOKENS = 32
_LETTERS = 300  # of the packaged text


def sample(gguf: Path, runtime: Runtime, log: Path | None = None) -> Sample:
    """The file's greedy answer to the beginning of the packaged text, on this machine."""
    job = Answer(gguf=gguf, runtime=runtime, text=text.bundled()[:_LETTERS])
    return jobs.run(job, around=jobs.Surroundings(log))


class Answer(jobs.Job[Sample]):
    """A greedy answer to a text, or what the file makes of the given tokens in its place.

    A prompt that would fill more than half of the context is cut.
    """

    gguf: Path
    runtime: Runtime
    text: str
    tokens: list[int] | None = None

    def run(self, emit: jobs.Emit) -> Sample:  # noqa: ARG002
        """Decode one token after the other."""
        n_ctx = self.runtime.n_ctx
        with llama.Session.serving(self.gguf, self.runtime) as session:
            prompt = session.tokenize(self.text)[: max(1, n_ctx // 2)]
            row = session.decode(prompt, 0, all_logits=False)[0]
            tokens: list[int] = []
            nats: list[float] = []
            for i in range(len(self.tokens) if self.tokens else min(_TOKENS, n_ctx - len(prompt))):
                token = self.tokens[i] if self.tokens else int(row.argmax())
                tokens.append(token)
                nats.append(log_probability(row, token))
                if len(prompt) + i < n_ctx:
                    row = session.decode([token], len(prompt) + i, all_logits=False)[0]
        return Sample(text=self.text, prompt=prompt.tolist(), tokens=tokens, logprobs=nats)


class Rescore(jobs.Job[list[float]]):
    """The log-probabilities (nats) of some tokens of a text that is read in whole batches.

    scored: (position, the token after it) of each.
    """

    gguf: Path
    runtime: Runtime
    ids: list[int]
    scored: list[tuple[int, int]]

    def run(self, emit: jobs.Emit) -> list[float]:
        """Read the text; emits the share that is done."""
        targets = dict(self.scored)
        nats: dict[int, float] = {}
        batch = self.runtime.n_ubatch
        with llama.Session.open(self.gguf, self.runtime) as session:
            for begin in range(0, len(self.ids), batch):
                ids = self.ids[begin : begin + batch]
                here = [position for position in range(begin, begin + len(ids)) if position in targets]
                rows = session.decode(ids, begin, all_logits=bool(here))
                for position in here:
                    nats[position] = log_probability(rows[position - begin], targets[position])
                emit({"done": (begin + len(ids)) / len(self.ids)})
        return [nats[position] for position, _ in self.scored]
