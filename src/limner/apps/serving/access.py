"""Access control: requests must carry the token from the printed URL.

Any user of the machine can connect to a server on its loopback interface. Therefore the URL
contains a token, as with Jupyter. The browser sends it once, and then as a cookie.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from urllib.parse import parse_qs

_OURS = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)


def means_us(hosts: list[str]) -> bool:
    """Whether there is exactly one Host header and it names this machine, which prevents DNS
    rebinding."""
    return len(hosts) == 1 and _OURS.fullmatch(hosts[0].strip()) is not None


def is_own_page(origin: str | None, host: str) -> bool:
    """Whether the Origin header, if any, is that of the page at `host`."""
    if origin is None:
        return True
    scheme, _, place = origin.partition("://")
    return scheme in ("http", "https") and place.lower() == host.strip().lower()


class Access:
    """The token of one server."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)
        # Cookies are shared between ports: with one name, servers would overwrite each other's.
        self.cookie_name = f"limner-{hashlib.sha256(self.token.encode()).hexdigest()[:12]}"

    @property
    def cookie(self) -> str:
        """The Set-Cookie header: inaccessible to scripts and not sent across sites."""
        return f"{self.cookie_name}={self.token}; Path=/; HttpOnly; SameSite=Strict"

    def is_granted(self, query: str, cookies: list[str], authorization: str | None) -> bool:
        """Whether `?token=`, a Cookie header, or `Authorization: Bearer` contains the token."""
        return any(map(self._is_it, self._given(query, cookies, authorization)))

    def _given(self, query: str, cookies: list[str], authorization: str | None) -> list[str]:
        given = self.in_query(query)
        for header in cookies:
            for cookie in header.split(";"):
                name, _, value = cookie.strip().partition("=")
                if name == self.cookie_name:
                    given.append(value)
        kind, _, value = (authorization or "").strip().partition(" ")
        if kind.lower() in ("bearer", "token"):
            given.append(value.strip())
        return given

    def in_query(self, query: str) -> list[str]:
        try:
            return parse_qs(query, max_num_fields=16).get("token", [])
        except ValueError:  # too many fields
            return []

    def _is_it(self, given: str) -> bool:
        # As bytes, since `compare_digest` raises for text that is not ASCII.
        return secrets.compare_digest(given.encode("utf-8", "replace"), self.token.encode())
