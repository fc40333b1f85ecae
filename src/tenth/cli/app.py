"""The command line: finds the verbs (commands/), runs one, and says what went wrong in one line.

Heavy modules are imported inside the verbs, so that `tenth --help` answers at once. With --json, stdout
carries one JSON object and nothing else; an error is {"error": {"kind", "message", ...}}.
Exit status: 0 done, 1 stdout was closed, 2 an error that is explained in one line, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from cyclopts import App, CycloptsError, Parameter
from cyclopts.help import DefaultFormatter, PanelSpec
from cyclopts.help.specs import DescriptionColumn, NameColumn
from rich.box import Box

from tenth import __version__
from tenth.cli import commands
from tenth.core.errors import BudgetError, InputError, TenthError

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
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a model's name must not break a narrow terminal

    def run() -> int:
        if not words:
            app.help_print([], console=app.error_console)
            return 2
        status = app(words)
        sys.stdout.flush()
        return status or 0

    sys.exit(guarded(run, "--json" in words))


def guarded(run: Callable[[], int], as_json: bool) -> int:
    """The exit status of `run`; a person's mistake becomes one line, any other exception passes through."""
    try:
        return run()
    except TenthError as error:
        _tell(error, as_json)
        return 2
    except CycloptsError as error:
        command = " ".join(("tenth", *(error.command_chain or ())))
        _tell(InputError(f"{error} (see: {command} --help)"), as_json)
        return 2
    except KeyboardInterrupt:
        # A terminal has just shown ^C on the line of the progress bar.
        start = "\n" if sys.stderr.isatty() else ""
        print(f"{start}stopped; run the same command again to resume", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader left; what is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # of a path: too long, in a loop of links, not ours to read
        if error.errno not in UNUSABLE or error.filename is None:
            raise
        _tell(InputError(f"cannot use {str(error.filename)!r:.200}: {error.strerror}; give another"), as_json)
        return 2


def _tell(error: TenthError, as_json: bool) -> None:
    """One line on stderr, the same as JSON on stdout, and for a budget the smallest that would do."""
    line = " ".join(str(error).split())
    print(f"tenth: error: {''.join(c for c in line if c.isprintable())}", file=sys.stderr)
    smallest = error.smallest if isinstance(error, BudgetError) else {}
    if smallest:
        from tenth.cli.console import ConsoleReporter
        from tenth.cli.screens import show_memory

        show_memory(ConsoleReporter(), "The smallest that would do, part by part:", smallest)
    if as_json:
        body: dict[str, object] = {"kind": type(error).__name__, "message": line}
        print(json.dumps({"error": body | ({"smallest": smallest} if smallest else {})}))
