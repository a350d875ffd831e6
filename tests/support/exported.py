"""What the tests of exported models share: prompts, what Limner draws, and the folder loaded."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limner import ImageGenerator

PROMPTS = [
    "a small red circle",
    "Two BLUE squares <pad> <start>",
    "",
    "红苹果 " + "x" * 99 + "\ue000",
]
SEEDS = [1, 2, 3, 2**40]
LATENT = ["data.image_size=32", "model.patch_size=2"]
Pixels = np.ndarray


def text(folder: Path) -> list[str]:
    return [f"text_encoder.pretrained_model_name='{folder}'", "text_encoder.max_length=null"]


def vae(folder: Path) -> list[str]:
    return [f"vae.pretrained_model_name='{folder}'", *LATENT]


def pixels(images: list[Image.Image]) -> Pixels:
    return np.stack([np.array(image) for image in images]).astype(int)


def drawn_by_limner(checkpoint: Path, **options: Any) -> Pixels:
    """[4, H, W, 3]; the pictures differ, or they would show nothing."""
    generator = ImageGenerator(checkpoint, device="cpu", **options)
    drawn = pixels(generator.generate_batch(PROMPTS, seeds=SEEDS))
    assert min(np.abs(drawn[i] - drawn[0]).max() for i in (1, 2, 3)) > 8
    assert ((drawn > 0) & (drawn < 255)).mean() > 0.4, "what is black or white hides differences"
    return drawn


def keep_modules_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers copies the code that it runs into a folder of the user's; here into another."""
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(folder))
    monkeypatch.setattr(sys, "path", list(sys.path))


def load(folder: Path, **options: Any) -> Any:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]
