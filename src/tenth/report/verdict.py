"""The verdict in words: whether the file fits, and how it stands against the stock recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tenth.core.format import figure, megabytes
from tenth.core.records import Candidate, Plan, Scorecard
from tenth.quantization.recipes import BASES


@dataclass(frozen=True)
class QualityVerdict:
    """The quality sentence, and whether it is good news."""

    text: str
    tone: Literal["good", "even", "bad"]


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


def best_rival(card: Scorecard) -> Candidate | None:
    """The stock recipe that fits and has the lowest KL, or None."""
    rivals = [c for c in _beside(card, stock=True) if c.fits and c.value("kl") is not None]
    return min(rivals, key=lambda c: c.value("kl") or 0.0, default=None)


def _beside(card: Scorecard, stock: bool) -> list[Candidate]:
    """The stock recipes that were measured, or what else tenth made and did not keep."""
    return [c for c in card.candidates[1:] if (c.name in BASES) == stock]


def quality_verdict(card: Scorecard) -> QualityVerdict:
    """How far ours is from the original, against the best stock recipe that fits and tenth's other files."""
    found = _against_stock(card)
    return QualityVerdict(found.text + _kept(card), found.tone)


def _kept(card: Scorecard) -> str:
    """A sentence on why it is this one of tenth's own files; empty where it is the only one."""
    others = {c.name: c.value("bits_per_byte") for c in _beside(card, stock=False)}
    said = " and ".join(f"{figure(value)} of {name}" for name, value in others.items() if value is not None)
    ours = card.candidates[0].value("bits_per_byte") if said else None
    if ours is None:
        return ""
    return f" It was kept for its {figure(ours)} bits per byte of held-out text, against {said}."


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
    noise = 2 * ((ours.spread or 0.0) ** 2 + (theirs.spread or 0.0) ** 2) ** 0.5
    if abs(ours.value - theirs.value) <= noise or theirs.value == ours.value:
        return QualityVerdict(
            f"{against}: no clear difference, it is within the error of the measurement.", "even"
        )
    change = abs(ours.value / theirs.value - 1) if theirs.value > 0 else float("inf")
    if ours.value < theirs.value:
        return QualityVerdict(f"{against}: {change:.0%} less.", "good")
    return QualityVerdict(f"{against}: {change:.0%} MORE, so {rival.name} is the better choice here.", "bad")
