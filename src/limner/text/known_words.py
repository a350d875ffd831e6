"""The words of the training captions, so that a prompt with others can be told apart.

    {"format": 1, "complete": true, "words": ["circle", "red", ...]}, the most frequent first

Only models with the built-in text encoder have them: it learned what a word means from these
captions alone. A pretrained encoder read billions of words and puts related ones close together, so
that a word which no caption has may well be drawn.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from limner.errors import LimnerError
from limner.files.small_files import parse_json
from limner.text.tokenizer import encodable

MOST, LONGEST = 50_000, 64
"""Words that are kept, and letters of a word; what is longer is none."""
AT_ONCE = 100_000
"""Different words, as they are spelled, after which counts are joined: memory for any data set."""
MOST_BYTES = 2**24
SHOWN, SIMILAR = 4, 0.75
"""Words that a sentence names, and how alike two must be (`difflib`) to be taken for each other."""
SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u1100-\u11ff\uac00-\ud7af]"  # Korean, whose endings are written without a space
)
"""Scripts without spaces between words. Each character counts as one, for where a word ends is not
written: two known ones in a row that no caption has may be the end and the beginning of known
words, so only characters that no caption has are reported."""
_UNSEEN = """
the and with for from that this are its his her their there has have which while
der die das den dem des ein eine einen einem einer und mit auf von für
les des une aux avec dans sur pour los las una del con por para che per gli
的 了 和 与 與 在 是 有 一 个 個 只 隻 张 張 幅 着 이 가 은 는 을 를 의 에 와 과 로 도 한
"""
UNSEEN = frozenset(_UNSEEN.split())
"""Words that name nothing in a picture."""


@dataclass(frozen=True)
class KnownWords:
    """Attributes:
    words: of the captions, as `words_in` finds them, the most frequent first; at most `MOST`.
    complete: whether these are all; otherwise the rarest are left out.
    """

    words: tuple[str, ...]
    complete: bool = True

    @classmethod
    def of(cls, captions: Iterable[str]) -> KnownWords:
        counts, spelled = Counter[str](), Counter[str]()
        complete = True
        for caption in captions:
            spelled.update(caption.split())
            if len(spelled) >= AT_ONCE:
                _join(counts, spelled)
            if len(counts) > 20 * MOST:  # rare ones are counted again if they come again
                counts, complete = Counter(dict(_first(counts, 10 * MOST))), False
        _join(counts, spelled)
        words = tuple(word for word, _ in _first(counts, MOST))
        return cls(words, complete and len(words) == len(counts))

    def joined(self, other: KnownWords) -> KnownWords:
        """These words, and others after them."""
        every = tuple(dict.fromkeys((*self.words, *other.words)))
        return KnownWords(every[:MOST], self.complete and other.complete and len(every) <= MOST)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.words)

    def unknown_in(self, text: str) -> list[str]:
        """The words of a text that no caption has, without those that name nothing; of scripts
        without spaces unknown characters in a row."""
        found = list[str]()
        in_a_row = False
        for word in words_in(text):
            alone = bool(SPACELESS.match(word))
            new = word not in self._known and word not in UNSEEN and _names(word)
            if new and alone and in_a_row:
                found[-1] += word
            elif new:
                found.append(word)
            in_a_row = new and alone
        return list(dict.fromkeys(found))

    def near(self, word: str) -> str | None:
        """The known word that is spelled most alike, if one is; perhaps what was meant."""
        if SPACELESS.match(word):
            return None
        alike = [one for one in self.words if abs(len(one) - len(word)) <= 2]
        found = difflib.get_close_matches(word, alike, n=1, cutoff=SIMILAR)
        return found[0] if found else None

    def in_words(self, texts: Sequence[str]) -> str | None:
        """Which words of the texts no caption has, as a sentence; None: all are known."""
        new = list(dict.fromkeys(word for text in texts for word in self.unknown_in(text)))
        if not new:
            return None
        shown = [f'"{word}"' for word in new[:SHOWN]]
        if len(new) > SHOWN:
            shown.append(f"{len(new) - SHOWN:,} more")
        no = "no caption" if self.complete else "no caption, or in very few,"
        said = f"{_listed(shown, 'and')} {'is' if len(new) == 1 else 'are'} in {no} that this "
        said += "model was trained on"
        if near := list(dict.fromkeys(filter(None, map(self.near, new[:SHOWN])))):
            quoted = [f'"{word}"' for word in near]
            said += f"; did you mean {_listed(quoted, 'or')}?"
        return said

    def to_json(self) -> str:
        about = {"format": 1, "complete": self.complete, "words": self.words}
        return json.dumps(about, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: str | Path) -> KnownWords:
        """Parse what `to_json` wrote. Raises LimnerError for anything else."""
        values: Any = parse_json(text, f"{where} is damaged: it", MOST_BYTES)
        words = values.get("words") if isinstance(values, dict) else None
        if not isinstance(words, list) or not all(map(_is_word, words)):
            raise LimnerError(f"{where} is damaged: it is no list of words")
        return cls(tuple(words[:MOST]), values.get("complete") is True and len(words) <= MOST)


def words_in(text: str) -> list[str]:
    """The words of a text: runs of letters, folded as the tokenizer does; of scripts without spaces
    single characters."""
    folded = unicodedata.normalize("NFKC", encodable(text)).lower()
    letters = (c if unicodedata.category(c)[0] in "LM" else " " for c in folded)
    apart = SPACELESS.sub(r" \g<0> ", "".join(letters))
    return [word for word in apart.split() if len(word) <= LONGEST]


def _is_word(value: Any) -> bool:
    """Whether it can be shown, too: a file of others may hold what a terminal obeys."""
    return isinstance(value, str) and len(value) <= LONGEST and value.isprintable()


def _names(word: str) -> bool:
    """Whether a word can name something: articles and prepositions of most languages are shorter,
    and hiragana on their own are mostly endings."""
    if SPACELESS.match(word):
        return unicodedata.category(word)[0] == "L" and not "\u3040" <= word <= "\u309f"
    return len(word) > 2


def _join(counts: Counter[str], spelled: Counter[str]) -> None:
    """Add to the counts, and empty the others."""
    for text, count in spelled.items():
        for word in words_in(text):
            counts[word] += count
    spelled.clear()


def _first(counts: Counter[str], most: int) -> list[tuple[str, int]]:
    """The most frequent, those of the same count by their spelling: the same in any order."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]


def _listed(shown: Sequence[str], last: str) -> str:
    return f"{', '.join(shown[:-1])} {last} {shown[-1]}" if len(shown) > 1 else shown[0]
