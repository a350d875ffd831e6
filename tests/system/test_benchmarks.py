"""The learning benchmark compares what it says it compares."""

import json
from pathlib import Path
from typing import Any

import ablations
import experiments
import pytest
import recipes
import tables

from limner.config import load_config
from limner.models.text_to_image import build_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
EVERY: dict[str, recipes.Recipe] = {
    **recipes.BASELINES,
    **recipes.DEFAULT,
    **ablations.WAY,
    **{name: recipe for group in ablations.ABLATIONS.values() for name, recipe in group.items()},
}


def parameters(recipe: recipes.Recipe) -> int:
    model = build_model(load_config(recipes.BASE, recipe.overrides), text_size=2000)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_every_recipe_is_a_configuration(name: str) -> None:
    recipe = EVERY[name]
    load_config(recipes.BASE, recipe.overrides)
    assert all(callable(getattr(experiments, word)) for word in (recipe.experiment or "").split())
    assert recipe.overrides or recipe.experiment or "default" in name


def test_no_recipe_is_lost_under_the_name_of_another() -> None:
    groups = [recipes.BASELINES, recipes.DEFAULT, ablations.WAY, *ablations.ABLATIONS.values()]
    assert len(EVERY) == sum(map(len, groups))


def test_the_baselines_have_the_size_of_the_default() -> None:
    own = parameters(recipes.DEFAULT["default, 15 min"])
    for name, recipe in recipes.BASELINES.items():
        assert parameters(recipe) == pytest.approx(own, rel=0.1), name


def line(recipe: str, seed: int, minutes: float, at_5: float) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "seed": seed,
        "minutes": minutes,
        "weights": "averaged",
        "steps": 100 * minutes,
        "trained": {"at_1": 0.5, "at_5": 0.75},
        "held_out": {"at_1": 0.25, "at_5": at_5},
        "kernel_distance": 300.0 + seed,
        "held_out_error": 0.2,
    }


def test_tables_tell_medians_and_ranges(tmp_path: Path) -> None:
    lines = [line("default, 6 min", seed, 6, 0.5 + seed / 10) for seed in range(3)]
    tables.write([*lines, line("published", 0, 60, 0.0)], tmp_path)
    text = (tmp_path / "learning.md").read_text(encoding="utf-8")
    assert "| default, 6 min (3 seeds) | 6 | 600 |" in text
    assert "0.25 / 0.60 (0.50-0.70) | 301 (300-302) |" in text
    assert "| published | 60 | 6,000 | 0.50 / 0.75 | 0.25 / 0.00 | 300 | 0.200 |" in text
    drawn = (tmp_path / "learning-recall.svg").read_text(encoding="utf-8")
    assert "published" in drawn
    assert "default" in drawn


def test_the_documents_tell_the_results_that_are_kept(tmp_path: Path) -> None:
    kept = BENCHMARKS / "results" / "learning.jsonl"
    lines = [json.loads(text) for text in kept.read_text(encoding="utf-8").splitlines()]
    copies = []
    for document in (BENCHMARKS.parent / "docs").glob("recipe*.md"):
        copies.append(tmp_path / document.name)
        copies[-1].write_text(document.read_text(encoding="utf-8"), encoding="utf-8")
    tables.write(lines, tmp_path, copies)
    for copy in copies:
        told = (BENCHMARKS.parent / "docs" / copy.name).read_text(encoding="utf-8")
        assert copy.read_text(encoding="utf-8") == told, "python benchmarks/learning --table"
    for name in ("learning.md", "learning-distance.svg", "learning-recall.svg"):
        made = (tmp_path / name).read_text(encoding="utf-8")
        assert made == (BENCHMARKS / "results" / name).read_text(encoding="utf-8"), name
    assert copies


def test_the_results_kept_are_those_of_recipes_that_are_there() -> None:
    kept = BENCHMARKS / "results" / "learning.jsonl"
    found = [json.loads(text) for text in kept.read_text(encoding="utf-8").splitlines()]
    assert {result["recipe"] for result in found} <= set(EVERY)


# What documents say was measured

WAYS_IN_WORDS = {
    "all weights": "all weights",
    "adapters of rank 16, text encoder": "adapters and text",
    "adapters of rank 16 alone": "adapters",
    "adapters of rank 4, text encoder": "rank 4 and text",
    "adapters of rank 64, text encoder": "rank 64 and text",
    "a model of the same shape, from nothing": "from nothing",
}


@pytest.mark.parametrize("name", ["finetuning.md", "finetuning.zh-CN.md"])
def test_the_rates_of_fine_tuning_are_those_that_were_measured(name: str) -> None:
    lines = (BENCHMARKS / "results" / "fine_tuning.jsonl").read_text("utf-8").splitlines()
    measured = {(r["set"], r["way"], r["learning_rate"]): r for r in map(json.loads, lines)}
    docs = BENCHMARKS.parent / "docs"
    english, told = ((docs / n).read_text("utf-8").splitlines() for n in ("finetuning.md", name))
    shown = [row.split("|")[1:-1] for row in told if row.startswith("|") and "e-" in row]
    words = [row.split("|")[1].strip() for row in english if row.startswith("|") and "e-" in row]
    assert len(shown) == len(words) == 13
    for what, (_, rate, tones, plain) in zip(words, shown, strict=True):
        number = float(rate.replace("（", "(").partition("(")[0])
        ways = ["adapters", "adapters and text"] if what == "either" else [WAYS_IN_WORDS[what]]
        for way in ways:
            of_tones, of_plain = (
                measured["tones", way, number],
                measured.get(("plain", way, number)),
            )
            keys = "trained", "held out", "known before"
            assert tones.strip() == ", ".join(f"{of_tones[key]['at_1']:.2f}" for key in keys)
            if plain.strip():
                assert of_plain is not None
                pair = (of_plain[key]["at_1"] for key in ("trained", "known before"))
                assert plain.strip() == ", ".join(f"{share:.2f}" for share in pair)
