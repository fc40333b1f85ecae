"""The program's first lines: `tenth`, and `python -m tenth` where no script was installed.

Nothing is imported here that Python has not loaded by itself, so that the current folder is off the import
path, and Ctrl-C is understood, before anything else is looked for.
"""

import _signal  # type: ignore[import-not-found]  # a part of the interpreter, without stubs
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def leave_folder() -> None:
    """Take the current folder off the import path, unless Python or this package lies there.

    `python -m tenth` puts it there, and so does an empty entry in PYTHONPATH.
    """
    own = os.path.realpath(os.path.join(os.path.dirname(__file__), os.pardir))  # noqa: PTH118, PTH120
    try:
        here = os.path.realpath(os.getcwd())  # noqa: PTH109
    except OSError:  # the folder is gone
        here = ""
    if here != own and not here.startswith((sys.prefix + os.sep, sys.base_prefix + os.sep)):
        sys.path[:] = [entry for entry in sys.path if entry and os.path.realpath(entry) != here]


def open_streams() -> None:
    """Put nothing in the place of streams that are closed: the next file to be opened would take it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def stop(*_: object) -> "NoReturn":
    """End at once: nothing was begun yet, or all is done."""
    os._exit(130)


def main() -> "NoReturn":
    """Run the command line; Ctrl-C while it loads and while it ends has status 130, as in between."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # else it is ignored
        _signal.signal(_signal.SIGINT, stop)
    leave_folder()
    open_streams()
    from tenth.cli import app

    app.main()


if __name__ == "__main__":
    main()
