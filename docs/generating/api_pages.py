"""The Python interface: signatures and docstrings, read from the source without running it."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

from markdown_pieces import escaped

SOURCE = Path(__file__).parents[2] / "src" / "limner"
INTRO = {
    "en": """\
# Python interface

What `import limner` offers, and below it the parts that people use by themselves. What is not
listed here may change without notice. `python docs/generate.py` writes this page.
""",
    "zh": """\
# Python 接口

`import limner` 提供的内容，以及人们会单独使用的部分。没有列在这里的，可能会不经通知而改变。
docstring 保持英文原文。本页由 `python docs/generate.py` 生成。
""",
}
PUBLIC: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("limner", "limner"): [
        ("training/trainer.py", "Trainer"),
        ("training/trainer.py", "Trainer.train"),
        ("training/trainer.py", "Trainer.save_checkpoint"),
        ("inference/generator.py", "ImageGenerator"),
        ("inference/generator.py", "ImageGenerator.generate"),
        ("inference/generator.py", "ImageGenerator.generate_batch"),
        ("inference/generator.py", "ImageGenerator.interpolate"),
        ("inference/generator.py", "ImageGenerator.compile"),
        ("checkpoint/inherit.py", "load_run_config"),
        ("config/schema.py", "Config"),
        ("config/schema.py", "known_keys"),
        ("errors.py", "LimnerError"),
    ],
    ("Data", "数据"): [
        ("data/dataset.py", "ImageDataset"),
        ("data/dataset.py", "ImageDataset.load"),
        ("data/dataset.py", "Row"),
        ("data/dataset.py", "Refused"),
        ("data/open.py", "open_image_dataset"),
        ("data/open.py", "training_order"),
        ("data/order.py", "Order"),
        ("data/convert/convert.py", "prepare"),
    ],
    ("Model", "模型"): [
        ("models/text_to_image.py", "TextToImage.forward"),
        ("models/text_to_image.py", "build_model"),
        ("text/conditioning.py", "TextConditioning"),
        ("pretrained/autoencoder.py", "PretrainedAutoencoder"),
        ("pretrained/text_encoder.py", "PretrainedTextEncoder"),
    ],
    ("Noise and solvers", "噪声与求解器"): [
        ("diffusion/objective.py", "Objective"),
        ("diffusion/objective.py", "Objective.add_noise"),
        ("diffusion/objective.py", "Objective.loss"),
        ("diffusion/noise_schedule.py", "FlowMatchingSchedule"),
        ("diffusion/noise_schedule.py", "VPSchedule"),
        ("diffusion/guidance.py", "guided_denoiser"),
        ("diffusion/solvers.py", "ddim"),
        ("diffusion/solvers.py", "heun"),
        ("diffusion/solvers.py", "dpmsolver_pp_2m"),
        ("diffusion/solvers.py", "unipc"),
        ("diffusion/solvers.py", "ddpm"),
        ("training/muon.py", "Muon"),
    ],
    ("Measures", "度量"): [
        ("evaluation/evaluate.py", "evaluate"),
        ("evaluation/compare.py", "compare"),
        ("metrics/frechet.py", "frechet_distance_of"),
        ("metrics/kernel_distance.py", "measure_kernel_distance"),
        ("metrics/kernel_distance.py", "cmmd"),
        ("metrics/precision_recall.py", "precision_recall"),
        ("metrics/scores.py", "inception_score"),
        ("metrics/scores.py", "clip_score"),
        ("metrics/memorisation.py", "nearest_trained"),
    ],
    ("Checkpoints and sharing", "检查点与分享"): [
        ("checkpoint/folder.py", "Checkpoint.open"),
        ("checkpoint/state.py", "TrainingState"),
        ("checkpoint/single_file.py", "WeightsFile"),
        ("apps/publishing/export.py", "export"),
        ("apps/publishing/upload.py", "publish"),
    ],
}
"""Sections (English, Chinese) of (file, name)."""
CALLED = {"load_run_config": "load_config"}
"""By which name `limner` offers what is called otherwise where it is."""
Definition = ast.FunctionDef | ast.ClassDef
SECTION = re.compile(r"^(Args|Returns|Raises|Attributes):[ ]?(.*)$")


def api_page(language: str) -> str:
    """The page as Markdown; language "en" or "zh"."""
    parts = [INTRO[language]]
    for titles, members in PUBLIC.items():
        parts.append(f"## {titles[language == 'zh']}\n")
        for file, name in members:
            module = f"limner.{file.removesuffix('.py').replace('/', '.')}"
            definition, public = find(file, name), CALLED.get(name, name)
            parts.append(f"### {public}\n")
            parts.append(f"```python\n{signature(definition, public)}\n```\n")
            link = f"[`{module}`](../../src/limner/{file})"
            parts.append(f"{link}\n\n{prose(ast.get_docstring(definition) or '')}")
            parts.extend(fields(definition))
    return "\n".join(parts)


@lru_cache
def parsed(file: str) -> ast.Module:
    return ast.parse((SOURCE / file).read_text(encoding="utf-8"))


def find(file: str, name: str) -> Definition:
    """Raises LookupError where the code has no such name any more."""
    body: list[ast.stmt] = parsed(file).body
    found: Definition | None = None
    for part in name.split("."):
        found = next(
            (
                node
                for node in body
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part
            ),
            None,
        )
        if found is None:
            raise LookupError(f"{file} has no {name}: correct PUBLIC in docs/generating/api_pages")
        body = found.body
    assert found is not None
    return found


def signature(definition: Definition, name: str) -> str:
    """How it is called, one argument a line where they do not fit into one."""
    function: ast.FunctionDef | None
    if isinstance(definition, ast.ClassDef):
        inner = [n for n in definition.body if isinstance(n, ast.FunctionDef)]
        function = next((n for n in inner if n.name == "__init__"), None)
        if function is None:
            return called(f"class {name}", constructor(definition), "")
    else:
        function = definition
    arguments = function.args
    positional = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    shown = [
        written(argument, default)
        for argument, default in zip(positional, defaults, strict=True)
        if argument.arg not in ("self", "cls")
    ]
    if arguments.vararg:
        shown.append("*" + written(arguments.vararg, None))
    elif arguments.kwonlyargs:
        shown.append("*")
    shown += map(written, arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg:
        shown.append("**" + written(arguments.kwarg, None))
    back = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    back = "" if function.name == "__init__" else back
    return called(name, shown, back)


def called(name: str, arguments: list[str], back: str) -> str:
    line = f"{name}({', '.join(arguments)}){back}" if arguments or back else name
    if len(line) <= 88:
        return line
    return "\n".join([f"{name}(", *(f"    {argument}," for argument in arguments), f"){back}"])


def constructor(definition: ast.ClassDef) -> list[str]:
    """The arguments that a dataclass or a named tuple takes."""
    made_of = [ast.unparse(d) for d in definition.decorator_list + definition.bases]
    if not any(d.startswith("dataclass") or d == "NamedTuple" for d in made_of):
        return []
    return [
        f"{node.target.id}: {ast.unparse(node.annotation)}"
        + (f" = {ast.unparse(node.value)}" if node.value else "")
        for node in definition.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]


def written(argument: ast.arg, default: ast.expr | None) -> str:
    text = argument.arg
    if argument.annotation:
        text += f": {ast.unparse(argument.annotation)}"
    if default is not None:
        text += f" = {ast.unparse(default)}" if argument.annotation else f"={ast.unparse(default)}"
    return text


def prose(docstring: str) -> str:
    """Paragraphs, with arguments, results, and errors as lists."""
    lines: list[str] = []
    inside = False
    for line in docstring.splitlines():
        if match := SECTION.match(line):
            inside = match[1] != "Returns"
            lines += ["", f"**{match[1]}:** {escaped(match[2])}".rstrip(), ""]
        elif inside and (item := re.match(r"^    (\w[\w, ]*): (.*)$", line)):
            names = ", ".join(f"`{name.strip()}`" for name in item[1].split(","))
            lines.append(f"- {names}: {escaped(item[2])}")
        elif inside and line.strip():
            lines.append(f"  {escaped(line.strip())}")
        else:
            inside = inside and not line.strip()
            lines.append(escaped(line.strip()))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def fields(definition: Definition) -> list[str]:
    """Fields of a class that are described under them."""
    if not isinstance(definition, ast.ClassDef):
        return []
    found = []
    for node, following in zip(definition.body, [*definition.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            said = escaped(" ".join(str(following.value.value).split()))
            found.append(f"- `{node.target.id}`: {said}")
    return ["\n".join(found) + "\n"] if found else []
