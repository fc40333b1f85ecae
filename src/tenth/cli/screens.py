"""What the verbs print for a person: a plan, a fit, a measurement, scores of tasks, the list of devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tenth.cli.console import ConsoleReporter, print_line
from tenth.core.format import figure, megabytes, written, written_estimate
from tenth.core.metrics import MEMORY, METRICS, metric
from tenth.core.records import Bench, Depth, Forecast, Measurement, Plan, Reading, Scorecard, reading_of

if TYPE_CHECKING:
    from tenth.core.scores import ScoreInterval
    from tenth.devices.profile import Device
    from tenth.evaluation.results import Evaluation

COMPARED = ("kl", "top1", "perplexity")  # columns of the table after a fit
COMPARED_OTHERWISE = ("bits_per_byte",)  # where tokens were removed: nothing else compares with the original


def show_plan(reporter: ConsoleReporter, plan: Plan) -> None:
    """The plan in a few lines: bits, types, runtime settings and memory by part."""
    runtime, types = plan.runtime, Counter(plan.types.values())
    reporter.say(
        f"{plan.model}: {plan.bits_per_weight:.2f} bits per weight, file {megabytes(plan.file_bytes)} MB,"
        f" predicted KL {figure(plan.predicted_kl)} nats per token"
    )
    reporter.say("storage types: " + ", ".join(f"{kind} x{count}" for kind, count in sorted(types.items())))
    reporter.say(
        f"runtime: context {runtime.n_ctx}, n_ubatch {runtime.n_ubatch},"
        f" KV cache {runtime.type_k}/{runtime.type_v},"
        f" flash attention {'on' if runtime.flash_attention else 'off'},"
        f" repacking {'on' if runtime.repack else 'off'}"
    )
    if plan.sensitivity_source == "default":
        reporter.say(
            "The predicted KL is a first guess, from the sensitivities of another model;"
            " tenth fit measures those of this one."
        )
    totals = {"total, predicted": plan.memory.total, "budget": plan.budget.memory}
    show_memory(reporter, "memory:", plan.memory.model_dump() | totals)
    if plan.forecast:
        show_forecast(reporter, plan.forecast)


def show_memory(reporter: ConsoleReporter, title: str, sizes: Mapping[str, int]) -> None:
    """A table of bytes: the parts of what llama.cpp holds, and what they are compared with."""
    reporter.say(title)
    reporter.table([(MEMORY.get(name, name), f"{megabytes(size)} MB") for name, size in sizes.items()])


def show_forecast(reporter: ConsoleReporter, forecast: Forecast) -> None:
    """What the plan will do on its device, with the range of every figure."""
    reporter.say(f"on {forecast.device}, not measured there (value, range):")
    rows = []
    for estimate in forecast.estimates:
        value, between, unit = written_estimate(estimate)
        basis = f"{estimate.kind}: {estimate.conditions}"
        rows.append((metric(estimate.name).title, value, between, unit, basis))
    reporter.table(rows, left=(0, 2, 3, 4))
    reporter.say(f"memory rule: {forecast.platform}")
    reporter.say(
        f"what binds: {' and '.join(forecast.binding) or 'nothing: more memory would not make it better'}"
    )


def show_fit(reporter: ConsoleReporter, card: Scorecard, verdict: str, files: Iterable[str]) -> None:
    """After a fit: the verdict, memory against the budget, quality against the baselines, the files."""
    proof = card.proof
    reporter.say(verdict, style="bold")
    error = f"{proof.error:+.1%} against the prediction; {proof.limit}"
    sizes = (
        ("budget", proof.budget, ""),
        ("peak, predicted", proof.predicted, ""),
        ("peak, measured", proof.peak, error),
    )
    reporter.table([(name, f"{megabytes(size)} MB", note) for name, size, note in sizes], left=(0, 2))
    compared = COMPARED_OTHERWISE if card.vocabulary else COMPARED
    rows = [("original", "", "", *_compared(card.original, compared))]
    for candidate in card.candidates:
        fits = "yes" if candidate.fits else "no"
        size = megabytes(candidate.file_bytes)
        rows.append((candidate.name, size, fits, *_compared(candidate.readings, compared)))
    reporter.table(rows, ("", "file, MB", "fits", *map(_column, compared)), left=(0, 2))
    for file in files:
        reporter.say(file)


def show_measurement(reporter: ConsoleReporter, measured: Measurement | Bench) -> None:
    """After a measurement: speeds by depth, then the other readings, then what makes them count."""
    headings = ("depth", "decode, tokens/s", "TPOT, ms", "prefill, tokens/s")
    reporter.table([_speeds(depth) for depth in measured.depths], headings, left=())
    rows = []
    for reading in measured.readings:
        value, unit, _ = written(reading)
        mark = "" if reading.kind == "measured" else f" ({reading.kind})"
        rows.append((metric(reading.name).title, value, f"{unit}{mark}"))
    reporter.table(rows, left=(0, 2))
    checks: list[str] = []
    if isinstance(measured, Measurement):
        machine, checks = measured.machine, measured.checks
        reporter.say(f"{machine.processor}, {machine.threads} threads, load {machine.load_before}")
    else:
        reporter.say(f"{measured.device}, {measured.runtime}")
    for line in (f"energy: {measured.energy}", *checks, *measured.notes):
        reporter.say(line)


def show_evaluation(reporter: ConsoleReporter, evaluation: Evaluation) -> None:
    """Scores of tasks, and the differences from the original."""
    rows = [
        (
            task.title,
            score.metric,
            _percent(score.value),
            f"{task.items:,} of {task.available:,}",
            f"{task.chance:.1%}",
            f"{task.seconds / task.items:.3g}",
        )
        for task in evaluation.tasks
        for score in task.scores
    ]
    headings = ("task", "metric", "%, and 95 % interval", "items", "chance", "s/item")
    reporter.table(rows, headings, left=(0, 1))
    if evaluation.comparisons:
        rows = []
        for each in evaluation.comparisons:
            p = "" if each.p is None else f"{each.p:.2g}"
            informative = each.kept is not None
            verdict = each.verdict if informative else "not informative: the original is not above chance"
            rows.append((each.task, _percent(each.difference), str(each.lost), str(each.won), p, verdict))
        headings = ("task", "difference, points", "lost", "won", "p", "")
        reporter.table(rows, headings, left=(0, 5))
    else:
        for task in evaluation.tasks:
            if not task.informative:
                chance = f"not above chance ({task.chance:.1%})"
                reporter.say(f"{task.title}: {chance}; says nothing about the model")
    reporter.say(f"{evaluation.harness}, {evaluation.runtime}")


def print_devices(devices: Iterable[Device], share: float) -> None:
    """Print the list of devices to stdout, one a line however narrow the terminal is."""
    part = f"{100 * share:.4g} % of it"
    rows = [("name", "device", "memory", part, "bandwidth", "decoding", "battery", "")]
    for device in devices:
        memory, part = f"{device.bytes / 1e9:.1f} GB", f"{megabytes(int(device.bytes * share))} MB"
        bandwidth = f"{device.bandwidth.spec.value / 1e9:.0f} GB/s"
        watts = f"{device.power.decode.value:.3g} W" if device.power else "?"
        charge = f"{device.battery.value / 1e3:.0f} kJ" if device.battery else "mains"
        mark = "(memory estimated)" if device.estimated else ""
        rows.append((device.name, device.title, memory, part, bandwidth, watts, charge, mark))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = [
            cell.ljust(width) if column in (0, 1, 7) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print_line("  ".join(padded).rstrip())


def _speeds(depth: Depth) -> tuple[str, ...]:
    """A row of the table of speeds: tokens of context, decoding, time per token, reading."""
    prefill = written(depth.prefill).with_spread if depth.prefill else ""
    decode, milliseconds = written(depth.decode).with_spread, figure(1000 / depth.decode.value)
    return f"{depth.depth:,}", decode, milliseconds, prefill


def _percent(value: ScoreInterval) -> str:
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _compared(readings: Sequence[Reading], names: Sequence[str]) -> list[str]:
    """The cells of readings of those names."""
    found = [reading_of(readings, name) for name in names]
    return [written(reading).with_spread if reading else "" for reading in found]


def _column(name: str) -> str:
    """A heading with its unit: "KL, nats/token"."""
    return ", ".join(filter(None, (METRICS[name].heading, METRICS[name].shown_unit)))
