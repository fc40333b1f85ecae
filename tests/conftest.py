"""Makes the helpers beside it importable from every test folder (pytest puts this folder on the path)."""

import signal

# A job started in the background ignores Ctrl-C, and so would every command that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
