"""Classifier-free guidance: the denoiser that solvers see, made of a network and two texts."""

from collections.abc import Callable

import torch
from torch import Tensor

from limner.diffusion.objective import Objective
from limner.diffusion.solvers import Denoiser
from limner.models.text_encoder import EncodedText


def guided_denoiser(
    model: Callable[[Tensor, Tensor, EncodedText], Tensor],
    objective: Objective,
    text: EncodedText,
    null_text: EncodedText,
    guidance_scale: float,
    guidance_interval: tuple[float, float],
    dtype: torch.dtype,
) -> Denoiser:
    """Moves the prediction away from that for no text (Ho & Salimans 2022, arXiv 2207.12598).

    x_0 = x_0(null) + guidance_scale * (x_0(text) - x_0(null)). The published formula has the noise
    predictions there; x_0 is affine in every kind of prediction and the two weights add up to 1, so
    the picture is the same. Both texts go through the network in one batch.

    Args:
        model: `model(x, t, y)`, x [B, C, H, W] float32, t [B] float32 timesteps, y B texts; returns
            what the objective's prediction type says, of x's shape.
        text: what to draw, B texts.
        null_text: the empty text, 1 or B of it, padded to the length of `text`.
        guidance_scale: 1 is no guidance, 0 is no text.
        guidance_interval: lowest and highest share of `num_train_timesteps` (0 clean, 1 noise) at
            which to guide. Outside, guidance does little good (Kynkäänniemi et al. 2024, arXiv
            2404.07724) and the network is spared half its work, as it is where the scale is 1.
        dtype: what autocast computes the network in; float32 turns autocast off.

    Returns:
        denoise(x [B, C, H, W], timestep) -> x_0, float32 [B, C, H, W].
    """
    low, high = (share * objective.path.num_train_timesteps for share in guidance_interval)
    both_texts = text.followed_by(null_text)

    def predict_x0(x: Tensor, timestep: float, y: EncodedText) -> Tensor:
        t = torch.full((x.shape[0],), timestep, dtype=torch.float32, device=x.device)
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            output = model(x, t, y)
        return objective.to_x0(output, x, t)

    def denoise(x: Tensor, timestep: float) -> Tensor:
        if guidance_scale == 1 or not low <= timestep <= high:
            return predict_x0(x, timestep, text)
        x0, null_x0 = predict_x0(torch.cat([x, x]), timestep, both_texts).chunk(2)
        return null_x0 + guidance_scale * (x0 - null_x0)

    return denoise
