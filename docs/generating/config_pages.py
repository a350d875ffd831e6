"""Every key of the configuration: type, default, meaning; from limner.config alone."""

from __future__ import annotations

import json
import math
from typing import Any

from markdown_pieces import code, escaped, say, table

from limner.config import Config

INTRO = {
    "en": """\
# Configuration

Every key, as `limner.config` has it. In a YAML file a key stands in its section; on the command
line it is `section.key=value`, after any command that takes a configuration. A key that is not
known is an error that names the nearest one. Where the default is a dash (None, `null` in YAML),
the last column says what that means; what follows from other values is chosen once and saved with
the run. A text on the command line is taken as it was typed (`Roll #3` stands in quotes in a YAML
file), and `~` at the beginning of a path is the home folder. `python docs/generate.py` writes this
page.
""",
    "zh": """\
# 配置

全部配置项，以 `limner.config` 为准。在 YAML 文件里，配置项写在各自的小节下；在命令行上，写成
`section.key=value`，放在任何接受配置的命令之后。不认识的配置项会报错，并给出最接近的名称。
默认值为短横线（None，即 YAML 里的 `null`）时，含义见最后一栏；由其他值推出的取值只选定一次，
随训练保存。命令行上的文本按输入的原样读取（`Roll #3` 这样的文本在 YAML 文件里要加引号），路径开头的
`~` 是主目录。本页由 `python docs/generate.py` 生成。
""",
}
HEADING = {"en": ("key", "type", "default", "meaning"), "zh": ("配置项", "类型", "默认值", "含义")}
SECTIONS = {
    "data": ("what is learned from", "学习用的数据"),
    "model": ("the transformer", "Transformer 模型"),
    "vae": ("an autoencoder, for latents", "自编码器（潜空间）"),
    "text_encoder": ("how captions are read", "文本编码器"),
    "training": ("the run", "训练过程"),
    "scheduler": ("how noise is added", "如何加噪"),
    "optimizer": ("how weights are updated", "优化器"),
    "lr_scheduler": ("the learning rate over the run", "学习率调度"),
    "sampling": ("how pictures are drawn", "如何画图"),
    "cache": ("what is computed once", "缓存"),
    "autoencoder": ("an autoencoder of one's own", "训练自己的自编码器"),
    "evaluation": ("what is measured", "评估"),
}
WORDS = {
    "en": {
        "integer": "whole number", "number": "number", "string": "text", "boolean": "true or false",
        "list": "list of {}", "pair": "two of: {}", "or": " or ",
    },
    "zh": {
        "integer": "整数", "number": "数", "string": "文字", "boolean": "true 或 false",
        "list": "{}的列表", "pair": "两个{}", "or": " 或 ",
    },
}  # fmt: skip


def config_page(language: str) -> str:
    """The page as Markdown; language "en" or "zh"."""
    schema = Config.model_json_schema()
    parts = [INTRO[language]]
    for section, reference in schema["properties"].items():
        name = (reference.get("$ref") or reference["allOf"][0]["$ref"]).rpartition("/")[2]
        described = schema["$defs"][name]
        title = SECTIONS.get(section, ("", ""))[language == "zh"]
        parts.append(f"## {section}: {title}\n" if title else f"## {section}\n")
        if about := described.get("description"):
            parts.append(escaped(say(about, language)) + "\n")
        rows = [
            (
                code(f"{section}.{key}"),
                type_words(found, language, schema["$defs"]),
                default_words(found.get("default")),
                escaped(say(found.get("description", ""), language)),
            )
            for key, found in described["properties"].items()
        ]
        parts.append(table(HEADING[language], rows) + "\n")
    return "\n".join(parts)


def type_words(found: dict[str, Any], language: str, definitions: dict[str, Any]) -> str:
    """The type in words: "whole number > 0"."""
    words = WORDS[language]
    if "$ref" in found:
        found = definitions[found["$ref"].rpartition("/")[2]]
    if "anyOf" in found:
        kinds = [k for k in found["anyOf"] if k.get("type") != "null"]
        return words["or"].join(type_words(kind, language, definitions) for kind in kinds)
    if "const" in found:
        return code(found["const"])
    if "enum" in found:
        return ", ".join(code(choice) for choice in found["enum"])
    if found.get("type") == "array":
        inside = found.get("prefixItems")
        kind = type_words(inside[0] if inside else found["items"], language, definitions)
        return words["pair" if inside else "list"].format(kind)
    bounds = [
        f"{sign} {found[name]:,g}"
        for name, sign in (
            *(("exclusiveMinimum", ">"), ("minimum", "≥")),
            *(("gt", ">"), ("ge", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤")),
            *(("lt", "<"), ("le", "≤")),
        )
        if name in found and abs(found[name]) < math.inf and found[name] != 2**63
    ]
    kind = words.get(found.get("type", ""), found.get("type", "?"))
    return escaped(" ".join([kind, ", ".join(bounds)]).strip())


def default_words(value: Any) -> str:
    if value is None:
        return "–"
    return code(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
