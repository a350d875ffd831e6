"""Noise that stays in drawings: where it comes from, how it is seen, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limner import load_config
from limner.apps.doctor import configuration
from limner.config import Config
from limner.config.notes import notes
from limner.evaluation.end_of_run import evaluate_run
from limner.evaluation.speckle import in_words, measure_speckle
from limner.evaluation.summary import sentences_of_run
from limner.inference.generator import ImageGenerator
from limner.metrics.flat_regions import flat_region_std
from limner.reports.run_report import write_report
from limner.training.monitor.learning_curve import Measurement, advise

Build = Callable[..., Config]


# What is seen


def test_the_noise_of_flat_ground_is_its_standard_deviation() -> None:
    generator = np.random.default_rng(0)
    flat = np.full((4, 64, 64, 3), 120.0)
    flat[:, 16:48, 16:48] = generator.uniform(0, 255, (4, 32, 32, 3))  # what is drawn on it
    assert flat_region_std(torch.from_numpy(flat.astype(np.uint8))).tolist() == [0, 0, 0, 0]
    for spread in (2.0, 12.0):
        noisy = flat + generator.normal(0, spread, flat.shape)
        found = flat_region_std(torch.from_numpy(noisy.round().clip(0, 255).astype(np.uint8)))
        # The flattest parts of a noisy picture are a little flatter than most of it.
        assert found.tolist() == pytest.approx([0.9 * spread] * 4, rel=0.08)


def test_patches_that_do_not_meet_are_noise_too() -> None:
    levels = np.random.default_rng(0).choice([110, 130], (1, 16, 16, 3))
    patches = levels.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)  # 16 x 16 patches of 4
    assert float(flat_region_std(torch.from_numpy(patches))) > 5


def test_a_picture_that_is_textured_all_over_is_compared_with_its_own(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What real pictures have is no fault of the drawings."""
    from limner.data.open import open_data
    from limner.evaluation.samples import of_captions
    from limner.evaluation.splits import Split

    data = open_data(load_config(trained / "tiny.yaml"))
    drawings = of_captions(data.trained, Split.TRAINED, 10)
    generator = np.random.default_rng(0)
    texture = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    for real, visible in ((texture, False), (np.zeros_like(texture), True)):
        monkeypatch.setattr(type(data.trained), "load", lambda *_, p=real: torch.from_numpy(p))
        for drawing in drawings:
            drawing.image = Image.fromarray(texture)
        found = measure_speckle(drawings, data)
        assert found is not None
        assert found["visible"] is visible
        assert found["count"] == 10
        assert ("still contain noise" in in_words(found)) is visible


# What causes it


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "velocity"),  # 48 numbers into 384
        ({"data": {"image_size": 128}}, "velocity"),  # 192 into 384
        ({"data": {"image_size": 192}}, "sample"),  # 432
        ({"data": {"image_size": 256}}, "sample"),  # 768
        ({"data": {"image_size": 512}}, "sample"),  # 3,072
        ({"data": {"image_size": 256}, "model": {"patch_size": 8}}, "velocity"),
        ({"model": {"hidden_size": 256, "num_heads": 4, "patch_size": 8}}, "velocity"),  # demo
        ({"model": {"hidden_size": 192, "num_heads": 3, "patch_size": 8}}, "sample"),
        ({"scheduler": {"beta_start": 1e-4}}, "epsilon"),
        ({"scheduler": {"beta_start": 1e-4}, "data": {"image_size": 256}}, "sample"),
    ],
)
def test_what_is_predicted_follows_what_a_patch_holds_and_the_width(
    settings: dict[str, Any], expected: str
) -> None:
    config = load_config(settings)
    assert config.scheduler.prediction_type == expected
    assert notes(config) == []
    assert list(configuration(config)) == []


@pytest.mark.parametrize("predicted", ["velocity", "epsilon", "v_prediction"])
def test_a_choice_that_cannot_work_is_told_with_both_numbers_and_the_cure(predicted: str) -> None:
    chosen = {"scheduler": {"prediction_type": predicted}, "data": {"image_size": 256}}
    (note,) = notes(load_config(chosen))
    assert f"scheduler.prediction_type: {predicted}" in note
    assert "768 independent values" in note
    assert "model.hidden_size is only 384" in note
    assert "scheduler.prediction_type=sample" in note
    (finding,) = configuration(load_config(chosen))
    assert (finding.verdict, finding.seen) == ("warn", note)


def test_latents_are_narrow_whatever_the_picture(tmp_path: Path) -> None:
    from pretrained import tiny_autoencoder

    from limner.pretrained.components import open_parts

    folder = str(tiny_autoencoder(tmp_path / "vae"))
    config = load_config(
        {
            "vae": {"pretrained_model_name": folder},
            "data": {"image_size": 64},
            "model": {"patch_size": 2},
            "cache": {"folder": str(tmp_path / "cache")},
        }
    )
    assert config.scheduler.prediction_type is None  # the autoencoder says how many there are
    assert open_parts(config).config.scheduler.prediction_type == "velocity"


# What is said


def test_a_loss_that_noise_holds_up_is_told_by_its_cause() -> None:
    def history(lowest: float) -> list[Measurement]:
        levels = [{"100": lowest + 1.0 / (i + 1), "900": 2.0 / (i + 1)} for i in range(6)]
        return [
            Measurement(100 * i, sum(each.values()), sum(each.values()), each)
            for i, each in enumerate(levels)
        ]

    said = advise(history(0.5), noise_floor=0.5)
    assert said is not None
    assert said.startswith("noise stays: the held-out loss at timestep 100 of 1000")
    assert "below 0.5" in said
    assert advise(history(0.5)) is None
    assert advise(history(0.1), noise_floor=0.5) is None  # it is below: something else is measured


def test_results_report_and_sentences_show_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from limner.data.open import open_data

    folder = shutil.copytree(trained / "outputs", tmp_path / "run")
    config = load_config(folder / "config.yaml")
    generator = np.random.default_rng(0)

    def noise(self: Any, prompts: list[str], **_: Any) -> list[Image.Image]:
        made = generator.normal(128, 40, (len(prompts), 16, 16, 3)).clip(0, 255).astype(np.uint8)
        return [Image.fromarray(image) for image in made]

    monkeypatch.setattr(ImageGenerator, "generate_batch", noise)
    results = evaluate_run(folder, config, open_data(config))
    kept = json.loads((folder / "results.json").read_text("utf-8"))["flat_region_std"]
    assert kept == results["flat_region_std"]
    assert kept["visible"]
    assert kept["drawn"] > 10 > kept["real"]
    assert any("the generated images still contain noise" in s for s in sentences_of_run(results))
    page = write_report(folder).read_text("utf-8")
    assert "noise in flat areas" in page
    assert "the generated images still contain noise" in page
