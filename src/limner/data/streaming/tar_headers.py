"""List the members of a tar from their headers: POSIX ustar, GNU and pax long names, any size.

Python's tarfile does the same, keeps an object for each member, and takes tens of times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from limner.messages import shorten, shorten_name

BLOCK = 512
FILES = b"0\x007"  # types of members that have contents of their own
MOST_NAME = 2**20
"""Bytes of a long name's record; a longer one is no name."""


MOST_DIGITS = 19
"""Of a size that is written in decimal: more than any file has."""


MOST_ZEROS = 2**20
"""Bytes at the end of a whole tar, however large its records are; usually 10 KiB at most."""


class Damaged(Exception):
    """The tar is not whole, from some place on."""


class Member(NamedTuple):
    name: str
    """With forward slashes; bytes that are not UTF-8 are lone surrogates."""
    offset: int
    """Of its contents."""
    size: int
    kind: str
    """"file", "folder", or what else it is, for people."""


_KINDS = {b"5": "folder", b"1": "a hard link", b"2": "a symbolic link", b"S": "a sparse file"}


def members(file: BinaryIO, length: int) -> Iterator[Member]:
    """All members of a tar of so many bytes, in order. In between the file may be read from.

    Raises:
        Damaged: it is cut off, or its next header is none; the members before it are good.
    """
    place, name, size = 0, None, None
    while True:
        file.seek(place)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise Damaged(f"it ends after {length:,} bytes without an end marker; it was cut off")
        kind = header[156:157]
        if not any(header[:8]) and not any(header):
            if lost := _lost_after_the_end(file, place + BLOCK):
                raise Damaged(f"at byte {place:,} are the zeros that end a tar, and {lost}")
            return
        if not _checksum_fits(header):
            raise Damaged(f"no member header at byte {place:,}; it is damaged there")
        try:
            own = _number(header[124:136]) if size is None or kind in b"xgLK" else size
        except ValueError:
            raise Damaged(f"at byte {place:,} a member's size is not a number") from None
        begin = place + BLOCK
        place = begin + -(-own // BLOCK) * BLOCK if kind not in (b"1", b"2", b"5") else begin
        if begin + own > length:
            short = shorten_name(name or _short_name(header))
            raise Damaged(f"it is cut off in {short}, which should have {own:,} bytes")
        if kind in (b"L", b"x"):
            if own > MOST_NAME:
                raise Damaged(f"at byte {begin - BLOCK:,} a name has {own:,} bytes")
            record = file.read(own)
            if kind == b"L":
                name = _decoded(record.split(b"\0", 1)[0])
            else:
                found = _pax(record)
                name = found.get("path", name)
                if "size" in found:
                    size = _decimal(found["size"], begin - BLOCK)
            continue
        if kind in b"gK" and kind:  # about all members, or a long target of a link
            continue
        what = "file" if kind in FILES else _KINDS.get(kind, f"a member of type {kind!r}")
        yield Member(name or _short_name(header), begin, own, what)
        name = size = None


def _lost_after_the_end(file: BinaryIO, begin: int) -> str | None:
    """What says that more than this was in the tar; None: nothing does."""
    file.seek(begin)
    read = 0
    while block := file.read(BLOCK * 64):
        if any(block):
            return (
                "other data follow; a part is missing, or several tars were joined with cat (use "
                "tar --concatenate)"
            )
        read += len(block)
        if read > MOST_ZEROS:
            return "they go on for too long; it was not downloaded completely"
    return None


def _decimal(digits: str, place: int) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= MOST_DIGITS):
        raise Damaged(f"at byte {place:,} a member's size is not a number: {shorten(digits)}")
    return int(digits)


def _short_name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    # GNU's own format has other things where ustar has the first part of the name.
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return _decoded(name)


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", errors="surrogateescape")


def _number(digits: bytes) -> int:
    """Octal, or where the first bit is set binary."""
    if digits[0] & 0x80:
        if digits[0] & 0x40:
            raise ValueError("below zero")
        return int.from_bytes(bytes([digits[0] & 0x3F]) + digits[1:], "big")
    return int(digits.strip(b" \0") or b"0", 8)


def _checksum_fits(header: bytes) -> bool:
    try:
        written = _number(header[148:156])
    except ValueError:
        return False
    around = header[:148] + header[156:]
    total = sum(around) + 8 * 0x20
    if total == written:
        return True
    return total - 256 * sum(byte > 127 for byte in around) == written  # of old programs


def _pax(record: bytes) -> dict[str, str]:
    """The records "length key=value" of an extended header."""
    found: dict[str, str] = {}
    place = 0
    while place < len(record):
        digits = record[place : place + 20].split(b" ", 1)[0]
        if not digits.isdigit() or not (length := int(digits)):
            break
        key, _, value = record[place + len(digits) + 1 : place + length - 1].partition(b"=")
        found[_decoded(key)] = _decoded(value)
        place += length
    return found
