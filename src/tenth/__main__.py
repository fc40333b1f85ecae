"""`python -m tenth`: the same as `tenth`, where no script was installed."""

from tenth.cli.app import main

main()
