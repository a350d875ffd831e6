"""The one error that is meant for people: what is wrong, where, and what to do."""

from limner.redaction import redact_urls


class LimnerError(ValueError):
    """Bad input or an impossible request; the command line prints it without a traceback.

    Of URLs in it only scheme, host, and path are kept: it is shown on screens and in logs.
    """

    exit_code = 2
    """Of the command that it ends."""

    def __init__(self, *said: object) -> None:
        super().__init__(*(redact_urls(one) if isinstance(one, str) else one for one in said))
