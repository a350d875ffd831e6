"""Prompts to pictures, from a checkpoint alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from limner.checkpoint import check_same_model
from limner.config import Config, SamplingConfig
from limner.data.pictures import to_pil
from limner.device import choose_device, part_precision
from limner.diffusion.objective import build_objective
from limner.diffusion.solvers import SOLVERS
from limner.errors import LimnerError
from limner.inference.sampling import draw
from limner.models.parts import moved, open_parts
from limner.models.pretrained_text import PretrainedText
from limner.models.text_to_image import build_model
from limner.text.tokenizer import CaptionTokenizer
from limner.weights_file import open_for_drawing

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ImageGenerator:
    """Draws from a checkpoint, which carries its own configuration.

    Args:
        checkpoint: a checkpoint folder, a run folder (its newest checkpoint), or a .safetensors
            file that `limner export` wrote.
        scheduler_type: solver, one of ddpm, ddim, euler, heun, dpmsolver++; None: as configured.
        device: "cuda", "mps", "cpu", a torch.device, or None: the best there is.
        dtype: "float32" draws the same picture (to 1/255) whatever the batch; "bfloat16" or
            "float16" is faster.
        config: only checked against the checkpoint's, for the habit of passing one.
        vae, text_encoder: where the pretrained parts are now, if not where they were in training.

    Raises:
        LimnerError: no or an incomplete checkpoint, an unknown solver, or another model.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        scheduler_type: str | None = None,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        config: Config | None = None,
        vae: str | Path | None = None,
        text_encoder: str | Path | None = None,
    ) -> None:
        opened = open_for_drawing(checkpoint)
        if config is not None:
            check_same_model(opened.config, config)
        parts = open_parts(moved(opened.config, vae=vae, text_encoder=text_encoder))
        self.config, self.space = parts.config, parts.space
        self.sampling = _sampling(self.config.sampling, scheduler_type=scheduler_type)
        self.device = choose_device(str(device or "auto"))
        self.dtype = DTYPES[dtype]
        self.objective = build_objective(self.config)
        part_dtype = part_precision(self.dtype)
        self.words: CaptionTokenizer | PretrainedText
        if parts.reader is not None:
            parts.reader.load(self.device, part_dtype)
            self.words = parts.reader
        else:
            assert opened.tokenizer is not None
            self.words = opened.tokenizer
        self.space.load(self.device, part_dtype)
        model = build_model(self.config, self.words.text_size)
        opened.load_weights(model, averaged=True)
        self.model = model.to(self.device).eval()

    def generate(
        self,
        prompt: str,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        height: int | None = None,
        width: int | None = None,
    ) -> Image.Image:
        """One picture. The empty prompt draws whatever the model likes."""
        return self.generate_batch(
            [prompt], num_inference_steps, guidance_scale, [seed], height, width
        )[0]

    def generate_batch(
        self,
        prompts: Sequence[str],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seeds: Sequence[int] | int = 0,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 16,
    ) -> list[Image.Image]:
        """A picture per prompt.

        Args:
            num_inference_steps, guidance_scale: None: as the checkpoint's configuration has them.
            seeds: one for each prompt, or one for all of them.
            height, width: pixels; None: the size trained at.
            batch_size: prompts drawn at a time; the pictures do not depend on it.
        """
        size = self.config.data.image_size
        height, width = (
            self._check_size("height", size if height is None else height),
            self._check_size("width", size if width is None else width),
        )
        sampling = _sampling(
            self.sampling, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
        )
        each = [seeds] * len(prompts) if isinstance(seeds, int) else list(seeds)
        if len(each) != len(prompts):
            raise LimnerError(f"{len(prompts)} prompts need as many seeds, or one; got {len(each)}")
        pictures: list[Image.Image] = []
        for first in range(0, len(prompts), batch_size):
            drawn = draw(
                self.model,
                self.objective,
                self.words,
                prompts[first : first + batch_size],
                each[first : first + batch_size],
                sampling,
                height // self.space.downsampling,
                width // self.space.downsampling,
                self.dtype,
            )
            pictures += to_pil(self.space.decode(drawn))
        return pictures

    def _check_size(self, name: str, value: int) -> int:
        patch = (self.config.model.patch_size or 1) * self.space.downsampling
        if value < patch or value % patch:
            near = max(patch, round(value / patch) * patch)
            raise LimnerError(
                f"--{name} {value} is not a multiple of {patch}, the pixels of one of the model's "
                f"patches; take {near}"
            )
        return value


def _sampling(base: SamplingConfig, **changes: Any) -> SamplingConfig:
    """The sampling settings with what is not None changed, checked as in a configuration."""
    given = {key: value for key, value in changes.items() if value is not None}
    if given.get("scheduler_type", "ddim") not in SOLVERS:
        raise LimnerError(
            f"scheduler_type {given['scheduler_type']!r} is not known; take one of "
            f"{', '.join(SOLVERS)}"
        )
    if given.get("num_inference_steps", 1) < 1:
        raise LimnerError(
            f"num_inference_steps is {given['num_inference_steps']}; it must be at least 1"
        )
    if not given.get("guidance_scale", 1) >= 0:
        raise LimnerError(f"guidance_scale is {given['guidance_scale']}; it must be 0 or more")
    return base.model_copy(update=given)
