"""Makes the helpers beside it, and what one test file lends another, importable from every test folder."""

import signal
import sys
from pathlib import Path

sys.path.extend(str(folder) for folder in Path(__file__).parent.iterdir() if folder.is_dir())

# A job started in the background ignores Ctrl-C, and so would every command that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
