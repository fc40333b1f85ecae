"""The command line: one file a verb in ``commands/``, and what a person sees of a running one."""
