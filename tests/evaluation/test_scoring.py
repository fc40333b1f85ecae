from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import naive_scoring

from tenth.core.errors import InputError, NativeError
from tenth.evaluation import runtimes, scoring
from tenth.models.checkpoint import open_checkpoint
from tenth.models.formats.gguf import write_gguf

LETTERS = "abcdé "


class Letters:
    """A tape of characters whose logits depend on all that is on it; it counts what it evaluates."""

    start = 0

    def __init__(self, n_ctx: int) -> None:
        self.n_ctx, self.ids, self.evaluated = n_ctx, [], 0

    def encode(self, text: str) -> list[int]:
        return [1 + LETTERS.index(c) for c in text]

    def text(self, before: int, ids: Sequence[int]) -> str:
        return "".join(LETTERS[i - 1] if i else "|" for i in ids)

    def ends(self, token: int) -> bool:
        return token == 0

    def extend(self, keep: int, ids: Sequence[int], every: bool) -> np.ndarray:
        assert keep <= len(self.ids)
        assert ids
        self.ids = [*self.ids[:keep], *ids]
        assert len(self.ids) <= self.n_ctx
        self.evaluated += len(ids)
        return self.logits(self.ids)[keep if every else -1 :]

    @staticmethod
    def logits(ids: Sequence[int]) -> np.ndarray:
        rows = [random.Random(str(list(ids[: n + 1]))) for n in range(len(ids))]
        return np.array([[row.gauss(0, 2) for _ in range(len(LETTERS) + 1)] for row in rows], np.float32)


class Begun(Letters):
    """Its tokenizer puts a token before every text."""

    def encode(self, text: str) -> list[int]:
        return [0, *super().encode(text)]


words = st.text(LETTERS, max_size=7)
pairs_of_words = st.lists(st.tuples(words, st.text(LETTERS, min_size=1, max_size=7)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(pairs=pairs_of_words, n_ctx=st.integers(4, 20), seed=st.integers(0, 99))
def test_any_pairs_are_scored_as_one_by_one_in_any_order(
    pairs: list[tuple[str, str]], n_ctx: int, seed: int
) -> None:
    found = scoring.loglikelihoods(Letters(n_ctx), pairs)
    for (context, continuation), (nats, greedy) in zip(pairs, found, strict=True):
        context, continuation = context.rstrip(), context[len(context.rstrip()) :] + continuation
        ids = Letters(n_ctx).encode(context + continuation)
        ids, first = (ids, len(context)) if context else ([0, *ids], 1)
        if len(ids) - first > n_ctx:
            continue  # a continuation that does not fit loses its own beginning; it has no one right score
        expected = naive_scoring.loglikelihood(Letters.logits, ids, first, n_ctx)
        assert nats == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    assert scoring.loglikelihoods(Letters(n_ctx), [pairs[i] for i in order]) == [found[i] for i in order]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(LETTERS, min_size=1, max_size=40), max_size=4), n_ctx=st.integers(1, 20))
def test_whole_texts(texts: list[str], n_ctx: int) -> None:
    found = scoring.rolling(Letters(n_ctx), texts)
    for text, nats in zip(texts, found, strict=True):
        ids = [0, *Letters(n_ctx).encode(text)]
        assert nats == pytest.approx(naive_scoring.rolling(Letters.logits, ids, n_ctx), abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    context=st.text(LETTERS.strip(), min_size=1, max_size=30),
    continuation=st.text(LETTERS.strip(), min_size=1, max_size=3),
    n_ctx=st.integers(4, 20),
)
def test_what_does_not_fit_keeps_the_token_that_begins_a_text(
    context: str, continuation: str, n_ctx: int
) -> None:
    ids = Begun(n_ctx).encode(context + continuation)
    found = scoring.loglikelihoods(Begun(n_ctx), [(context, continuation)])[0]
    expected = naive_scoring.loglikelihood(Letters.logits, ids, len(context) + 1, n_ctx, begun=True)
    assert found[0] == pytest.approx(expected[0], abs=1e-4)
    assert found[1] == expected[1]
    whole = scoring.rolling(Begun(n_ctx), [context])[0]
    ids = Begun(n_ctx).encode(context)
    assert whole == pytest.approx(naive_scoring.rolling(Letters.logits, ids, n_ctx, begun=True), abs=1e-3)
    tape = Begun(n_ctx)
    scoring.generate(tape, [(context, [], 1)])
    assert tape.ids[0] == 0


def test_what_is_shared_is_evaluated_once() -> None:
    context = "abcd" * 5
    pairs = [(context + "a", c) for c in ("b", "c", "d", "bcd", "bdd")]
    once, afresh = Letters(64), Letters(64)
    assert scoring.loglikelihoods(once, pairs) == scoring.loglikelihoods(afresh, pairs, reuse=False)
    assert once.evaluated == 21 + 2 + 2
    assert afresh.evaluated == 5 * 21 + 2 + 2


