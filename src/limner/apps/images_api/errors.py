"""Errors in the shape of the API: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

RETRY_WITHIN = 60
"""Seconds; the official client does not wait any longer for a `Retry-After`."""


class ApiError(Exception):
    """A refused request.

    Args:
        param: the field of the request that is at fault.
        code: what programs tell errors apart by.
        retry_after: seconds after which to try again.
        retry: False: the official client, which repeats requests that failed with 408, 429, or 5xx,
            is told not to.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        retry: bool = True,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers: dict[str, str] = {}
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, min(RETRY_WITHIN, round(retry_after))))
        if not retry:
            self.headers["x-should-retry"] = "false"
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    @property
    def kind(self) -> str:
        """The `type` of the error."""
        if self.status >= 500:
            return "server_error"
        return "requests" if self.status == 429 else "invalid_request_error"

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def stopping() -> ApiError:
    return ApiError(
        503, "the server is stopping; try again later", code="server_stopping", retry_after=10
    )
