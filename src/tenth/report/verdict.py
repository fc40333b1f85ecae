"""The verdict in words: whether the file fits, and how it stands against the stock recipes.

It is always against the model that the person gave, in the measure that still compares: KL, or bits per byte
of text where tokens were removed, since KL is then to a model that nobody asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tenth.core.format import figure, megabytes
from tenth.core.records import Candidate, Plan, Reading, Scorecard, reading_of
from tenth.quantization.recipes import BASES

Tone = Literal["good", "even", "bad"]
SERIOUS = 0.1  # of the original's bits per byte
NOT_MEASURED = "no file that keeps all tokens was measured beside it"


@dataclass(frozen=True)
class QualityVerdict:
    """The quality sentence, and whether it is good news."""

    text: str
    tone: Tone


def verdict(plan: Plan, card: Scorecard) -> str:
    """The whole verdict in plain text: whether it fits, and how it stands against the stock recipes."""
    return f"{fit_sentence(plan, card)} {quality_verdict(card).text}"


def fit_sentence(plan: Plan, card: Scorecard) -> str:
    """Whether the artifact was seen to stay within the budget."""
    proof = card.proof
    peak, budget = f"{megabytes(proof.peak)} MB", f"{megabytes(proof.budget)} MB"
    context = f"{plan.runtime.n_ctx:,} tokens of context"
    if proof.fits:
        return f"tenth fits {card.model} into {budget}: it was seen to peak at {peak} with {context}."
    return f"{card.model} does NOT fit into {budget}: it was seen to peak at {peak} with {context}."


def measure(card: Scorecard) -> str:
    """The name of the reading by which files are held against the model that was given."""
    return "bits_per_byte" if card.vocabulary else "kl"


def best_rival(card: Scorecard) -> Candidate | None:
    """The stock recipe that fits and is nearest the model that was given, or None."""
    return _best(card, _beside(card, stock=True))


def _best(card: Scorecard, candidates: Sequence[Candidate]) -> Candidate | None:
    """Of the candidates that fit and were measured, the one with the least of `measure`; None for none."""
    name = measure(card)
    fitting = [c for c in candidates if c.fits and c.value(name) is not None]
    return min(fitting, key=lambda c: c.value(name) or 0.0, default=None)


def _beside(card: Scorecard, stock: bool) -> list[Candidate]:
    """The stock recipes that were measured, or what else tenth made and did not keep."""
    return [c for c in card.candidates[1:] if not c.all_tokens and (c.name in BASES) == stock]


def quality_verdict(card: Scorecard) -> QualityVerdict:
    """How far ours is from the original, against the best stock recipe that fits and tenth's other files."""
    found = _against_all_tokens(card) if card.vocabulary else _against_stock(card)
    return QualityVerdict(found.text + _kept(card), found.tone)


def _kept(card: Scorecard) -> str:
    """A sentence on why it is this one of tenth's own files; empty where it is the only one."""
    others = {c.name: c.value("bits_per_byte") for c in _beside(card, stock=False)}
    said = " and ".join(f"{figure(value)} of {name}" for name, value in others.items() if value is not None)
    ours = card.candidates[0].value("bits_per_byte") if said else None
    if ours is None:
        return ""
    return f" It was kept for its {figure(ours)} bits per byte of held-out text, against {said}."


def _against_all_tokens(card: Scorecard) -> QualityVerdict:
    """Of a file that lost tokens: bits per byte against those of the original, and of a file that keeps all.

    It is bad news where the one that keeps all fits and is as good, or where a tenth is lost at least.
    """
    ours = card.candidates[0].reading("bits_per_byte") if card.candidates else None
    original = reading_of(card.original, "bits_per_byte")
    if ours is None or original is None or card.vocabulary is None:
        return QualityVerdict("Its distance to the original was not measured.", "even")
    before, after = card.vocabulary
    rise = ours.value / original.value - 1
    text = (
        f"With {after:,} of {before:,} tokens it takes {figure(ours.value)} bits per byte of held-out text,"
        f" {abs(rise):.1%} {'more' if rise >= 0 else 'less'} than the original's {figure(original.value)}."
    )
    if same := best_rival(card):
        text += f" {same.name}, the best stock recipe with the same tokens, takes {_bits(same)}."
    keeping = [c for c in card.candidates[1:] if c.all_tokens]
    whole = _best(card, keeping)
    theirs = whole.reading("bits_per_byte") if whole else None
    tone: Tone = "bad" if rise >= SERIOUS else "even"
    if whole is None or theirs is None:
        tried = ", ".join(c.name for c in keeping)
        said = f"of the files that keep all tokens none fits this budget ({tried})" if tried else NOT_MEASURED
        return QualityVerdict(f"{text[:-1]}; {said}.", tone)
    against = f"{text} {whole.name}, which fits too, takes {figure(theirs.value)}"
    if theirs.value <= ours.value or abs(theirs.value - ours.value) <= _noise(ours, theirs):
        return QualityVerdict(f"{against}, so {whole.name} is the better choice here.", "bad")
    return QualityVerdict(f"{against}: {1 - ours.value / theirs.value:.0%} less than that.", "good")


def _bits(candidate: Candidate) -> str:
    return figure(candidate.value("bits_per_byte") or 0.0)


def _noise(one: Reading, other: Reading) -> float:
    """Twice the root of the summed squared standard errors: less is no clear difference."""
    return 2 * math.hypot(one.spread or 0.0, other.spread or 0.0)


def _against_stock(card: Scorecard) -> QualityVerdict:
    """Worse is called worse.

    Two KL values are called equal when they differ by less than twice the root of their summed squared
    standard errors; both come from the same text, so that this errs towards "no clear difference".
    """
    ours = card.candidates[0].reading("kl") if card.candidates else None
    if ours is None:
        return QualityVerdict("Its distance to the original was not measured.", "even")
    start = f"Its KL divergence from the original is {figure(ours.value)} nats per token"
    rival = best_rival(card)
    theirs = rival.reading("kl") if rival else None
    if rival is None or theirs is None:
        tried = ", ".join(c.name for c in _beside(card, stock=True) if not c.fits)
        if tried:
            return QualityVerdict(
                f"{start}; none of the stock recipes tried fits this budget ({tried}).", "good"
            )
        return QualityVerdict(
            f"{start}; no stock recipe was measured beside it, so nothing is compared with one.", "even"
        )
    against = f"{start}, against {figure(theirs.value)} for {rival.name}, the best stock recipe that fits"
    if abs(ours.value - theirs.value) <= _noise(ours, theirs) or theirs.value == ours.value:
        return QualityVerdict(
            f"{against}: no clear difference, it is within the error of the measurement.", "even"
        )
    change = abs(ours.value / theirs.value - 1) if theirs.value > 0 else float("inf")
    if ours.value < theirs.value:
        return QualityVerdict(f"{against}: {change:.0%} less.", "good")
    return QualityVerdict(f"{against}: {change:.0%} MORE, so {rival.name} is the better choice here.", "bad")
