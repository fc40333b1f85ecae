"""Write docs/devices.md: what of three known models fits a tenth and a half of every device, how fast, how
long.

    python scripts/devices_table.py [--check]

--check fails where the page is stale. The shapes are those of the models' published config.json;
sensitivities are the prior's (`tenth plan` on a bare config.json). Devices are those that have a file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenth.core.errors import BudgetError
from tenth.core.format import figure, megabytes, number, written_estimate
from tenth.core.records import Requirements
from tenth.devices import catalogue, energy, speed
from tenth.devices.profile import Device
from tenth.models import arch
from tenth.planning import forecast, memory
from tenth.planning.plan import Problem, decide
from tenth.planning.requirements import with_requirements
from tenth.quantization import default_sensitivity

PAGE = Path(__file__).parent.parent / "docs" / "devices.md"
CONTEXT, THREADS = 2048, 4
COMMON = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
QWEN: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
PHI: dict[str, Any] = {
    "model_type": "phi",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 51200,
    "hidden_act": "gelu_new",
    "partial_rotary_factor": 0.4,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}
MODELS = {"Llama-3-8B": LLAMA, "Qwen2.5-7B": QWEN, "Phi-2": PHI}
MADE_BY = "Made by `scripts/devices_table.py` from the device files and the planner; do not edit.\n"
ABOUT = f"""\
What `tenth plan --prefer speed` says on a bare `config.json`, context {CONTEXT:,}, on the CPU. A cell has the
bits per weight of the whole file, the predicted KL (nats per token, by another model's measurements),
decoding speed, joules per decoded token (whole device) and hours of battery at 10 tokens/s or, where that
cannot be kept up, at all that can; in brackets the range that the figure should be found in. Nothing here was
measured on these devices by us.
"""
PROFILES = """\
## What a profile says

(e): an estimate without a public source. Q4_0: its effective bandwidth on the CPU, measured there or by its
class.

| device | platform limit | memory GB/s | Q4_0 GB/s | decoding W | battery kJ | kept after 10 min |
|---|---|---|---|---|---|---|"""
SHARES = (0.1, 0.5)
WANTED = Requirements(prefer="speed")


def problem(config: dict[str, Any]) -> Problem:
    """The planner's question for a shape, before a device is named."""
    config, family = arch.load({**COMMON, **config})
    specs = family.specs(config)
    return Problem(
        family.shape(config),
        specs,
        default_sensitivity.sensitivities(specs),
        default_sensitivity.kv(),
        CONTEXT,
        memory.Constants(),
        threads=THREADS,
    )


def cell(question: Problem, device: Device, share: float) -> str:
    """What fits, how fast, how many hours; or the smallest that would fit."""
    budget = int(device.bytes * share)
    asked = with_requirements(question, device, WANTED)
    try:
        decision = decide(asked, budget)
    except BudgetError as error:
        return f"nothing fits: smallest is {megabytes(error.smallest['total'])} MB"
    linear = [spec for spec in question.specs if spec.linear]
    bits = 8 * decision.memory.weights / sum(spec.count for spec in linear)
    found = {
        each.name: written_estimate(each).brief
        for each in forecast.estimates(asked, decision, device, WANTED)
    }
    hours = f"{found['battery']} h" if "battery" in found else "mains"
    return (
        f"{bits:.2f} bits, predicted KL {figure(float(f'{decision.predicted_kl:.2g}'))};"
        f" {found['decode']} tokens/s; {found['joules']} J; {hours}"
    )


def page(known: Sequence[Device]) -> str:
    """The whole page."""
    questions = {name: problem(config) for name, config in MODELS.items()}
    parts = ["# Devices\n\n" + MADE_BY, ABOUT]
    for share in SHARES:
        parts.append(f"## {100 * share:.0f} % of the memory\n")
        parts.append("| device | budget | " + " | ".join(MODELS) + " |\n|---|---|" + "---|" * len(MODELS))
        for device in known:
            cells = [cell(question, device, share) for question in questions.values()]
            budget = f"{megabytes(device.bytes * share)} MB"
            parts.append(f"| {device.name} | {budget} | " + " | ".join(cells) + " |")
        parts.append("")
    parts.append(PROFILES)
    parts += [profile_row(device) for device in known]
    parts.append(founding())
    return "\n".join(parts)


def profile_row(device: Device) -> str:
    """One line of the table of profiles."""
    rates = speed.rates(device)
    limit, power, battery = device.memory.limit, device.power, device.battery
    kept = device.backends["cpu"].sustained

    def shown(text: str, estimated: bool) -> str:
        return text + (" (e)" if estimated else "")

    return (
        " | ".join(
            [
                f"| {device.name}",
                shown(f"{megabytes(limit.value)} MB", limit.estimated) if limit else "none",
                shown(f"{device.bandwidth.spec.value / 1e9:.1f}", device.bandwidth.spec.estimated),
                shown(f"{1e-9 / rates.decode['Q4_0']:.1f}", not rates.measured),
                shown(f"{power.decode.value:g}", power.decode.estimated) if power else "not known",
                shown(f"{battery.value / 1e3:.1f}", battery.estimated) if battery else "mains",
                shown(f"{kept.value:.0%}", kept.estimated) if kept else "not known",
            ]
        )
        + " |"
    )


def founding() -> str:
    """The sentence that the project began with, beside what phones were measured to take."""
    joules = energy.mobile_llm(7e9)
    hours = energy.hours_at(energy.CHARGE, joules, 10)
    phone, factor = energy.PER_BYTE["phone"]
    measured = 7e9 * phone
    q4 = energy.hours_at(energy.CHARGE, 7e9 * phone * 4.5 / 8, 10)
    minutes = energy.hours_at(energy.CHARGE, measured, 10)
    return f"""
## The founding sentence, and measured phones

MobileLLM's 0.1 J per token and billion parameters (8 bits) gives a model of 7 B parameters {joules:.2g} J per
token, and at 10 tokens/s a charge of 50 kJ lasts {hours:.2f} h: under two hours. That constant is DRAM
traffic, 100 pJ per byte. A whole phone (iPhone 17 Pro, twelve runs) was measured at 74 to 189 pJ, median
{phone * 1e12:.0f}: {measured:.2g} J per token at 8 bits (x/÷ {factor:g}), {measured / joules - 1:+.0%}, and
{minutes:.2f} h. But no phone here decodes 10 tokens/s of a 7 B model at 8 bits: it would read 70 GB/s, and
they reach 6 to 35 of their CPUs. At 4.5 bits per weight the same phone's figure gives {number(q4)} h.
"""


def main() -> None:
    """Write or check."""
    text = page(catalogue.all_devices(own=False)[:-1])
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/devices.md is stale: run python scripts/devices_table.py")


if __name__ == "__main__":
    main()
