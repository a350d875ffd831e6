"""A patch wider than the model: the noise stays in what is drawn, or does not."""

from collections.abc import Callable

import pytest
import torch

from limner import Trainer
from limner.config import Config, SamplingConfig
from limner.inference.sampling import draw
from limner.training.monitor.run_log import read_log

Build = Callable[..., Config]
WIDE = (
    *("data.image_size=16", "model.patch_size=8", "model.hidden_size=64", "model.num_layers=1"),
    *("model.num_heads=1", "training.max_steps=300", "training.learning_rate=1e-2"),
    *("training.heldout_steps=50", "training.batch_size=16"),
)
"""192 numbers a patch into a width of 64."""


@pytest.mark.parametrize(
    ("settings", "noisy"), [([], False), (["scheduler.prediction_type=velocity"], True)]
)
def test_a_patch_wider_than_the_model_leaves_no_speckle_by_default(
    settings: list[str], noisy: bool, tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of one colour: whatever is not flat in the drawings is noise."""
    trainer = Trainer(tiny_config(*WIDE, *settings))
    constant = torch.full((16, 16, 3), 200, dtype=torch.uint8)
    monkeypatch.setattr(type(trainer.data.trained), "load", lambda *_: constant)
    trainer.train()
    sampling = SamplingConfig(num_inference_steps=10, guidance_scale=1.0)
    drawn = draw(
        trainer.averaged, trainer.run.objective, trainer.run.reader, ["a red circle"] * 4,
        list(range(4)), sampling, 16, 16,
    )  # fmt: skip
    spread = float(255 / 2 * drawn.std(dim=(2, 3)).mean())
    assert (spread > 20) if noisy else (spread < 2)
    said = [e["message"] for e in read_log(trainer.folder / "log.jsonl") if e["kind"] == "event"]
    before = [m for m in said if "192 independent values" in m and "is only 64" in m]
    learned = [m for m in said if m.startswith("noise stays")]
    assert (len(before), len(learned)) == ((1, 1) if noisy else (0, 0))
