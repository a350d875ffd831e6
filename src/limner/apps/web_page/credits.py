"""What the page says of where its model comes from."""

from __future__ import annotations

import re
from typing import Any

from limner.apps.publishing.card import BUILT_IN, license_that_fits
from limner.checkpoint.lineage import LearnedFrom, Lineage

LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")
ESCAPED = re.compile(r"\\([^\w\s])")
CHINESE = {
    "emoji": (
        "图片来自 Twemoji（https://github.com/jdecked/twemoji），版权归 2020 Twitter, Inc "
        "及其他贡献者所有，后续版本归 jdecked/twemoji 贡献者所有，按 CC-BY 4.0"
        "（https://creativecommons.org/licenses/by/4.0/）许可使用。所作改动：在白底上栅格化。"
        "生成的图片模仿这些作品：分享时请同样署名。"
        "名称来自 Unicode CLDR（Unicode License v3），经由 Python 包 emoji 取得。"
    ),
    "shapes": "图片由 Limner 绘制（Apache-2.0），不含第三方作品。",
}
"""The attribution of each built-in data set; in English it is that of the model card."""


def credits(lineage: Lineage) -> dict[str, Any]:
    """The lineage as the page puts it into words (`credits` in page.js), without local names."""
    before = list(lineage.models_before())
    names = dict.fromkeys(data.name for one in (lineage, *before) for data in one.data)
    known = [name for name in names if name in BUILT_IN]
    return {
        "method": lineage.method,
        "data": _sets(lineage.data),
        "before": [
            {"model": one.model, "data": _sets(one.data), "complete": one.complete}
            for one in before
        ],
        "license": lineage.license or license_that_fits(lineage),
        "notes": {
            "en": [plain_text(BUILT_IN[name]) for name in known],
            "zh": [CHINESE[name] for name in known],
        },
    }


def plain_text(markdown: str) -> str:
    """A paragraph of the model card, with the addresses of its links behind their words."""
    return ESCAPED.sub(r"\1", LINK.sub(r"\1 (\2)", markdown)).replace("`", "")


def _sets(data: tuple[LearnedFrom, ...]) -> list[dict[str, Any]]:
    return [{"name": one.name, "license": one.license} for one in data]
