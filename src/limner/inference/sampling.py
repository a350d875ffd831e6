"""Sampling: prompt -> conditioning -> noise from the seed -> solver steps -> latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from limner.config import SamplingConfig
from limner.diffusion.flow_map import flow_map_denoiser
from limner.diffusion.guidance import guided_denoiser
from limner.diffusion.objective import Objective
from limner.diffusion.solvers import SOLVERS, Denoiser, Noise
from limner.inference.masks import keeping
from limner.inference.sampling_settings import inference_timesteps
from limner.inference.variations import InitImage, Interpolation, between, slerp
from limner.models.text_to_image import TextToImage
from limner.text.conditioning import TextConditioning
from limner.text.words import Words


class Guide(NamedTuple):
    """A weaker model to guide away from (autoguidance)."""

    model: TextToImage
    objective: Objective
    words: Words


class Progress(Protocol):
    def __call__(self, step: int, steps: int, x0: Tensor) -> object:
        """Called after each step, counted from 1.

        Args:
            x0: [B, C, height, width], the clean pictures (or latents) as the model sees them now.
        """


def pictures_done(tell: Callable[[float, int], object], total: int, done: int = 0) -> Progress:
    """A `Progress` that tells (pictures done, of how many) of batches one after the other; those of
    an unfinished batch count by their share of the steps.

    Args:
        done: pictures before the first batch.
    """

    def progress(step: int, steps: int, x0: Tensor) -> None:
        nonlocal done
        tell(min(total, done + len(x0) * step / steps), total)
        if step == steps:
            done += len(x0)

    return progress


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
    *,
    negative_prompt: str | None = None,
    guide: Guide | None = None,
    start: InitImage | None = None,
    towards: Interpolation | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Generate one picture per (prompt, seed).

    Each picture's noise comes from its own generator, so that it does not depend on what else is
    in the batch.

    Args:
        words: turns prompts into inputs of the model's text encoder.
        height, width: of what is denoised: pixels, or latents.
        dtype: float32, or bfloat16 for autocast, which is faster, but the result may depend on the
            batch by more than 1/255.
        negative_prompt: what guidance moves away from; None: the empty text, or the guide's
            prediction for the prompt itself.
        guide: guidance moves away from this model's prediction instead.
        start: the picture to start from instead of pure noise.
        towards: prompts and seeds to interpolate to.
        progress: called after every step; an exception from it ends sampling.

    Returns:
        [B, C, height, width] float32, about [-1, 1], on the model's device.
    """
    other = None if model.is_flow_map else negative_prompt or ""
    text, null = read(model, words, prompts, other, towards, dtype)
    weaker: Denoiser | None = None
    if guide is not None:
        if negative_prompt is None:
            asked, there = prompts, towards
        else:
            asked, there = [negative_prompt] * len(prompts), None
        texts = read(guide.model, guide.words, asked, "", there, dtype)
        alone = sampling.model_copy(update={"guidance_scale": 1.0})
        weaker = guided_denoiser(guide.model, guide.objective, *texts, alone, dtype)
    device, noise_schedule = next(model.parameters()).device, objective.noise_schedule
    noise = noise_of((model.denoiser.in_channels, height, width), seeds, towards, device)
    strength = 1.0 if start is None else start.strength
    if start is not None and start.timesteps is not None:
        timesteps = start.timesteps
    else:
        timesteps = inference_timesteps(sampling, noise_schedule, strength)
    if model.is_flow_map:
        scale = sampling.guidance_scale if model.takes_guidance else None
        denoise = flow_map_denoiser(model, objective, text, timesteps, dtype, scale)
    else:
        denoise = guided_denoiser(model, objective, text, null, sampling, dtype, weaker)
    if start is not None and start.mask is not None:
        denoise = keeping(denoise, start.x0.to(device), start.mask.to(device))
    x = noise(0)
    if start is not None and strength < 1:  # at 1 nothing is left of the picture
        x = objective.add_noise(start.x0.to(device), x, timesteps[:1].to(device))

    def told(i: int, x0: Tensor) -> None:
        if progress is not None:
            progress(i + 1, len(timesteps) - 1, x0)

    return SOLVERS[sampling.scheduler_type](denoise, x, timesteps, noise_schedule, noise, told)


def read(
    model: TextToImage,
    words: Words,
    prompts: Sequence[str],
    other: str | None,
    towards: Interpolation | None,
    dtype: torch.dtype,
) -> tuple[TextConditioning, TextConditioning]:
    """Encode B prompts and the null text, with everything that is computed once per text.

    Args:
        other: the null text. None: there is no guidance, and the second of what is returned is the
            first.
    """
    device, ends = next(model.parameters()).device, list(towards.prompts) if towards else []
    count, null_texts = len(prompts), [] if other is None else [other]
    y = words.encode([*prompts, *ends, *null_texts]).to(device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        encoded = model.text_encoder(y)
        text = encoded.rows(slice(None, count))
        if towards is not None:
            text = between(text, encoded.rows(slice(count, 2 * count)), towards.weights)
        text = model.denoiser.prepare(text)
        if other is None:
            return text, text
        null = encoded.rows(slice(-1, None))
        if towards is not None:
            null = between(null, null, [0.0])  # so that both have weights
        return text, model.denoiser.prepare(null)


def noise_of(
    shape: tuple[int, int, int],
    seeds: Sequence[int],
    towards: Interpolation | None,
    device: torch.device,
) -> Noise:
    """The noise stream of each picture, from its seed, or interpolated to another seed."""

    def streams(seeds: Sequence[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    own, others = streams(seeds), streams(towards.seeds) if towards is not None else []

    def noise(_: int) -> Tensor:
        drawn = [torch.randn(shape, generator=stream) for stream in own]
        if towards is not None:
            ends = [torch.randn(shape, generator=stream) for stream in others]
            drawn = list(map(slerp, drawn, ends, towards.weights))
        return torch.stack(drawn).to(device)

    return noise


def ready(model: TextToImage, device: torch.device, dtype: torch.dtype) -> TextToImage:
    """A model for sampling in this precision: on the device, with the matrices of its denoiser cast
    once instead of at every step. The results are those of autocast."""
    model = model.to(device).eval().requires_grad_(False)
    if dtype != torch.float32:
        for layer in model.denoiser.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.to(dtype)
    return model