@pytest.mark.parametrize("context", ["ac", "ad", "ab", "dab"])  # the last two end by themselves
def test_answers_stop_where_they_should(context: str) -> None:
    tape = Letters(40)
    ids = naive_scoring.greedy(Letters.logits, tape.encode(context), 9)
    whole = tape.text(0, ids[: ids.index(0)] if 0 in ids else ids)
    assert scoring.generate(tape, [(context, [], 9)]) == [whole]
    asked = [(context, [stop], 9) for stop in ("d", "cc", "é", "")]
    for (_, (stop,), _), answer in zip(asked, scoring.generate(tape, asked), strict=True):
        assert answer == (whole.split(stop)[0] if stop else whole)
    assert scoring.generate(tape, [(context, [], 2), ("a", [], 1)])[0] == whole[:2]
    assert len(scoring.generate(Letters(6), [(context * 9, [], 50)])[0]) <= 3


def test_nan_is_an_error() -> None:
    class Broken(Letters):
        def extend(self, keep: int, ids: Sequence[int], every: bool) -> np.ndarray:
            return super().extend(keep, ids, every) * np.nan

    with pytest.raises(NativeError, match="NaN"):
        scoring.loglikelihoods(Broken(9), [("a", "b")])
    with pytest.raises(NativeError, match="NaN"):
        scoring.generate(Broken(9), [("a", [], 3)])


# -- both runtimes -------------------------------------------------------------------------------------------

PAIRS = [
    ("The quick brown fox", " jumps over the lazy dog"),
    ("The quick brown fox", " waits"),
    ("The quick brown fox", " doesn't"),
    ("The quick brown fox ", "waits"),
    ("", "The cat sat on the mat."),
    ("naïve café", " 你好 🙂"),
    ("The cat", " sat"),
    ("The dog sat on the log. " * 20, "The cat"),
]
FAMILIES = {"llama": "tied", "gemma3_text": "windows", "qwen2": "untied"}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """(folder with model.gguf of the same weights beside it, the transformers model)."""
    folder = tmp_path_factory.mktemp(request.param)
    made = tiny.make_model(folder, request.param, FAMILIES[request.param])
    checkpoint = open_checkpoint(folder)
    write_gguf(checkpoint, {s.name: "F32" for s in checkpoint.specs() if s.linear}, folder / "model.gguf")
    return folder, made


@pytest.fixture(params=["gguf", "folder"])
def tape(request: Any, model: tuple[Path, Any]) -> Iterator[runtimes.TextModel]:
    path = model[0] / "model.gguf" if request.param == "gguf" else model[0]
    with runtimes.opened(path, None, 1) as opened:
        yield opened


def test_both_runtimes_score_as_a_naive_forward_pass(tape: Any, model: tuple[Path, Any]) -> None:
    import torch

    def logits(ids: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            rows: np.ndarray = model[1](torch.tensor([list(ids)])).logits[0].numpy()
        return rows

    assert tape.n_ctx == 256
    found = scoring.loglikelihoods(tape, PAIRS)
    for pair, (nats, greedy) in zip(PAIRS, found, strict=True):
        ids, first = scoring.split(tape, *pair)
        expected = naive_scoring.loglikelihood(logits, ids, first, tape.n_ctx)
        assert nats == pytest.approx(expected[0], abs=2e-3)
        assert greedy == expected[1]
    assert np.allclose(scoring.loglikelihoods(tape, PAIRS, reuse=False), found, atol=1e-3)
    text = "The quick brown fox doesn't jump. " * 20
    ids = [tape.start, *tape.encode(text)]
    expected_sum = naive_scoring.rolling(logits, ids, tape.n_ctx)
    assert scoring.rolling(tape, [text]) == [pytest.approx(expected_sum, abs=2e-2)]
    context = tape.encode("The cat")
    made = naive_scoring.greedy(logits, context, 6)
    if not any(tape.ends(token) for token in made):
        assert scoring.generate(tape, [("The cat", [], 6)]) == [tape.text(context[-1], made)]


def test_both_runtimes_agree(model: tuple[Path, Any]) -> None:
    folder = model[0]
    answers = []
    for path in (folder, folder / "model.gguf"):
        with runtimes.opened(path, None, 1) as tape:
            scores = scoring.loglikelihoods(tape, PAIRS)
            said = scoring.generate(tape, [("The cat", ["\n"], 20), ("naïve", [], 10)])
            answers.append((scores, said, [tape.encode(text) for pair in PAIRS for text in pair]))
    for one, other in zip(answers[0][0], answers[1][0], strict=True):
        assert one[0] == pytest.approx(other[0], abs=2e-3)
    assert answers[0][1:] == answers[1][1:]


def test_a_broken_folder_is_explained(tmp_path: Path) -> None:
    tiny.make_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with (
        pytest.raises(InputError, match="transformers cannot open the model"),
        runtimes.opened(tmp_path, None, 1),
    ):
        pass
