"""`python -m tenth`: the same as `tenth`, where no script was installed."""

from tenth.cli import main

main()
