"""Students of teachers that predict epsilon on a beta schedule, which says next to nothing about
the image in pure noise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from exported import keep_modules_in, load
from students import Build, weights

from limner.apps.distill import distill_config
from limner.apps.publishing.export import export
from limner.inference.generator import ImageGenerator
from limner.training.trainer import Trainer


def test_it_begins_with_an_image_where_its_teacher_divides_by_nothing(
    tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_config("scheduler.prediction_type=epsilon", "scheduler.beta_schedule=linear")
    Trainer(teacher).train()
    begun = str(teacher.training.output_dir)
    words = [f"cache.folder='{tmp_path / 'cache'}'", "distill.num_trajectories=8"]
    words += ["training.max_steps=2", "training.save_steps=2"]
    folder = tmp_path / "student"
    Trainer(distill_config(begun, str(folder), None, words)).train()
    assert weights(folder / "checkpoint-2")["denoiser.span_embedding.mlp.2.weight"].any()
    one_step = {"scheduler_type": "ddim", "num_inference_steps": 1, "seed": 5}

    def share_of_black_and_white(name: str | Path, **settings: object) -> float:
        image = ImageGenerator(name, device="cpu").generate("a red circle", **settings)  # type: ignore[arg-type]
        shown = np.asarray(image)
        return float(((shown == 0) | (shown == 255)).mean())

    # Hardly trained, both put out about 0, so that the one draws 157 times the noise, the other 4.
    assert share_of_black_and_white(begun, guidance_scale=1.0, **one_step) > 0.97
    assert share_of_black_and_white(folder, **one_step) < 0.85

    keep_modules_in(tmp_path / "modules", monkeypatch)
    pipeline = load(export(folder, tmp_path / "folder", "diffusers"))
    for steps in (1, 2):
        random = torch.Generator().manual_seed(5)
        there = pipeline("a red circle", num_inference_steps=steps, generator=random).images[0]
        here = ImageGenerator(folder, device="cpu").generate(
            "a red circle", num_inference_steps=steps, seed=5
        )
        assert abs(np.asarray(here, dtype=int) - np.asarray(there, dtype=int)).max() <= 1
