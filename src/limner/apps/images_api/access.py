"""Who may ask: those with the API key; without one, programs of this machine only."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from limner.apps.images_api.errors import ApiError
from limner.apps.serving.access import is_own_page, means_us
from limner.errors import LimnerError
from limner.files.small_files import read_text

VARIABLE = "LIMNER_API_KEY"
MOST_KEY_BYTES = 4096
log = logging.getLogger(__name__)


def read_key(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The API key: of the file, else of the environment variable; None: there is none. Never of the
    command line, which every user of the machine can read.

    Raises:
        LimnerError: the file cannot be read, or what is there is no key.
    """
    if file is not None:
        try:
            if os.name != "nt" and file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
                log.warning(
                    "%s can be read by other users of this machine; run chmod 600 %s", file, file
                )
            key, where = read_text(file, MOST_KEY_BYTES).strip(), f"--api-key-file {file}"
        except OSError as error:
            raise LimnerError(
                f"--api-key-file {file} cannot be read ({error.strerror or error}); name a file "
                "that holds the key and nothing else"
            ) from None
    elif VARIABLE in environment:
        key, where = environment[VARIABLE].strip(), f"the environment variable {VARIABLE}"
    else:
        return None
    if not re.fullmatch("[!-~]{16,}", key):
        raise LimnerError(
            f"{where} holds no usable key: it must have at least 16 characters, letters, digits, "
            'and signs without spaces; make one with python -c "import secrets; '
            'print(secrets.token_urlsafe(32))"'
        )
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


class Access:
    """Args:
    key: the API key. None: none is asked for, and the Host header must name this machine, as a
        page of a stranger could otherwise ask by DNS rebinding.
    """

    def __init__(self, key: str | None) -> None:
        self.key = key

    def check_host(self, hosts: list[str]) -> None:
        """Raises ApiError."""
        if self.key is None and not means_us(hosts):
            raise ApiError(
                403,
                "invalid Host header: without an API key only requests to localhost are answered",
                code="invalid_host",
                retry=False,
            )

    def check_origin(self, origins: list[str], hosts: list[str]) -> None:
        """Of a form, which a page of a stranger could send without being asked for permission.
        Raises ApiError."""
        if self.key is None and origins and not is_own_page(origins[0], hosts[0]):
            raise ApiError(
                403,
                "without an API key, forms from pages of another origin are refused",
                code="invalid_origin",
                retry=False,
            )

    def check_key(self, authorization: str | None) -> None:
        """Raises ApiError."""
        if self.key is None:
            return
        kind, _, given = (authorization or "").strip().partition(" ")
        # As bytes, since `compare_digest` raises for text that is not ASCII.
        theirs, ours = given.strip().encode("utf-8", "replace"), self.key.encode()
        if kind.lower() != "bearer" or not secrets.compare_digest(theirs, ours):
            raise ApiError(
                401,
                "Incorrect API key provided."
                if authorization
                else "You didn't provide an API key: it belongs into the header Authorization, as "
                "'Bearer KEY'.",
                code="invalid_api_key" if authorization else None,
            )
