"""Who may ask: whoever has the address that was printed, for it holds a secret.

Everybody who has an account on a machine can connect to what listens on its loopback. So the
address has a token, as Jupyter's has. A browser gives it once, and from then on as a cookie.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from urllib.parse import parse_qs

_OURS = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)


def means_us(hosts: list[str]) -> bool:
    """Whether the Host headers of a request, one of them, name this machine. A name of the web that
    was pointed here (DNS rebinding) does not."""
    return len(hosts) == 1 and _OURS.fullmatch(hosts[0].strip()) is not None


def is_own_page(origin: str | None, host: str) -> bool:
    """Whether no other page than the one at `host` asks, by the Origin header; none has none."""
    if origin is None:
        return True
    scheme, _, place = origin.partition("://")
    return scheme in ("http", "https") and place.lower() == host.strip().lower()


class Access:
    """The secret of one server."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)
        # Cookies do not tell ports apart: two servers would take each other's by one name.
        self.cookie_name = f"limner-{hashlib.sha256(self.token.encode()).hexdigest()[:12]}"

    @property
    def cookie(self) -> str:
        """For Set-Cookie: out of reach of scripts and of other sites' requests."""
        return f"{self.cookie_name}={self.token}; Path=/; HttpOnly; SameSite=Strict"

    def is_granted(self, query: str, cookies: list[str], authorization: str | None) -> bool:
        """Whether `?token=`, a Cookie header, or `Authorization: Bearer` holds the secret."""
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
        except ValueError:  # more fields than that
            return []

    def _is_it(self, given: str) -> bool:
        # As bytes: text that is not ASCII is not compared in constant time, but raises.
        return secrets.compare_digest(given.encode("utf-8", "replace"), self.token.encode())
