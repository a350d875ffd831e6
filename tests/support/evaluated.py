"""A run that can be evaluated in seconds, and short words for doing it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up import made_up_checkpoint
from PIL import Image
from torch import Tensor, nn

from limner.cli import main
from limner.evaluation.evaluate import evaluate
from limner.evaluation.networks.networks import FeatureNetwork, Inception
from limner.inference.generator import ImageGenerator

COUNT = 30
OF_A_FOLDER = ("data.dataset_name=null", "data.num_samples=null", "data.train_split=0.5")


class Means(FeatureNetwork):
    """Means and deviations of the colours in place of a network that takes time."""

    def __init__(self, device: object = None, sha256: str = "ab" * 32) -> None:
        cpu = torch.device("cpu")
        super().__init__(nn.Identity(), "means", sha256, True, "as it is", 6, cpu)

    def _prepare(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def _compute(self, prepared: Tensor) -> Tensor:
        return torch.cat([prepared.mean(dim=(1, 2)), prepared.std(dim=(1, 2))], dim=1)


class Standard(Inception):
    """Stands for Inception-v3 with the standard weights, which tests cannot afford."""

    def __init__(self, weights: str, key: str, device: object) -> None:
        assert (weights, key) == ("named", "evaluation.inception")
        FeatureNetwork.__init__(
            self, nn.Identity(), "Inception-v3", "ef" * 32, True, "", 6, torch.device("cpu")
        )
        means = Means()
        self._prepare, self._compute = means._prepare, means._compute  # type: ignore[method-assign]

    def logits(self, features: Tensor) -> Tensor:
        return 5 * features


def pictures_in(folder: Path, count: int = COUNT) -> Path:
    """A folder of pictures that differ in colour and pattern, each with a caption of its own."""
    (folder / "images").mkdir(parents=True)
    random, rows = np.random.default_rng(0), []
    for i in range(count):
        coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((16, 16), Image.Resampling.NEAREST).save(
            folder / "images" / f"{i}.png"
        )
        rows.append({"image": f"images/{i}.png", "text": f"pattern number {i}"})
    (folder / "metadata.json").write_text(json.dumps(rows), "utf-8")
    return folder


def made_up_run(tmp_path: Path, data: Path, *overrides: str) -> Path:
    folder = [f"data.dataset_path='{data}'", *OF_A_FOLDER]
    made_up_checkpoint(tmp_path / "run" / "checkpoint-3", *folder, *overrides)
    return tmp_path / "run"


def results_of(run: Path, *overrides: str, **others: Any) -> dict[str, Any]:
    words = ["evaluation.num_images=20", "evaluation.other_images=10", *overrides]
    return evaluate(run, words, device="cpu", **others).results


def metric(results: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [record for record in results["metrics"] if record["metric"] == name]
    return found


def truths(run: Path) -> dict[str, np.ndarray]:
    """Each caption's own picture."""
    data = run.parent / "data"
    rows = json.loads((data / "metadata.json").read_text("utf-8"))
    return {row["text"]: np.array(Image.open(data / row["image"])) for row in rows}


def draws(monkeypatch: pytest.MonkeyPatch, picture_of: Callable[[str, int], np.ndarray]) -> None:
    def generate_batch(
        self: Any, prompts: list[str], seeds: list[int], **_: Any
    ) -> list[Image.Image]:
        return [Image.fromarray(picture_of(p, s)) for p, s in zip(prompts, seeds, strict=True)]

    monkeypatch.setattr(ImageGenerator, "generate_batch", generate_batch)


def refused(words: list[str], capsys: Any) -> str:
    assert main(words) == 2
    return capsys.readouterr().err
