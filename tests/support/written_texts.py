"""Texts in the characters that people write."""

from __future__ import annotations

import random
import sys
import unicodedata

TRADITIONAL = [
    "一隻紅色的蘋果放在木桌上", "兩隻貓在窗邊睡覺", "夕陽下的海灘和棕櫚樹", "一個小女孩騎著自行車",
    "雪山下的湖泊倒映著藍天", "街道上行駛的黃色計程車", "老人坐在公園的長椅上看報紙", "紅蘋果",
]  # fmt: skip


def captions_of_many_scripts() -> list[str]:
    """Captions from which a tokenizer learns merges of several scripts."""
    captions = ["a small red circle", "two blue squares above a green cross", "红苹果"] * 3
    captions += ["it's the red apple, isn't it? ΟΔΟΣ", "红苹果和绿苹果", "двa квадрата"]
    return captions * 2


def texts_of_all_scripts(count: int) -> list[str]:
    """Short texts of letters of all scripts, of signs, spaces, and what else may be typed."""
    chosen = random.Random(0)
    known = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) != "Cn"]
    known = [c for c in known if unicodedata.category(c) not in ("Cs", "Co")]
    usual = "abc dE'st,.!? 12\t\n红苹果é̈ß😀ΑΣ\u00a0\u3000\u200d"
    texts = [
        *("", " ", "it's  a\ttest, isn't it? 12—½ Ⅷ", "ﬁne ＡＢＣ", "ΣΑΣ ΟΔΟΣ", "İstanbul ß ẞ ŉ ſ"),
        *("<pad> <start>", "a small red circle", "'S 'LL don'T", "a\u180eb 1\u200b2 \ufeffx"),
        *(
            "x\n\n y  ",
            "\u0085nel\u00a0",
            "👨‍👩‍👧‍👦",
            "두 개의 파란 사각형",
            "ＴＷＯ ｂｌｕｅ",
            "दो नीले वर्ग",
        ),
    ]
    while len(texts) < count:
        texts.append("".join(chosen.choices(usual, k=chosen.randint(1, 12))))
        texts.append("".join(chosen.choices(known, k=chosen.randint(1, 6))))
    return texts[:count]
