"""The table of docs/own-pictures.md is what is chosen."""

import json
import re
from pathlib import Path

import pytest

from limner.apps.own_pictures.choose import Sections, choose
from limner.apps.own_pictures.machine import Machine
from limner.apps.own_pictures.survey import Survey
from limner.config import Config, load_config

DOCS = Path(__file__).parents[2] / "docs"
GIB = 2**30
MACHINES = {
    "two cores": Machine("cpu", "", 0.5 * 446e9, 20 * GIB),
    "two cores, 2 GiB free": Machine("cpu", "", 0.5 * 446e9, 2 * GIB),
    "GPU": Machine("cuda", "", 0.3 * 160e12, 22 * GIB),
}
ASKED: list[tuple[str, int, float | None]] = [
    ("two cores", 20, None),
    ("two cores", 300, None),
    ("two cores", 300, 60),
    ("two cores", 300, 240),
    ("two cores", 3_000, None),
    ("two cores", 3_000, 240),
    ("two cores", 30_000, None),
    ("two cores", 30_000, 240),
    ("two cores, 2 GiB free", 300, 240),
    ("GPU", 300, None),
    ("GPU", 3_000, 60),
    ("GPU", 30_000, 60),
    ("GPU", 1_000_000, 60),
    ("GPU", 1_000_000, 600),
]


def row(machine: str, pictures: int, minutes: float | None) -> str:
    def build(sections: Sections) -> Config:
        return load_config(json.loads(json.dumps(sections)))

    choice = choose(Survey(pictures, 1, 0, 512, 14), MACHINES[machine], build, minutes)
    model, training = choice.config.model, choice.config.training
    passes = choice.images / pictures
    batch = str(training.micro_batch_size)
    if training.gradient_accumulation_steps > 1:
        batch += f" × {training.gradient_accumulation_steps}"
    minutes_said = f"{training.max_minutes:g}" + ("" if minutes else "*")
    cells = [
        *(machine, f"{pictures:,}", minutes_said, f"{choice.config.data.image_size}"),
        *(f"{model.patch_size}", f"{model.hidden_size} / {model.num_layers} / {model.num_heads}"),
        *(batch, f"{choice.rate:,.0f}", f"{passes:,.0f}" if passes >= 10 else f"{passes:.1f}"),
    ]
    return "| " + " | ".join(cells) + " |"


@pytest.mark.parametrize("name", ["own-pictures.md", "own-pictures.zh-CN.md"])
def test_the_table_is_what_is_chosen(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    shown = re.findall(r"^\| .* \|$", text.partition("<!-- choices -->")[2], re.MULTILINE)
    names = {"two cores": "两核", "two cores, 2 GiB free": "两核，剩余 2 GiB", "GPU": "GPU"}
    wanted = [row(*asked) for asked in ASKED]
    if "zh" in name:
        wanted = [
            re.sub(r"^\| ([^|]+) \|", lambda m: f"| {names[m[1]]} |", line) for line in wanted
        ]
    assert shown[1 : 1 + len(wanted)] == wanted, "\n".join(wanted)
