"""What storage types and KV caches cost where nothing was measured: the averages of a model that was.

`tenth plan` works from config.json alone, so it has no weights to measure on. A type on a tensor
then costs

    predicted KL = TOTAL * share(tensor) * ratio(type),    share ~ weights * sensitivity of its role, sum one,

with sensitivities, ratios and the KV sensitivities measured on one model by bench/prior.py and kept in
data/default_sensitivity.json. It ranks choices; the nats are a rough guide (other models differ by a factor 2
either way), and a plan made so says "default".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources

from pydantic import Field

from tenth.core.ggml import storage_type
from tenth.core.records import Record, TensorSpec
from tenth.quantization.sensitivity import Sensitivities


class DefaultSensitivity(Record):
    """The contents of data/default_sensitivity.json."""

    source: str  # the model and text it was measured on
    predicted_kl: float = Field(gt=0)  # nats per token with every matrix at Q4_K
    sensitivity: dict[str, float]  # role -> predicted KL per weight at Q4_K, relative
    ratio: dict[str, float]  # type -> predicted KL relative to Q4_K
    kv: dict[str, float]  # "k q8_0" -> nats per token


@cache
def load() -> DefaultSensitivity:
    """The packaged default sensitivities."""
    return DefaultSensitivity.model_validate_json(
        (resources.files("tenth") / "data" / "default_sensitivity.json").read_text(encoding="utf-8")
    )


def sensitivities(specs: Sequence[TensorSpec]) -> Sensitivities:
    """For every linear tensor, the predicted KL in nats per token of each type that holds its rows."""
    defaults = load()
    average = sum(defaults.sensitivity.values()) / len(defaults.sensitivity)
    tied = all(spec.role != "output" for spec in specs)
    linear = [spec for spec in specs if spec.linear]

    def weight(spec: TensorSpec) -> float:
        role = "output" if spec.role == "token_embd" and tied else spec.role
        return spec.count * defaults.sensitivity.get(role, average)

    total = sum(weight(spec) for spec in linear)
    return {
        spec.name: {
            name: defaults.predicted_kl * weight(spec) / total * ratio
            for name, ratio in defaults.ratio.items()
            if storage_type(name).holds(spec.columns)
        }
        for spec in linear
    }


def kv() -> dict[str, float]:
    """KV-cache sensitivities, "k q8_0" -> nats per token."""
    return dict(load().kv)


def derive(
    source: str, specs: Sequence[TensorSpec], measured: Sensitivities, kv_measured: dict[str, float]
) -> DefaultSensitivity:
    """The default sensitivities of one measured model with a tied embedding, whose roles and types stand for
    others'.
    """
    linear = [spec for spec in specs if spec.linear]
    at_q4 = {spec.name: measured[spec.name]["Q4_K"] for spec in linear}
    by_role: dict[str, list[TensorSpec]] = {}
    for spec in linear:
        by_role.setdefault("output" if spec.role == "token_embd" else spec.role, []).append(spec)
    sensitivity = {
        role: sum(at_q4[s.name] for s in group) / sum(s.count for s in group)
        for role, group in by_role.items()
    }
    # An input embedding alone is read, not multiplied: its predicted KL is near that of the least sensitive
    # matrix.
    sensitivity["token_embd"] = min(sensitivity.values())
    least = min(sensitivity.values())
    total = sum(at_q4.values())
    types = sorted(set.intersection(*(set(measured[spec.name]) for spec in linear)))
    return DefaultSensitivity(
        source=source,
        predicted_kl=total,
        sensitivity={role: round(value / least, 3) for role, value in sensitivity.items()},
        ratio={name: round(sum(measured[s.name][name] for s in linear) / total, 5) for name in types},
        kv={name: float(f"{value:.3g}") for name, value in kv_measured.items()},
    )


def dump(defaults: DefaultSensitivity) -> str:
    """The text of data/default_sensitivity.json."""
    return json.dumps(defaults.model_dump(), indent=1) + "\n"
