"""How the command line speaks to a person on stderr: lines, tables, and progress bars with the time left.

stdout is left to the answer itself, so that `--json` and pipes get nothing else. On a terminal the bars move;
into a file or pipe a step prints a line now and then instead. No string is read as markup, and what could
steer a terminal is written out.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tenth.core.format import duration, megabytes
from tenth.core.progress import one_line, visible

QUIET_SECONDS = 10.0  # between two lines of one step when stderr is not a terminal


def print_line(text: object) -> None:
    """Print a line on stdout at once; what came from outside cannot steer the terminal."""
    print(one_line(str(text)), flush=True)


def print_lines(lines: Iterable[object]) -> None:
    """As `print_line`, for each."""
    for text in lines:
        print_line(text)


def print_text(text: str) -> None:
    """Print a text of several lines, as it is for the rest, on stdout at once."""
    print(visible(text, "\n"), end="", flush=True)


def print_json(value: BaseModel | Mapping[str, object]) -> None:
    """Print an object of JSON on stdout at once: in ASCII, with null for what is no number."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    print(json.dumps(_finite(plain)), flush=True)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


class _Amount(ProgressColumn):
    """Done and total in the step's unit; bytes become MB."""

    def render(self, task: Task) -> Text:
        unit = str(task.fields["unit"])
        return Text(_amount(task.completed, task.total or 0.0, unit), style="progress.download")


class ConsoleReporter:
    """A core.progress.Reporter that writes to stderr, or to another console."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._progress: Progress | None = None

    def say(self, message: str, style: str = "") -> None:
        """Print one line; style: "bold", say."""
        self.console.print(Text(one_line(message), style=style), soft_wrap=True)

    def table(
        self, rows: Sequence[Sequence[str]], headings: Sequence[str] = (), left: Collection[int] = (0,)
    ) -> None:
        """Print rows, with lines if there are headings; columns are flush right unless they are in `left`."""
        table = Table(padding=(0, 1)) if headings else Table(box=None, show_header=False, padding=(0, 2))
        for column in range(max(map(len, (headings, *rows)))):
            heading = headings[column] if headings else ""
            table.add_column(Text(heading), justify="left" if column in left else "right")
        for row in rows:
            table.add_row(*(Text(one_line(cell)) for cell in row))
        self.console.print(table)

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
                redirect_stdout=False,  # what others write stays plain (process.py)
                redirect_stderr=False,
            )
            self._progress.start()
        progress = self._progress
        task = progress.add_task(one_line(name), total=total, unit=one_line(unit))
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


def _amount(done: float, total: float, unit: str) -> str:
    if unit == "B":
        return f"{megabytes(done)} of {megabytes(total)} MB"
    if total <= 1 or not float(total).is_integer():
        return f"{done / total:.0%}" if total else ""
    return f"{int(done):,} of {int(total):,} {unit}".rstrip()
