"""The command line: finds the verbs (commands/), runs one, and says what went wrong in one line.

Heavy modules are imported inside the verbs, so that `tenth --help` answers at once. With --json, stdout
carries one JSON object and nothing else; an error is {"error": {"kind", "message", ...}}.
Exit status: 0 done, 2 an error that is explained in one line, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer

from tenth import __version__
from tenth.cli import commands
from tenth.core.errors import BudgetError, InputError, TenthError

STOPPED = 130  # exit status after Ctrl-C
USAGE: type[Exception] = typer.BadParameter.__mro__[1]  # click's UsageError, which typer does not export

app = typer.Typer(
    help="Fit a language model into a share of a device's memory, and prove that it fits.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Options before the command."""
    if version:
        print(__version__)
        raise typer.Exit


for _name, _verb in commands.known().items():
    app.command(_name)(_verb)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status; no traceback for a person's mistake."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a model's name must not break a narrow terminal
    command = typer.main.get_command(app)
    sys.exit(
        guarded(lambda: command.main(words, prog_name="tenth", standalone_mode=False), "--json" in words)
    )


def guarded(run: Callable[[], Any], as_json: bool) -> int:
    """The exit status of `run`; a person's mistake becomes one line, any other exception passes through."""
    try:
        status = run()
        if status == STOPPED:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
    except TenthError as error:
        _tell(error, as_json)
        return 2
    except USAGE as error:
        context = getattr(error, "ctx", None)
        hint = f" (see: {context.command_path} --help)" if context else ""
        message = str(getattr(error, "format_message", error.__str__)())
        if context and type(error).__name__ == "NoArgsIsHelpError":
            print(message, file=sys.stderr)
        else:
            _tell(InputError(f"{message}{hint}"), as_json)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        # A terminal has just shown ^C on the line of the progress bar.
        start = "\n" if sys.stderr.isatty() else ""
        print(f"{start}stopped; run the same command again to resume", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        sys.stderr.close()  # the reader left; nothing more to say
        return 0
    return status if isinstance(status, int) else 0


def _tell(error: TenthError, as_json: bool) -> None:
    """One line on stderr, the same as JSON on stdout, and for a budget the smallest that would do."""
    line = " ".join(str(error).split())
    print(f"tenth: error: {''.join(c for c in line if c.isprintable())}", file=sys.stderr)
    smallest = error.smallest if isinstance(error, BudgetError) else {}
    if smallest:
        from tenth.cli.console import ConsoleReporter

        ConsoleReporter().smallest(smallest)
    if as_json:
        body: dict[str, Any] = {"kind": type(error).__name__, "message": line}
        print(json.dumps({"error": body | ({"smallest": smallest} if smallest else {})}))
