"""Strip text chunks from PNG files, because Pillow rejects long ones.

Programs that draw keep whole workflows in a PNG, megabytes of JSON. As compressed text may unpack
to any size, Pillow stops at 1 MB of it, and with it at a good picture.
"""

from __future__ import annotations

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SHORT = 2**16
"""Bytes of a text that is kept: it may say how the picture is to be turned."""
MAX_INLINE_PROFILE = 2**20
"""Bytes of a colour profile, unpacked, that Pillow takes."""
MAX_PROFILE = 2**22
"""Bytes of one at most; those of printers take one or two million."""


def without_texts(data: bytes) -> tuple[bytes, dict[str, bytes | None]]:
    """(the same PNG with neither long nor compressed texts, what Pillow's `info` lacks for it).

    The latter is a colour profile that is longer than Pillow takes; None for one of absurd size.
    """
    kept, place = [data[: len(SIGNATURE)]], len(SIGNATURE)
    info: dict[str, bytes | None] = {}
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        kind, end = data[place + 4 : place + 8], place + 12 + length
        body = memoryview(data)[place + 8 : place + 8 + length]
        if kind == b"iCCP":
            profile = _unpacked(bytes(body).partition(b"\0")[2][1:])
            if profile is None or len(profile) > MAX_INLINE_PROFILE:
                info["icc_profile"] = profile
                place = end
                continue
        if not _is_long_text(kind, body):
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]]), info


def _is_long_text(kind: bytes, body: memoryview) -> bool:
    if kind == b"iTXt":
        compressed = bytes(body[:100]).partition(b"\0")[2][:1] != b"\0"
        return compressed or len(body) > SHORT
    return kind == b"zTXt" or (kind == b"tEXt" and len(body) > SHORT)


def _unpacked(packed: bytes) -> bytes | None:
    """A profile; None for one that is too long, or damaged."""
    try:
        profile = zlib.decompressobj().decompress(packed, MAX_PROFILE + 1)
    except zlib.error:
        return None
    return profile if len(profile) <= MAX_PROFILE else None
