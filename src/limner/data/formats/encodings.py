"""Detect the encoding of a text file: UTF-8, a byte order mark, or an unambiguous guess.

What is in none of them stays readable byte by byte (as lone surrogates), so that the rows are known
that hold such bytes, and the person can be asked: `data.encoding`.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections import Counter
from collections.abc import Sequence

from limner.messages import shorten

MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
"""What a file begins with that says its encoding; the longer ones first."""
EAST_ASIAN = {
    **{"gb18030": "gb18030", "gbk": "gb18030", "gb2312": "gb18030", "hz": "gb18030"},
    **{"big5": "big5hkscs", "big5hkscs": "big5hkscs", "cp950": "cp950"},
    **{"cp932": "cp932", "shift_jis": "cp932", "shift_jis_2004": "shift_jis_2004"},
    **{"euc_jp": "euc_jp", "euc_jis_2004": "euc_jis_2004", "euc_kr": "cp949", "cp949": "cp949"},
}
"""Encodings that can be told from their bytes -> the largest of the family, which is read."""
ASKED = ("gb18030", "big5hkscs", "cp932", "cp949", "cp1252")
"""Encodings whose readings are shown where it cannot be known which is meant."""

ENOUGH = 64
"""Bytes beyond ASCII without which no guess is certain: with fewer, GBK and Big5 look alike."""
_MARGIN = 0.04
"""By how much other readings must be less plausible ("chaos" of charset-normalizer, 0 to 1)."""
SAMPLE = 20_000  # bytes
_DAMAGED = 0.2
"""Share of the bytes beyond ASCII that are not UTF-8; below, it is UTF-8 that was damaged."""


def decode(data: bytes, encoding: str | None = None) -> str:
    """Text; bytes that are neither UTF-8 nor (then) `encoding` become lone surrogates."""
    for mark, name in MARKS:
        if data.startswith(mark):
            return data.decode(name, errors="surrogateescape" if name == "utf-8-sig" else "replace")
    if encoding and is_wide(encoding):
        if b"\0" in data or not _is_utf8(data):
            return data.decode(encoding, errors="replace")
        return data.decode("utf-8")
    if _is_utf8(data):
        return data.decode("utf-8")
    return data.decode("utf-8", errors="surrogateescape")


def has_mark(data: bytes) -> bool:
    """Whether its first bytes say in which encoding it is."""
    return any(data.startswith(mark) for mark, _ in MARKS)


def is_wide(encoding: str) -> bool:
    """Whether its characters are units of two or four bytes, line ends and all."""
    return codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))


class Guesses:
    """Which encodings were used that nothing said, for people."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __str__(self) -> str:
        """Empty where there is nothing to say."""
        if not self.counts:
            return ""
        found = " and ".join(f"{n:,} as {name}" for name, n in self.counts.most_common())
        return (
            f"Not in UTF-8, read with a guessed encoding: {found} (set data.encoding to be "
            "certain)."
        )


def decode_together(
    texts: Sequence[str], encoding: str | None, guesses: Guesses | None = None
) -> list[str]:
    """The same texts, with those read that `decode` left with lone surrogates: all as `encoding`,
    or as what together they are with certainty. What is in neither stays as it is."""
    bad = {i: _bytes(text) for i, text in enumerate(texts) if is_undecoded(text)}
    if not bad:
        return list(texts)
    name = encoding if encoding and not is_wide(encoding) else detect(b"\n".join(bad.values()))
    if name is None:
        return list(texts)
    read = list(texts)
    for i, data in bad.items():
        try:
            read[i] = data.decode(name)
        except UnicodeDecodeError:
            continue
        if guesses is not None and encoding is None:
            guesses.counts[name] += 1
    return read


def decode_lines(data: bytes, encoding: str | None = None, guesses: Guesses | None = None) -> str:
    """A whole file; where it is of mixed encodings, each line by itself."""
    text = decode(data, encoding)
    if not is_undecoded(text):
        return text
    return "\n".join(decode_together(text.split("\n"), encoding, guesses))


def detect(data: bytes) -> str | None:
    """The East Asian encoding that the bytes are certainly in, or None.

    Certain is what decodes to its end, to characters of full width, and which no other encoding
    makes as plausible. Of single-byte encodings nothing is certain: any bytes are text in them.
    """
    from charset_normalizer import from_bytes

    high = sum(byte > 127 for byte in data)
    if high < ENOUGH:
        return None
    broken = data.decode("utf-8", errors="surrogateescape")
    if sum("\udc80" <= letter <= "\udcff" for letter in broken) < _DAMAGED * high:
        return None
    lines = [line for line in data.split(b"\n") if not line.isascii()]
    sample = b"\n".join(lines)[:SAMPLE].rpartition(b"\n")[0] or b"\n".join(lines)[:SAMPLE]
    found = list(from_bytes(sample))
    if not found or (name := EAST_ASIAN.get(found[0].encoding)) is None:
        return None
    likely = str(found[0])
    if any(str(o) != likely and o.chaos < found[0].chaos + _MARGIN for o in found[1:]):
        return None
    foreign = [letter for letter in likely if not letter.isascii()]
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in foreign)
    return name if wide > 0.9 * len(foreign) else None


def readings(text: str) -> str:
    """What a text with lone surrogates would be in the encodings that people have, for a message:
    "as gb18030 it is '红苹果', as big5hkscs '綻ドⱨ'"."""
    data, found = _bytes(text), dict[str, str]()
    for name in ASKED:
        try:
            read = data.decode(name).strip()
        except UnicodeDecodeError:
            continue
        if read.isprintable() and read not in found.values():
            found[name] = read
    if sum(byte > 127 for byte in data) * 3 < len(data):  # single letters: a Western encoding
        found = dict(sorted(found.items(), key=lambda item: item[0] != "cp1252"))
    shown = [f"as {name} it is {shorten(read, 16)}" for name, read in list(found.items())[:3]]
    return ", ".join(shown)


def is_undecoded(text: str) -> bool:
    """Whether bytes were left over when it was decoded (or half a surrogate pair stands in it)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def utf_16_without_mark(data: bytes | str) -> str | None:
    """ "utf-16-le" or "utf-16-be" of Western text in it, in which every other byte is zero."""
    start = data[:4000]
    zero: bytes | str = b"\0" if isinstance(start, bytes) else "\0"
    for name, first in (("utf-16-le", 1), ("utf-16-be", 0)):
        zeros = start[first::2].count(zero)  # type: ignore[arg-type]
        others = start[1 - first :: 2].count(zero)  # type: ignore[arg-type]
        if zeros > 0.7 * len(start[first::2]) and not others:
            return name
    return None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogateescape")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
