"""The one error that is meant for people: what is wrong, where, and what to do."""

from limner.redaction import redact_urls


class LimnerError(ValueError):
    """Invalid input or an impossible request; the command line prints it without a traceback.

    URLs in the message are reduced to scheme, host, and path, because it appears in logs.
    """

    exit_code = 2
    """Of the command that it ends."""

    def __init__(self, *said: object) -> None:
        super().__init__(*(redact_urls(one) if isinstance(one, str) else one for one in said))
