"""A prompt is drawn: words -> tokens -> noise from the seed -> solver steps -> latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limner.config import SamplingConfig
from limner.diffusion.guidance import guided_denoiser
from limner.diffusion.objective import Objective
from limner.diffusion.solvers import SOLVERS
from limner.models.text_to_image import TextToImage
from limner.text.words import Words


@torch.no_grad()
def draw(
    model: TextToImage,
    objective: Objective,
    words: Words,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    height: int,
    width: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw one picture per (prompt, seed).

    Each picture's noise comes from its own generator, so that it does not depend on what else is
    in the batch.

    Args:
        words: turns the prompts into what the model's text encoder reads.
        height, width: of what is denoised: pixels, or latents.
        dtype: float32, or bfloat16 to compute the network in under autocast (faster, and no longer
            the same to 1/255 whatever the batch).

    Returns:
        [B, C, height, width] float32, about [-1, 1], on the model's device.
    """
    device = next(model.parameters()).device
    path = objective.path
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (model.denoiser.in_channels, height, width)

    def noise(_: int = 0) -> Tensor:
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)

    y = words.encode([*prompts, ""]).to(device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        encoded = model.text_encoder(y)
    text, null = encoded.rows(slice(None, -1)), encoded.rows(slice(-1, None))
    denoise = guided_denoiser(
        model,
        objective,
        text,
        null,
        sampling.guidance_scale,
        sampling.guidance_interval,
        dtype,
    )
    timesteps = path.inference_timesteps(sampling.num_inference_steps, sampling.shift)
    solver = SOLVERS[sampling.scheduler_type]
    return solver(denoise, noise(), timesteps, path, noise)
