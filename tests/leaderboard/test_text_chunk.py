from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import forged
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from tenth.core.errors import InputError
from tenth.core.records import Runtime
from tenth.leaderboard import probes, text_chunk
from tenth.leaderboard.text_chunk import JudgeText, ReadOriginal, TextJudged, TimeText
from tenth.models import text
from tenth.runtime import llama

Judged = tuple[Path, Path, list[str], TextJudged]  # original, other, passages, what is found of the other
RUNTIME = Runtime(n_ctx=512, n_ubatch=128, type_k="f32", type_v="f32", flash_attention=False, threads=1)


def ignore(event: dict[str, Any]) -> None:
    pass


@settings(max_examples=50, deadline=None)
@given(words=st.text(st.sampled_from("a é 你 🙂 \n"), min_size=1, max_size=40), count=st.integers(4, 9))
def test_passages_are_the_end_of_the_text_in_whole_letters(words: str, count: int) -> None:
    whole = words * (count * text_chunk.BYTES // len(words.encode()) + 1)
    found = text_chunk.cut(whole, count)
    assert whole.endswith("".join(found))
    assert len(found) <= count
    assert all(text_chunk.BYTES - 3 <= len(p.encode()) <= text_chunk.BYTES for p in found)


def test_too_little_text_is_an_error() -> None:
    with pytest.raises(InputError, match="too short"):
        text_chunk.cut("x" * (4 * text_chunk.BYTES - 1))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """(original, other, passages, what is found of the other); by the functions of the children."""
    place = tmp_path_factory.mktemp("passage")
    original = forged.model(place / "original.gguf")
    other = forged.model(place / "other.gguf", kind="Q4_0")
    text_chunks = text_chunk.cut(text.bundled(), 4)
    file = place / "text-chunks.json"
    file.write_text(json.dumps(text_chunks))
    answers = place / "answers"
    answers.mkdir()
    common = {"runtime": RUNTIME, "text": file}
    ReadOriginal(gguf=original, folder=answers, **common).run(ignore)
    return original, other, text_chunks, JudgeText(gguf=other, reference=answers, **common).run(ignore)


def naive(model: Path, words: str) -> tuple[np.ndarray, np.ndarray]:
    """(log-probabilities [tokens, vocabulary] of a passage, its tokens), piece by piece of the context."""
    rows, every = [], []
    exact = Runtime(n_ctx=512, n_ubatch=512, type_k="f32", type_v="f32", flash_attention=False, threads=1)
    with llama.Session.open(model, exact) as session:
        ids = session.tokenize(words, special=False, parse=False).tolist()
        for begin in range(0, len(ids), 512):
            piece = ids[begin : begin + 512]
            session.clear()
            rows.append(session.decode([0, *piece[:-1]], 0))  # 0 is the model's end of text
            every += piece
    return log_softmax(np.concatenate(rows).astype(np.float64), axis=1), np.array(every)


def test_bits_and_divergence_are_those_of_a_naive_reading(judged: Judged) -> None:
    original, other, text_chunks, found = judged
    assert found.same_tokenizer
    for index, words in enumerate(text_chunks):
        q, ids = naive(other, words)
        p, _ = naive(original, words)
        bits = -q[np.arange(len(ids)), ids].sum() / np.log(2) / len(words.encode())
        kl = (np.exp(p) * (p - q)).sum(axis=1).mean()
        assert found.bits[index] == pytest.approx(bits, rel=1e-4)
        assert found.kl[index] == pytest.approx(kl, rel=0.02, abs=1e-5)
        assert found.top1[index] == pytest.approx((p.argmax(1) == q.argmax(1)).mean(), abs=0.02)
    assert all(probe.passed for probe in found.probes), found.probes


def test_timed_figures_and_answers(judged: Judged, tmp_path: Path) -> None:
    _, other, text_chunks, found = judged
    file = tmp_path / "text-chunks.json"
    file.write_text(json.dumps(text_chunks))
    timed = TimeText(gguf=other, runtime=RUNTIME, text=file, prefill=64, decode=32).run(ignore)
    assert len(timed.load) == len(timed.prefill) == len(timed.decode) == text_chunk.TIMED
    probe = probes.compare_timed(timed.scored, found.timed)
    assert probe.passed, probe
    cheating = [(first, [nats - 1.0 for nats in each]) for first, each in timed.scored]
    assert not probes.compare_timed(cheating, found.timed).passed


def test_a_sum_that_is_not_one_a_constant_and_nan_are_seen() -> None:
    watch = probes.DistributionProbe(4)
    watch.add(np.log(np.full((3, 4), 0.3, np.float32)))
    assert not watch.finite().passed
    assert not watch.varied().passed
    watch = probes.DistributionProbe(4)
    watch.add(np.log(np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]], np.float32)))
    assert watch.finite().passed
    told = watch.varied()
    entropy = -(0.7 * np.log(0.7) + 0.3 * np.log(0.1))
    mean = np.array([0.4, 0.1, 0.1, 0.4])
    assert told.value == pytest.approx(-(mean * np.log(mean)).sum() - entropy, rel=1e-5)
    assert told.passed
    assert not probes.DistributionProbe(4).sees(np.array([[np.nan, 0, 0, 0]]), 0)
    assert not probes.DistributionProbe(4).sees(np.array([[np.inf, 0, 0, 0]]), 0)


