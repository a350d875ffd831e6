"""Texts in the characters that people write."""

from __future__ import annotations

TRADITIONAL = [
    "一隻紅色的蘋果放在木桌上", "兩隻貓在窗邊睡覺", "夕陽下的海灘和棕櫚樹", "一個小女孩騎著自行車",
    "雪山下的湖泊倒映著藍天", "街道上行駛的黃色計程車", "老人坐在公園的長椅上看報紙", "紅蘋果",
]  # fmt: skip
