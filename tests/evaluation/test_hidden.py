from __future__ import annotations

import hashlib
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.core.errors import InputError
from tenth.core.statistics import unpaired
from tenth.evaluation import hidden

ITEMS = [{"question": f"what is {n}?", "choices": ["a", "é"], "answer": n % 2} for n in range(300)]


def test_a_round_is_committed_to() -> None:
    seed = hidden.new_seed()
    published = hidden.commitment(seed)
    assert published == hashlib.sha256(seed).hexdigest()
    assert hidden.kept(seed, published.upper())
    assert not hidden.kept(hidden.new_seed(), published)
    with pytest.raises(InputError, match="can be guessed"):
        hidden.commitment(b"round 1")


@settings(max_examples=40, deadline=None)
@given(seed=st.binary(max_size=40), count=st.integers(0, 310), order=st.integers(0, 99))
def test_the_same_items_are_drawn_from_any_order(seed: bytes, count: int, order: int) -> None:
    drawn = hidden.draw(ITEMS, seed, count)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == min(count, len(ITEMS))
    mixed = list(ITEMS)
    random.Random(order).shuffle(mixed)
    again = hidden.draw(mixed, seed, count)
    assert {mixed[i]["question"] for i in again} == {ITEMS[i]["question"] for i in drawn}
    assert set(hidden.draw(ITEMS, seed, count // 2)) <= set(drawn)


def test_seeds_draw_differently_and_evenly() -> None:
    taken = [0] * len(ITEMS)
    for number in range(200):
        for index in hidden.draw(ITEMS, number.to_bytes(32), 30):
            taken[index] += 1
    assert 3 <= min(taken) <= 20 <= max(taken) <= 45  # 20 expected, 4.2 its deviation


def test_spelling_of_the_file_does_not_count() -> None:
    again = [json.loads(json.dumps(item, indent=2)) for item in ITEMS]
    swapped = [dict(reversed(item.items())) for item in again]
    assert hidden.draw(swapped, b"s" * 32, 10) == hidden.draw(ITEMS, b"s" * 32, 10)
    assert hidden.digest(swapped[0]) == hidden.digest(ITEMS[0])
    assert hidden.digest(ITEMS[1]) != hidden.digest(ITEMS[0])


def test_the_gap_between_public_and_hidden() -> None:
    learnt = unpaired([1.0] * 90 + [0.0] * 10, [1.0] * 50 + [0.0] * 50)
    assert learnt.value == pytest.approx(0.4)
    assert learnt.low > 0.2
    honest = unpaired([1.0] * 52 + [0.0] * 48, [1.0] * 50 + [0.0] * 50)
    assert honest.low < 0 < honest.high
