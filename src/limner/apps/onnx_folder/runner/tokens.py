"""Prompts to tokens."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
# All but letters and digits that have another form since Unicode 12.1: the `tokenizers` library has
# the tables of 12.0, and leaves them as they are.
KNOWN = re.compile(
    "[^\u32ff\ua7f1-\ua7f4\uab69\U00010781-\U000107ba\U0001ccd6-\U0001ccf9\U0001f16c"
    "\U0001fbf0-\U0001fbf9]+"
)
SHORTENED = re.compile("'s|'t|'re|'ve|'m|'ll|'d")
# Of a text in which each character is l (letter), n (number), s (white space), o (another sign), or
# a space: words, numbers, and signs, each with the space before it (GPT-2).
PIECES = re.compile(" ?l+| ?n+| ?o+|[ s]+(?![^ s])|[ s]+")


class OwnTokenizer:
    """Byte-level BPE as Limner learns it from captions: vocabulary and merges of tokenizer.json."""

    def __init__(self, words: dict[str, Any], max_length: int) -> None:
        self.ids: dict[str, int] = words["vocab"]
        pairs = (tuple(p.split(" ")) if isinstance(p, str) else tuple(p) for p in words["merges"])
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self.max_length = max_length
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        self.letters = {byte: chr(byte) for byte in printable}  # how a byte is written there
        self.letters |= {byte: chr(256 + i) for i, byte in enumerate(others)}

    def __call__(self, prompt: str) -> list[int]:
        return self.encode(prompt)[: self.max_length]

    def length(self, prompt: str) -> int:
        return len(self.encode(prompt))

    def encode(self, prompt: str) -> list[int]:
        """<start> and the tokens, as many as there are."""
        text = prompt.encode("utf-8", "replace").decode()
        text = KNOWN.sub(lambda known: unicodedata.normalize("NFKC", known[0]), text)
        # One character at a time: a whole word's last sigma would become another letter.
        text = "".join(character.lower() for character in text).strip(WHITE)
        return [1, *(self.ids[part] for piece in pieces(text) for part in self.merged(piece))]

    def merged(self, piece: str) -> list[str]:
        parts = [self.letters[byte] for byte in piece.encode()]
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self.ranks.get(pair, math.inf))
            if best not in self.ranks:
                break
            joined: list[str] = []
            for part in parts:
                # A part that was joined just now takes no third one.
                if joined and (joined[-1], part) == best:
                    joined[-1] += part
                else:
                    joined.append(part)
            parts = joined
        return parts


def pieces(text: str) -> Iterator[str]:
    """The words, numbers, and signs of a text, which become tokens each by itself."""
    if not text:
        return
    text = f" {text}"
    kinds = "".join(map(kind, text))
    at = 0
    while at < len(text):
        found = SHORTENED.match(text, at) or PIECES.match(kinds, at)
        assert found
        yield text[at : found.end()]
        at = found.end()


def kind(character: str) -> str:
    if character in WHITE:
        return " " if character == " " else "s"
    return {"L": "l", "N": "n"}.get(unicodedata.category(character)[0], "o")


class LibraryTokenizer:
    """Any other, by the package tokenizers, with which tokenizer.json was written."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ImportError(
                "this model's tokenizer needs the package tokenizers; pip install tokenizers"
            ) from None
        self.tokenizer = Tokenizer.from_file(str(path))
        self.whole = Tokenizer.from_file(str(path))
        self.whole.no_truncation()
        self.settings = settings

    def __call__(self, prompt: str) -> list[int]:
        return self._ids(self.tokenizer, prompt)[: self.settings["max_length"]]

    def length(self, prompt: str) -> int:
        return len(self._ids(self.whole, prompt))

    def _ids(self, tokenizer: Any, prompt: str) -> list[int]:
        ids = tokenizer.encode(prompt.encode("utf-8", "replace").decode()).ids
        return [*self.settings["start"], *ids] or [self.settings["empty"]]


def tokenizer_of(folder: Path, settings: dict[str, Any]) -> OwnTokenizer | LibraryTokenizer:
    path = folder / "tokenizer.json"
    try:
        words = json.loads(path.read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy the folder again") from None
    if settings["tokenizer"] == "limner":
        return OwnTokenizer(words, settings["max_length"])
    return LibraryTokenizer(path, settings)
