"""What is wrong with a caption by its looks, and in which script it is written."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from limner.apps.check_data.images import Fault
from limner.messages import shorten

_EXTENSIONS = r"(?:jpe?g|png|gif|webp|bmp|tiff?|hei[cf]|avif|jxl|svg|psd|mp4)"
_FILE_NAME = re.compile(
    rf"[^\s/\\]*[\w)]\.{_EXTENSIONS}"
    r"|(?:IMG|DSC[NF]?|PXL|MVIMG|DJI|GOPR|VID|P|Screen ?shot|WhatsApp Image|image|photo|pic)"
    r"[ _-]?\(?\d[\d _:.-]{1,}\)?"
    r"|[0-9a-f]{16,}|\d{5,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    re.IGNORECASE,
)
"""All of a caption: a name with an extension, a camera's numbering, a hash."""
_URL = re.compile(r"https?://\S|www\.\w[\w-]*\.\w", re.IGNORECASE)
_HTML = re.compile(
    r"</?(?:a|b|br|div|em|font|h[1-6]|hr|i|img|li|ol|p|script|span|strong|table|td|tr|u|ul)\b[^<>]*>"
    r"|&(?:amp|lt|gt|quot|nbsp|apos|#\d{2,5}|#x[0-9a-f]{2,5});",
    re.IGNORECASE,
)
_PLACEHOLDERS = frozenset(
    {
        *("untitled", "untitled image", "null", "none", "nan", "nil", "undefined", "n/a", "n.a."),
        *("na", "no caption", "no description", "no title", "caption", "title", "description"),
        *("text", "alt text", "image", "an image", "picture", "a picture", "photo", "a photo"),
        *("img", "placeholder", "todo", "tbd", "fixme", "test", "testing", "unknown", "default"),
        *("lorem ipsum", "xxx", "...", "…", "-", "--", "_", ".", "?"),
        *("无标题", "未命名", "图片", "照片", "暂无", "标题", "没有描述"),
    }
)
_TEMPLATE = re.compile(r"\{\{?\s*\w+\s*\}?\}|\[(?:caption|title|description|insert[^\]]*)\]|%s")
_BOILERPLATE = re.compile(
    r"stock (?:photo|image|illustration|vector)|royalty[- ]free|shutterstock|getty ?images|"
    r"istockphoto|dreamstime|all rights reserved|click (?:here|to)|free download|download now|"
    r"buy now|add to cart|terms of (?:use|service)|copyright ©|© ?\d{4}|"
    r"as an ai\b|i(?:'m| am) sorry,? (?:but )?i|i can(?:no|')t (?:see|help|assist|view)|"
    r"i(?:'m| am) unable to|版权所有|点击(?:这里|下载|查看)|免费下载|作为(?:一个)?(?:AI|人工智能)",
    re.IGNORECASE,
)
_FOREIGN = re.compile(r"[^\x00-\x7f]{2,}")
_WORD = re.compile(r"\w+")
_LONGEST_PHRASE, _TIMES = 5, 3

_SCRIPTS = {  # the first word of a letter's name in Unicode -> what people call it
    "LATIN": "Latin",
    "CYRILLIC": "Cyrillic",
    "GREEK": "Greek",
    "ARABIC": "Arabic",
    "HEBREW": "Hebrew",
    "DEVANAGARI": "Devanagari",
    "BENGALI": "Bengali",
    "TAMIL": "Tamil",
    "THAI": "Thai",
    "HANGUL": "Korean (Hangul)",
    "HIRAGANA": "Japanese (kana)",
    "KATAKANA": "Japanese (kana)",
    "CJK": "Chinese characters",
}
NO_LETTERS, OTHER = "no letters", "other"


def faults_of(caption: str) -> Iterator[Fault]:
    """At most one: the first of what can be wrong that is."""
    plain = caption.strip()
    if plain.lower() in _PLACEHOLDERS or _TEMPLATE.search(plain):
        yield Fault("caption-placeholder", _short(plain))
    elif _HTML.search(plain):
        yield Fault("caption-html", _short(plain))
    elif _URL.search(plain):
        yield Fault("caption-url", _short(plain))
    elif _FILE_NAME.fullmatch(plain):
        yield Fault("caption-file-name", _short(plain))
    elif meant := mojibake(plain):
        yield Fault("caption-mojibake", f"{_short(plain)}, meant was perhaps {_short(meant)}")
    elif found := _BOILERPLATE.search(plain):
        yield Fault("caption-boilerplate", f"{_short(found[0])} in {_short(plain)}")
    elif phrase := repeated(plain):
        yield Fault("caption-repeats", f"{_short(phrase)}, again and again, in {_short(plain)}")


def mojibake(text: str) -> str | None:
    """What the text was, if UTF-8 was read as Windows-1252 or Latin-1 ("Ã©" for "é"); else None."""
    if "\ufffd" in text or "锟斤拷" in text:
        return text.replace("\ufffd", "?")
    meant = _FOREIGN.sub(_decoded, text)
    return meant if meant != text else None


def _decoded(run: re.Match[str]) -> str:
    try:
        return b"".join(map(_byte, run[0])).decode("utf-8")
    except UnicodeError:
        return run[0]


def _byte(letter: str) -> bytes:
    try:
        return letter.encode("cp1252")
    except UnicodeError:
        return letter.encode("latin-1")  # five bytes have no letter in Windows-1252


def repeated(text: str) -> str | None:
    """A phrase of one to five words that stands three times in a row, or None."""
    words = _WORD.findall(text.lower())
    for length in range(1, _LONGEST_PHRASE + 1):
        run = 0
        for i in range(length, len(words)):
            run = run + 1 if words[i] == words[i - length] else 0
            if run >= length * (_TIMES - 1):
                phrase = words[i - length + 1 : i + 1]
                if not all(word.isdigit() for word in phrase):
                    return " ".join(phrase)
    return None


def script_of(text: str) -> str:
    """The script of most of its letters; Chinese characters beside kana are Japanese."""
    counts = Counter(_script(letter) for letter in text if letter.isalpha())
    if counts["Japanese (kana)"]:
        counts["Japanese (kana)"] += counts.pop("Chinese characters", 0)
    return counts.most_common(1)[0][0] if counts else NO_LETTERS


@lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    return _SCRIPTS.get(unicodedata.name(letter, "").split(" ")[0].split("-")[0], OTHER)


def _short(text: str, most: int = 60) -> str:
    return shorten(text, most)
