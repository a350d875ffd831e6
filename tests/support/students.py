"""Students of the tiny run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from limner.apps.distill import distill_config
from limner.checkpoint.folder import load_tensors
from limner.config import Config
from limner.training.trainer import Trainer

Build = Callable[..., Config]
COUNT = 24


@pytest.fixture
def build(trained: Path, tmp_path: Path, quick_end: None) -> Build:
    """The configuration of a student of the tiny run."""

    def build(*overrides: str, name: str = "student") -> Config:
        return distill_config(
            str(trained / "outputs"),
            str(tmp_path / name),
            None,
            [
                f"cache.folder='{tmp_path / 'cache'}'",
                f"distill.num_trajectories={COUNT}",
                "training.max_steps=6",
                *overrides,
            ],
        )

    return build


@pytest.fixture(scope="module")
def distilled(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of a student in it; only to be read."""
    folder = tmp_path_factory.mktemp("distilled")
    words = [f"cache.folder='{folder / 'cache'}'", f"distill.num_trajectories={COUNT}"]
    words += ["training.max_steps=6", "training.preview_steps=6"]
    config = distill_config(str(trained / "outputs"), str(folder / "run"), None, words)
    Trainer(config).train()
    return folder / "run"


def weights(folder: Path, name: str = "model.pt") -> dict[str, torch.Tensor]:
    return load_tensors(folder / name)
