"""What storage types and KV caches cost where nothing was measured: the averages of a model that was.

`tenth plan` works from config.json alone, so it has no weights to measure on. It then prices a type on a
tensor as

    damage = DAMAGE * share(tensor) * ratio(type),    share ~ weights * sensitivity of its role, sum one,

with sensitivities, ratios and the KV damages measured on one model by bench/prior.py and kept in
data/prior.json. It ranks choices; the nats are a rough guide (other models differ by a factor 2 either way),
and a plan made so says "prior".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources

from pydantic import Field

from tenth.core.ggml import holds
from tenth.core.records import Record, TensorSpec
from tenth.quantization.sensitivity import Prices


class Prior(Record):
    """data/prior.json."""

    source: str  # the model and text it was measured on
    damage: float = Field(gt=0)  # nats per token with every matrix at Q4_K
    sensitivity: dict[str, float]  # role -> damage per weight at Q4_K, relative
    ratio: dict[str, float]  # type -> damage relative to Q4_K
    kv: dict[str, float]  # "k q8_0" -> nats per token


@cache
def load() -> Prior:
    """The packaged prior."""
    return Prior.model_validate_json(
        (resources.files("tenth") / "data" / "prior.json").read_text(encoding="utf-8")
    )


def prices(specs: Sequence[TensorSpec]) -> Prices:
    """For every linear tensor, the damage in nats per token of each type that holds its rows."""
    prior = load()
    average = sum(prior.sensitivity.values()) / len(prior.sensitivity)
    tied = all(spec.role != "output" for spec in specs)
    linear = [spec for spec in specs if spec.linear]

    def weight(spec: TensorSpec) -> float:
        role = "output" if spec.role == "token_embd" and tied else spec.role
        return spec.count * prior.sensitivity.get(role, average)

    total = sum(weight(spec) for spec in linear)
    return {
        spec.name: {
            name: prior.damage * weight(spec) / total * ratio
            for name, ratio in prior.ratio.items()
            if holds(name, spec.columns)
        }
        for spec in linear
    }


def kv() -> dict[str, float]:
    """KV-cache damages, "k q8_0" -> nats per token."""
    return dict(load().kv)


def derive(
    source: str, specs: Sequence[TensorSpec], measured: Prices, kv_measured: dict[str, float]
) -> Prior:
    """The prior of one measured model with a tied embedding, whose roles and types stand for others'."""
    linear = [spec for spec in specs if spec.linear]
    at_q4 = {spec.name: measured[spec.name]["Q4_K"] for spec in linear}
    by_role: dict[str, list[TensorSpec]] = {}
    for spec in linear:
        by_role.setdefault("output" if spec.role == "token_embd" else spec.role, []).append(spec)
    sensitivity = {
        role: sum(at_q4[s.name] for s in group) / sum(s.count for s in group)
        for role, group in by_role.items()
    }
    # An input embedding alone is read, not multiplied: its damage is near that of the least sensitive matrix.
    sensitivity["token_embd"] = min(sensitivity.values())
    least = min(sensitivity.values())
    total = sum(at_q4.values())
    types = sorted(set.intersection(*(set(measured[spec.name]) for spec in linear)))
    return Prior(
        source=source,
        damage=total,
        sensitivity={role: round(value / least, 3) for role, value in sensitivity.items()},
        ratio={name: round(sum(measured[s.name][name] for s in linear) / total, 5) for name in types},
        kv={name: float(f"{value:.3g}") for name, value in kv_measured.items()},
    )


def dump(prior: Prior) -> str:
    """The text of data/prior.json."""
    return json.dumps(prior.model_dump(), indent=1) + "\n"
