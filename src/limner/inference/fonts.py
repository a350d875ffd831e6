"""The fonts of this machine: which of them has the letters of a caption, and what to install."""

from __future__ import annotations

import logging
import platform
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from PIL import ImageFont, features

from limner.messages import plural

# Pillow's own font has the letters of English only. These are looked up by name, the widest
# coverage last, where Pillow looks, subfolders included: on Linux in `fonts` of XDG_DATA_HOME and
# XDG_DATA_DIRS (~/.local/share, /usr/local/share, /usr/share), on macOS in /Library,
# /System/Library, and ~/Library, on Windows in the font folders of the system and the user.
SYSTEM_FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf"),
    *("segoeui.ttf", "arial.ttf", "Arial.ttf"),
    # Chinese, Japanese, and Korean. On any system, if installed:
    *("NotoSansCJK-Regular.ttc", "NotoSansCJK-VF.ttc", "NotoSansCJK-VF.otf.ttc"),
    *("NotoSansCJKsc-Regular.otf", "NotoSansCJKtc-Regular.otf", "NotoSansCJKjp-Regular.otf"),
    *("NotoSansCJKkr-Regular.otf", "NotoSansSC-Regular.otf", "NotoSansTC-Regular.otf"),
    *("NotoSansJP-Regular.otf", "NotoSansKR-Regular.otf", "NotoSerifCJK-Regular.ttc"),
    *("SourceHanSans-Regular.ttc", "SourceHanSans.ttc", "SourceHanSansSC-Regular.otf"),
    *("SourceHanSansCN-Regular.otf", "SourceHanSansJP-Regular.otf", "SourceHanSansKR-Regular.otf"),
    # Linux:
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf"),
    *("uming.ttc", "ukai.ttc", "ipagp.ttf", "ipag.ttf", "TakaoPGothic.ttf"),
    *("VL-PGothic-Regular.ttf", "VL-Gothic-Regular.ttf", "NanumGothic.ttf", "UnDotum.ttf"),
    # macOS:
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Light.ttc", "Songti.ttc"),
    *("ヒラギノ角ゴシック W3.ttc", "AppleSDGothicNeo.ttc", "AppleGothic.ttf"),
    # Windows:
    *("msyh.ttc", "msjh.ttc", "simsun.ttc", "simhei.ttf", "mingliu.ttc", "YuGothM.ttc"),
    *("YuGothR.ttc", "meiryo.ttc", "msgothic.ttc", "malgun.ttf", "gulim.ttc"),
    # The rest:
    *("NotoSansArabic-Regular.ttf", "Arial Unicode.ttf", "unifont.ttf"),
)

Font = ImageFont.FreeTypeFont
CJK = {
    "Linux": "install fonts-noto-cjk (Debian, Ubuntu), google-noto-sans-cjk-fonts (Fedora), or "
    "noto-fonts-cjk (Arch)",
    "Darwin": "brew install --cask font-noto-sans-cjk",
    "Windows": "add the supplemental fonts of the language in Settings, Optional features",
}
"""How to install fonts for Chinese, Japanese, and Korean, by system."""
SHAPING = "install a Pillow with libraqm and FriBiDi, which set scripts whose letters join"
OTHER = "install a font with its letters, such as the one of Noto Sans for its script"
log = logging.getLogger("limner")
_said: set[str] = set()


def say_once_what_is_missing(labels: Sequence[str], size: int) -> None:
    """Warn about labels that no font of this machine can draw, and say what to install; once per
    process and remedy."""
    numbers: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        text = " ".join(label.split())
        if font_for(text, size) is None and font_for(in_ascii(text), size) is None:
            numbers.setdefault(remedy(text), []).append(number)
    for what, found in numbers.items():
        if what in _said:
            continue
        _said.add(what)
        more = ", ..." if len(found) > 3 else ""
        shown = ", ".join(f"#{number}" for number in found[:3]) + more
        log.warning(
            "%d %s of a contact sheet %s shown as %s, since no installed font has the letters: %s",
            len(found),
            plural(len(found), "caption"),
            "is" if len(found) == 1 else "are",
            shown,
            what,
        )


def remedy(text: str) -> str:
    """What to install to draw a text that no font covers."""
    names = [unicodedata.name(character, "") for character in text]
    if any(name.startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL")) for name in names):
        return CJK.get(platform.system(), CJK["Linux"])
    return SHAPING if needs_shaping(text) and not can_shape() else OTHER


def can_shape() -> bool:
    return bool(features.check("raqm") and features.check("fribidi"))


@lru_cache(maxsize=4096)
def font_for(text: str, size: int) -> Font | None:
    """The first font that has every character of `text` and can lay them out, or None."""
    if needs_shaping(text) and not can_shape():
        return None  # unshaped Arabic letters, left to right, are not Arabic
    for name in (None, *SYSTEM_FONTS):
        font = open_font(name, size)
        if font is not None and covers(font, text):
            return font
    return None


@lru_cache(maxsize=256)
def open_font(name: str | None, size: int) -> Font | None:
    """The system's font file of that name, or None if it has none; name None: Pillow's own font."""
    try:
        font = ImageFont.load_default(size) if name is None else ImageFont.truetype(name, size)
    except OSError:
        return None
    return font if isinstance(font, Font) else None


def covers(font: Font, text: str) -> bool:
    """Whether `font` has a glyph of its own for each character of `text`."""
    # A noncharacter is drawn as the font's "missing" box; glyphs that look like it are missing.
    missing = bytes(font.getmask("\uffff"))
    return all(
        bytes(font.getmask(character)) != missing
        for character in set(text)
        if not character.isspace()
    )


def needs_shaping(text: str) -> bool:
    """Whether letters join or marks combine (Arabic, Hebrew, Devanagari, Thai ...)."""
    return any(
        unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.category(c) in ("Mn", "Mc")
        for c in text
    )


def in_ascii(text: str) -> str:
    """Accents dropped and curly punctuation straightened: "piñata" on a machine without fonts."""
    text = text.translate(str.maketrans("‘’“”–—", "''\"\"--"))
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
