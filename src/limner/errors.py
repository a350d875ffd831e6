"""The one error that is meant for people: what is wrong, where, and what to do."""


class LimnerError(ValueError):
    """Bad input or an impossible request; the command line prints it without a traceback."""

    exit_code = 2
    """Of the command that it ends."""
