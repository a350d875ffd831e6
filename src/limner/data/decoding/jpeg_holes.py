"""Detect JPEG files with missing parts: runs of zero bytes, which decode without an error.

A download that was given its full length before it was complete, a bad sector, a folder that is
half synced. Unlike a PNG a JPEG has no checksum, its decoder reads over whatever is there, and the
rest of the picture is grey, shifted, or noise.
"""

from __future__ import annotations

import re

BLOCK = 512
"""Of a disk, a file system, or a download: where a lost part begins and ends."""
FEWEST = 4096
"""Zeros that are taken for a lost part. White paper may take as many in some JPEGs, but hardly
begins and ends with a block."""
FEWEST_AT_END = 64
_END = b"\xff\xd9"
_SCAN = 0xDA


def lost_part(data: bytes) -> str | None:
    """What is lost of a JPEG's picture, for people; None: nothing, as far as that can be told."""
    begin = _first_scan(data)
    if begin is None:
        return None
    kept = len(data.rstrip(b"\0"))
    if len(data) - kept >= FEWEST_AT_END and data.find(_END, begin) < 0:
        return f"image file is truncated: from byte {kept:,} on, it contains only zeros"
    place = begin
    while (place := data.find(bytes(FEWEST), place)) >= 0:
        found = re.compile(rb"[^\0]").search(data, place)
        end = found.start() if found else len(data)
        if place % BLOCK == 0 and end % BLOCK == 0:
            # What follows the picture, such as a camera's second one, may be filled up with zeros.
            inside = data.find(_END, begin, place) < 0
            return f"a part is missing: {end - place:,} zeros at byte {place:,}" if inside else None
        place = end
    return None


def _first_scan(data: bytes) -> int | None:
    """Where the compressed picture begins, behind all segments (T.81, B.1.1)."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        kind, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if kind == 0xFF:  # a fill byte
            place += 1
            continue
        place += 2 + length
        if kind == _SCAN:
            return place
    return None
