"""Makes the helpers beside it, and what one test file lends another, importable from every test folder."""

import signal
import sys
from pathlib import Path

import pytest

sys.path.extend(str(folder) for folder in Path(__file__).parent.iterdir() if folder.is_dir())

# A job started in the background ignores Ctrl-C, and so would every command that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests come first, so that no process is left alone with one at the end."""
    long = ("pipeline", "leaderboard", "evaluation", "measurement", "cli")
    rank = {room: number for number, room in enumerate(long)}
    items.sort(key=lambda item: rank.get(item.path.parent.name, len(long)))
