"""What a person sees on stderr: messages, progress bars with the time left, tables, errors.

stdout is left to the answer itself, so that `--json` and pipes get nothing else. On a terminal the bars move;
into a file or pipe a step prints a line now and then instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tenth.core.format import duration, figure, megabytes, written, written_estimate
from tenth.core.metrics import MEMORY, METRICS, metric
from tenth.core.records import Bench, Forecast, Measurement, Plan, Reading, Scorecard, reading_of

if TYPE_CHECKING:
    from tenth.core.statistics import Interval
    from tenth.devices.profile import Device
    from tenth.evaluation.results import Evaluation

QUIET_SECONDS = 10.0  # between two lines of one step when stderr is not a terminal
COMPARED = ("kl", "top1", "perplexity")  # columns of the table after a fit


def clean(text: str) -> str:
    """One line without control characters, for names that came from outside."""
    return "".join(c if c.isprintable() else " " for c in text)


class _Amount(ProgressColumn):
    """Done and total in the step's unit; bytes become MB."""

    def render(self, task: Task) -> Text:
        unit = str(task.fields["unit"])
        return Text(_amount(task.completed, task.total or 0.0, unit), style="progress.download")


class ConsoleReporter:
    """A flow.Reporter that writes to stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._progress: Progress | None = None

    def say(self, message: str) -> None:
        """Print one line."""
        self.console.print(Text(clean(message)))

    @contextmanager
    def step(self, name: str, total: float, unit: str = "") -> Iterator[Callable[[float], None]]:
        """A bar for the duration of the block; call the yielded function with the amount done so far.

        Steps may nest. unit "B" shows megabytes; other units are printed after the numbers.
        """
        if not self.console.is_terminal:
            yield from self._plain_step(name, total, unit)
            return
        outermost = self._progress is None
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=28),
                _Amount(),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=self.console,
            )
            self._progress.start()
        progress = self._progress
        task = progress.add_task(clean(name), total=total, unit=unit)
        try:
            yield lambda done: progress.update(task, completed=done)
        finally:
            if outermost:
                progress.stop()
                self._progress = None

    def _plain_step(self, name: str, total: float, unit: str) -> Iterator[Callable[[float], None]]:
        started = spoken = time.monotonic()

        def advance_to(done: float) -> None:
            nonlocal spoken
            now = time.monotonic()
            if now - spoken < QUIET_SECONDS or not 0 < done < total:
                return
            spoken = now
            left = duration((now - started) * (total - done) / done)
            self.say(f"{name}: {_amount(done, total, unit)}, {left} left")

        self.say(name)
        yield advance_to
        self.say(f"{name}: done in {duration(time.monotonic() - started)}")

    def parts(self, title: str, parts: Mapping[str, int], rows: Iterable[tuple[str, int]] = ()) -> None:
        """A small table of bytes by part, with further rows (a total, a budget) in bold below."""
        self.say(title)
        table = Table(show_header=False, box=None, padding=(0, 2))
        for name, size in parts.items():
            title = MEMORY.get(name, clean(name))
            table.add_row(title, Text(f"{megabytes(size)} MB", justify="right"))
        for name, size in rows:
            size_text = Text(f"{megabytes(size)} MB", justify="right", style="bold")
            table.add_row(Text(name, style="bold"), size_text)
        self.console.print(table)

    def smallest(self, parts: Mapping[str, int]) -> None:
        """What the smallest possible plan would take."""
        shown = {name: size for name, size in parts.items() if name != "total"}
        total = parts.get("total", sum(shown.values()))
        self.parts("The smallest that would do, part by part:", shown, [("total", total)])

    def plan(self, plan: Plan) -> None:
        """The plan in a few lines: bits, types, runtime settings and memory by part."""
        runtime = plan.runtime
        self.say(
            f"{plan.model}: {plan.bits_per_weight:.2f} bits per weight,"
            f" file {megabytes(plan.file_bytes)} MB,"
            f" predicted KL {figure(plan.predicted_kl)} nats per token ({plan.sensitivity_source})"
        )
        counts: dict[str, int] = {}
        for kind in plan.types.values():
            counts[kind] = counts.get(kind, 0) + 1
        self.say("types: " + ", ".join(f"{kind} x{count}" for kind, count in sorted(counts.items())))
        self.say(
            f"runtime: context {runtime.n_ctx}, n_ubatch {runtime.n_ubatch}, "
            f"KV {runtime.type_k}/{runtime.type_v}, "
            f"flash attention {'on' if runtime.flash_attention else 'off'}, "
            f"repacking {'on' if runtime.repack else 'off'}"
        )
        if plan.sensitivity_source == "default":
            self.say("These sensitivities are another model's; tenth fit measures those of this one.")
        rows = [("total, predicted", plan.memory.total), ("budget", plan.budget.memory)]
        self.parts("memory:", plan.memory.model_dump(), rows)
        if plan.forecast:
            self.forecast(plan.forecast)

    def forecast(self, forecast: Forecast) -> None:
        """What the plan will do on its device, with the range of every figure."""
        self.say(f"on {forecast.device}, not measured there (value, range):")
        table = Table(show_header=False, box=None, padding=(0, 2))
        for each in forecast.estimates:
            value, between, unit = written_estimate(each)
            basis = clean(f"{each.kind}: {each.conditions}")
            table.add_row(metric(each.name).title, Text(value, justify="right"), between, unit, basis)
        self.console.print(table)
        self.say(f"memory rule: {forecast.platform}")
        self.say(f"what binds: {' and '.join(forecast.binding) or 'nothing; more would not make it better'}")

    @staticmethod
    def devices(found: Iterable[Device], part: float) -> None:
        """The list of devices on stdout."""
        head = ("name", "device", "memory", f"{100 * part:.4g} % of it", "bandwidth", "decoding", "battery")
        table: list[Sequence[str]] = [head]
        for device in found:
            watts = f"{device.power.decode.value:.3g} W" if device.power else "?"
            charge = f"{device.battery.value / 1e3:.0f} kJ" if device.battery else "mains"
            memory, share = f"{device.bytes / 1e9:.1f} GB", f"{megabytes(int(device.bytes * part))} MB"
            speed = f"{device.bandwidth.spec.value / 1e9:.0f} GB/s"
            mark = ["(memory estimated)"] if device.estimated else []
            table.append([device.name, device.title, memory, share, speed, watts, charge, *mark])
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        for row in table:
            cells = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
            cells += [cell.rjust(width) for cell, width in zip(row[2:7], widths[2:], strict=True)]
            print("  ".join([*cells, *row[7:]]))

    def summary(self, card: Scorecard, verdict: str, files: Iterable[str]) -> None:
        """After a fit: the verdict, memory against the budget, quality against the baselines, the files."""
        proof = card.proof
        self.console.print(Text(clean(verdict), style="bold"))
        memory = Table(box=None, show_header=False, padding=(0, 2))
        for name, size in (("budget", proof.budget), ("peak, predicted", proof.predicted)):
            memory.add_row(name, Text(f"{megabytes(size)} MB", justify="right"), "")
        off = f"{proof.error:+.1%} against the prediction; {clean(proof.limit)}"
        peak = Text(f"{megabytes(proof.peak)} MB", justify="right")
        memory.add_row("peak, measured", peak, Text(off))
        self.console.print(memory)
        table = Table(padding=(0, 1))
        for heading in ("", "file, MB", "fits", *map(_column, COMPARED)):
            table.add_column(heading, justify="left" if heading in ("", "fits") else "right")
        table.add_row("original", "", "", *_compared(card.original))
        for candidate in card.candidates:
            fits = "yes" if candidate.fits else "no"
            row = (megabytes(candidate.file_bytes), fits, *_compared(candidate.readings))
            table.add_row(Text(clean(candidate.name)), *row)
        self.console.print(table)
        for file in files:
            self.say(file)

    def measurement(self, measured: Measurement | Bench) -> None:
        """After a measurement: speeds by depth, then the other readings, then what makes them count."""
        table = Table(padding=(0, 1))
        for heading in ("depth", "decode, tokens/s", "TPOT, ms", "prefill, tokens/s"):
            table.add_column(heading, justify="right")
        for depth in measured.depths:
            milliseconds = figure(1000 / depth.decode.value)
            prefill = written(depth.prefill).with_spread if depth.prefill else ""
            table.add_row(f"{depth.depth:,}", written(depth.decode).with_spread, milliseconds, prefill)
        self.console.print(table)
        rest = Table(box=None, show_header=False, padding=(0, 2))
        for reading in measured.readings:
            value, unit, _ = written(reading)
            mark = "" if reading.kind == "measured" else f" ({reading.kind})"
            rest.add_row(metric(reading.name).title, Text(value, justify="right"), f"{unit}{mark}")
        self.console.print(rest)
        checks: list[str] = []
        if isinstance(measured, Measurement):
            machine, checks = measured.machine, measured.checks
            self.say(f"{machine.processor}, {machine.threads} threads, load {machine.load_before}")
        else:
            self.say(f"{measured.device}, {measured.runtime}")
        for line in (f"energy: {measured.energy}", *checks, *measured.notes):
            self.say(line)

    def evaluation(self, found: Evaluation) -> None:
        """Scores of tasks, and the differences from the original."""
        table = Table(padding=(0, 1))
        for heading in ("task", "metric", "%, and 95 % interval", "items", "chance", "s/item"):
            table.add_column(heading, justify="left" if heading in ("task", "metric") else "right")
        for task in found.tasks:
            for score in task.scores:
                seconds_per_token = f"{task.seconds / task.items:.3g}"
                row = (
                    task.title,
                    score.metric,
                    _percent(score.value),
                    f"{task.items:,} of {task.available:,}",
                )
                table.add_row(*row, f"{task.chance:.1%}", seconds_per_token)
        self.console.print(table)
        if found.comparisons:
            table = Table(padding=(0, 1))
            for heading in ("task", "difference, points", "lost", "won", "p", ""):
                table.add_column(heading, justify="left" if heading in ("task", "") else "right")
            for one in found.comparisons:
                p = "" if one.p is None else f"{one.p:.2g}"
                verdict = (
                    "not informative: the original is not above chance" if one.kept is None else one.verdict
                )
                table.add_row(one.task, _percent(one.difference), str(one.lost), str(one.won), p, verdict)
            self.console.print(table)
        for task in found.tasks:
            if not task.informative and not found.comparisons:
                self.say(f"{task.title}: not above chance ({task.chance:.1%}); says nothing about the model")
        self.say(f"{found.harness}, {found.runtime}")


def _percent(value: Interval) -> str:
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _compared(readings: Sequence[Reading]) -> list[str]:
    """The cells of `COMPARED`."""
    found = [reading_of(readings, name) for name in COMPARED]
    return [written(reading).with_spread if reading else "" for reading in found]


def _column(name: str) -> str:
    """A heading with its unit: "KL, nats/token"."""
    return ", ".join(filter(None, (METRICS[name].heading, METRICS[name].shown_unit)))


def _amount(done: float, total: float, unit: str) -> str:
    if unit == "B":
        return f"{megabytes(done)} of {megabytes(total)} MB"
    if total <= 1 or not float(total).is_integer():
        return f"{done / total:.0%}" if total else ""
    return f"{int(done):,} of {int(total):,} {unit}".rstrip()