@settings(max_examples=60, deadline=None)
@given(lead=st.floats(0.3, 5), noise=st.floats(0, 3), seed=st.integers(0, 99))
def test_a_run_that_looks_better_than_it_serves_is_seen(lead: float, noise: float, seed: int) -> None:
    served = np.random.default_rng(seed).normal(-3, 1, 5000)
    judged_ = served + lead + noise * np.random.default_rng(seed + 1).normal(0, 1, 5000)
    assert not probes.compare_timed([(0, served.tolist())], [judged_.tolist()]).passed


@settings(max_examples=60, deadline=None)
@given(noise=st.floats(0, 0.3), seed=st.integers(0, 9999))
def test_rounding_of_kernels_is_no_cheating(noise: float, seed: int) -> None:
    served = np.random.default_rng(seed).normal(-3, 1, 192)
    apart = noise * np.random.default_rng(seed + 1).uniform(-1, 1, 192)
    assert probes.compare_timed([(0, served.tolist())], [(served + apart).tolist()]).passed


class Artifact:
    """What a cheating runtime might do, which no file makes llama.cpp do: a session of logits by rule."""

    n_vocab, n_batch = 32, 16

    def __init__(self, cheat: str) -> None:
        self.cheat, self.calls, self.seen = cheat, 0, []  # type: ignore[var-annotated]

    def clear(self) -> None:
        if self.cheat != "remembers":
            self.seen = []

    def decode(self, tokens: np.ndarray, pos0: int = 0, all_logits: bool = True) -> np.ndarray:
        self.calls += 1
        rows = []
        for i, token in enumerate(tokens):
            self.seen.append(int(token))
            state = sum(self.seen[-3:]) if self.cheat != "remembers" else sum(self.seen)
            row = np.cos(np.arange(self.n_vocab) * (1 + state % 7)) * 2
            if self.cheat == "peeks" and i + 1 < len(tokens):
                row[tokens[i + 1]] += 3
            if self.cheat == "wavers":
                row[self.calls % self.n_vocab] += 1
            if self.cheat == "serves worse" and len(tokens) == 1:
                row = row * 0
            rows.append(row)
        return np.array(rows, np.float32)


@pytest.mark.parametrize(
    ("cheat", "failing"),
    [
        ("none", set()),
        ("wavers", {"deterministic", "order"}),
        ("remembers", {"deterministic", "order"}),
        ("peeks", {"causal", "batch"}),
        ("serves worse", {"batch"}),
    ],
)
def test_each_probe_can_fail(cheat: str, failing: set[str]) -> None:
    session: Any = Artifact(cheat)
    rng = np.random.default_rng(0)
    pieces = [probes.TokenPiece(i, 0, rng.integers(0, 32, 300).astype(np.int32)) for i in range(3)]
    known = {i: probes.scored(session, piece).tolist() for i, piece in enumerate(pieces)}
    found = {probe.name for probe in probes.ask_again(session, pieces, known) if not probe.passed}
    assert failing <= found
    assert bool(found) == bool(failing)
