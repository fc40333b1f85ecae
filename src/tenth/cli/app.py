"""The command line: finds the verbs (commands/), runs one, and says what went wrong in one line.

Heavy modules are imported inside the verbs, so that `tenth --help` answers at once. With --json, stdout
carries one JSON object and nothing else; an error is {"error": {"kind", "message", ...}}.
Exit status: 0 done, 1 stdout was closed by its reader, 2 an error that is explained in one line, 130 stopped
by Ctrl-C (143 by SIGTERM, 129 by its terminal).
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from cyclopts import App, CycloptsError, Parameter
from cyclopts.help import DefaultFormatter, PanelSpec
from cyclopts.help.specs import DescriptionColumn, NameColumn
from rich.box import Box

from tenth import __version__
from tenth.cli import commands
from tenth.cli.process import Interrupts, forget_stdout, plain_streams
from tenth.core.errors import BudgetError, InputError, OutputError, TenthError
from tenth.core.progress import one_line

_RESUMED = ("fit", "judge")  # what is done is kept
SECTION = Box(" ── \n" + "    \n" * 7)  # a rule with the title, and nothing around the rest

UNUSABLE = {errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR}  # paths

app = App(
    name="tenth",
    help="Fit a language model into a share of a device's memory, and prove that it fits.",
    group_parameters="Options",
    help_flags=("--help",),
    help_format="plaintext",
    help_formatter=DefaultFormatter(
        panel_spec=PanelSpec(box=SECTION), column_specs=(NameColumn.copy(no_wrap=True), DescriptionColumn)
    ),
    version=__version__,
    version_format="plaintext",
    default_parameter=Parameter(negative_iterable=(), json_dict=False, json_list=False),
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)

for _place, (_name, _verb) in enumerate(commands.known().items()):
    app.command(_verb, name=_name, sort_key=_place)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status; no traceback for a person's mistake."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> int:
        if not words:
            app.help_print([], console=app.error_console)
            return 2
        status = app(words)
        sys.stdout.flush()
        return status or 0

    with plain_streams():
        status = guarded(run, words)
        forget_stdout()
    sys.exit(status)


def guarded(run: Callable[[], int], words: Sequence[str]) -> int:
    """The exit status of `run`; a person's mistake becomes one line, any other exception a traceback."""
    interrupts = Interrupts()
    try:
        with interrupts.heard():
            return run()
    except BaseException as error:
        if interrupts.signal or isinstance(error, KeyboardInterrupt):
            _stopped(words)
            return interrupts.status
        return _failed(error, words)


def _stopped(words: Sequence[str]) -> None:
    """Say that it was stopped; a terminal has just shown ^C on the line of the progress bar."""
    resume = "; run the same command again to resume" if words and words[0] in _RESUMED else ""
    with suppress(OSError):
        print(("\n" if sys.stderr.isatty() else "") + f"stopped{resume}", file=sys.stderr)


def _failed(error: BaseException, words: Sequence[str]) -> int:
    """The exit status of an error, which is told."""
    as_json = "--json" in words
    with suppress(OSError):  # where stderr, too, takes nothing more
        if isinstance(error, TenthError):
            _tell(error, as_json)
        elif isinstance(error, CycloptsError):
            command = " ".join(("tenth", *(error.command_chain or ())))
            _tell(InputError(f"{error} (see: {command} --help)"), as_json)
        elif isinstance(error, BrokenPipeError):  # the reader left
            return 1
        elif isinstance(error, OSError):
            _tell(_trouble(error), as_json)
        elif isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else 1
        else:
            traceback.print_exception(error)
            return 1
    return 2


def _trouble(error: OSError) -> TenthError:
    """What is told of a path that cannot be used, a file or program that is gone, a stdout that is full."""
    why = error.strerror or str(error)
    if error.filename is not None:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
        if error.errno in UNUSABLE:
            return InputError(f"cannot use {name!r:.200}: {why}; give another")
        return OutputError(f"cannot open, run or write {name}: {why}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(f"cannot write to stdout: {why}")
    return OutputError(f"the system refused: {why}")


def _tell(error: TenthError, as_json: bool) -> None:
    """One line on stderr, the same as JSON on stdout, and for a budget the smallest that would do."""
    line = " ".join(str(error).split())
    print(f"tenth: error: {one_line(line)}", file=sys.stderr)
    smallest = error.smallest if isinstance(error, BudgetError) else {}
    if smallest:
        from tenth.cli.console import ConsoleReporter
        from tenth.cli.screens import show_memory

        show_memory(ConsoleReporter(), "The smallest that would do, part by part:", smallest)
    if as_json:
        body: dict[str, object] = {"kind": type(error).__name__, "message": line}
        print(json.dumps({"error": body | ({"smallest": smallest} if smallest else {})}))
