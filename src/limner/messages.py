"""Values of people's data inside messages: shortened, and with nothing a terminal would obey."""

from __future__ import annotations

import re
import reprlib

LIMIT = 60
"""Characters of a value that a message shows."""


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        # Python writes no number of more than 4,300 digits, and raises ValueError instead.
        bits = x.bit_length()
        return super().repr_int(x, level) if bits < 10_000 else f"a number of {bits:,} bits"


_short = _Short()
_short.maxlevel, _short.maxlist, _short.maxtuple, _short.maxdict = 3, 4, 4, 4
_short.maxstring = _short.maxother = LIMIT


def shorten(value: object, limit: int = LIMIT) -> str:
    """A value for a message, as `repr` writes it: quoted, control characters escaped.

    Of a longer one the beginning is shown, and how long it is: a cell may hold a whole picture in
    base64. Of lists and objects the first items are shown, of nested ones three levels.
    """
    if isinstance(value, str):
        if len(value) <= limit:
            return repr(value)
        return f"{value[:limit] + '…'!r} ({len(value):,} characters)"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{len(value):,} bytes"
    text = _short.repr(value)
    return text if len(text) <= 2 * limit else text[: 2 * limit - 1] + "…"


def shorten_name(name: str, limit: int = 200) -> str:
    """A path or key for a message, without quotes: control characters and lone surrogates are
    escaped, and of a long one the beginning and the end are shown."""
    if len(name) > limit:
        name = f"{name[: limit // 2]}…{name[-(limit // 4) :]} ({len(name):,} characters)"
    if name.isprintable():
        return name
    return "".join(letter if letter.isprintable() else escape(letter) for letter in name)


def escape(letter: str) -> str:
    r"""A character as a string literal writes it: `\x1b`, `\u202e`, `\udce9`."""
    return repr(letter)[1:-1]


def plural(count: int, noun: str) -> str:
    """`noun` for one, `nouns` for any other number."""
    return noun if count == 1 else f"{noun}s"


def plain_words(caption: str, most: int = 12) -> str:
    """Of a caption, what no shell takes for more than words, to show a command with it."""
    return " ".join(re.sub(r"[^\w ,.-]", " ", caption).split()[:most]).strip("-") or "a prompt"


def parameters_in_words(count: float) -> str:
    """8061234 -> "8.1M", 34567 -> "35k", 1.25e9 -> "1,250.0M": how all of Limner writes it.

    Args:
        count: all weights of the model, those of a text encoder that is trained with it included;
            not those of a pretrained autoencoder or text encoder, which are used as they are.
    """
    return f"{count / 1e6:,.1f}M" if count >= 1e5 else f"{count / 1e3:.0f}k"


def bytes_in_words(count: float) -> str:
    """Of a file or of memory, in binary units: 102760448 bytes are 98 of 2^20."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
