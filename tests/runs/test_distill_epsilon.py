"""Students of teachers that predict epsilon on a beta schedule, which says next to nothing about
the image in pure noise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from exported import keep_modules_in, load
from runs import events
from students import Build

from limner.apps.distill import distill_config
from limner.apps.publishing.export import export
from limner.inference.generator import ImageGenerator
from limner.training.trainer import Trainer


@pytest.fixture
def student(tiny_config: Build, tmp_path: Path) -> Path:
    teacher = tiny_config(
        *("scheduler.prediction_type=epsilon", "scheduler.beta_schedule=linear"),
        *("training.max_steps=40", "training.save_steps=40"),
    )
    Trainer(teacher).train()
    words = [f"cache.folder='{tmp_path / 'cache'}'", "distill.num_trajectories=24"]
    words += ["training.max_steps=100", "training.save_steps=100", "training.heldout_steps=25"]
    student = distill_config(
        str(teacher.training.output_dir), str(tmp_path / "student"), None, words
    )
    Trainer(student).train()
    return tmp_path / "student"


def test_it_comes_nearer_to_its_teacher_in_one_step_too(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [event["loss_by_level"] for event in events(student, "heldout")]
    assert losses[0]["1"] < 100, "not multiplied by 157, squared"
    assert losses[-1]["1"] < 0.5 * losses[0]["1"]
    generator = ImageGenerator(student, device="cpu")
    keep_modules_in(tmp_path / "modules", monkeypatch)
    pipeline = load(export(student, tmp_path / "folder", "diffusers"))
    for steps in (1, 2):
        image = generator.generate("a red circle", num_inference_steps=steps, seed=5)
        shown = np.asarray(image, dtype=int)
        assert ((shown > 0) & (shown < 255)).mean() > 0.5
        random = torch.Generator().manual_seed(5)
        there = pipeline("a red circle", num_inference_steps=steps, generator=random).images[0]
        assert abs(shown - np.asarray(there, dtype=int)).max() <= 1
