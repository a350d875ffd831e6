"""Class labels to pictures, with the published DiT's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from class_dit import ClassDiT
from class_dit_sampling import sample_ddim, sample_ddpm
from class_dit_weights import read_published_dit
from PIL import Image
from torch import Tensor

from limner.config import VaeConfig
from limner.data.images import to_pil
from limner.device import choose_device, part_precision
from limner.errors import LimnerError
from limner.pretrained.autoencoder import PretrainedAutoencoder

PUBLISHED_VAE = "stabilityai/sd-vae-ft-mse"
SOLVERS = ("ddpm", "ddim")


class ClassImageGenerator:
    """Draws what the published code draws from the same weights, noise, and settings.

    Args:
        weights: DiT-XL-2-256x256.pt or the like, or a folder (or Hub id) of diffusers' DiTPipeline.
        vae: the autoencoder; None: that of the pipeline, else stabilityai/sd-vae-ft-mse.
        device: "cuda", "mps", "cpu", a torch.device, or None: the best there is.
        num_heads: attention heads, of sizes that were not published.

    Raises:
        LimnerError: weights or autoencoder cannot be had, or do not fit each other.
    """

    def __init__(
        self,
        weights: str | Path,
        vae: str | Path | None = None,
        device: str | torch.device | None = None,
        num_heads: int | None = None,
    ) -> None:
        published = read_published_dit(weights, num_heads)
        name = str(vae or published.folder or PUBLISHED_VAE)
        self.space = PretrainedAutoencoder(VaeConfig(pretrained_model_name=name))
        if self.space.channels != published.model.in_channels:
            raise LimnerError(
                f"{weights} works in latents of {published.model.in_channels} channels, and those "
                f"of {name} have {self.space.channels}; name its own autoencoder in --vae"
            )
        self.device = choose_device(str(device or "auto"))
        self.space.load(self.device, part_precision(torch.float32))
        self.sample_size = published.sample_size
        self.model = published.model.to(self.device)

    def generate(
        self,
        labels: Sequence[int],
        seeds: Sequence[int] | int = 0,
        num_inference_steps: int = 250,
        guidance_scale: float = 4.0,
        scheduler_type: str = "ddpm",
        guidance_channels: int = 3,
        batch_size: int = 8,
    ) -> list[Image.Image]:
        """A picture per label.

        Args:
            labels: classes from 0; as many as the weights know stands for "no class".
            seeds: one for each label, or one for all of them. (They are not the published code's,
                which draws the noise of a whole batch from one seed.)
            scheduler_type: "ddpm" or "ddim".
            guidance_channels: how many of the latents' channels are guided. The published code
                guides three; as many as there are draws more evenly, and not what was published.
        """
        most = self.model.num_classes
        if wrong := [label for label in labels if not 0 <= label <= most]:
            raise LimnerError(
                f"class {wrong[0]} is not known: the weights have 0 to {most - 1}, and {most} for "
                "none"
            )
        if scheduler_type not in SOLVERS:
            raise LimnerError(
                f"scheduler_type {scheduler_type!r} is not one of {', '.join(SOLVERS)}"
            )
        channels = self.model.in_channels
        if not 1 <= guidance_channels <= channels:
            raise LimnerError(f"guidance_channels is {guidance_channels}; take 1 to {channels}")
        each = [seeds] * len(labels) if isinstance(seeds, int) else list(seeds)
        if len(each) != len(labels):
            raise LimnerError(f"{len(labels)} labels need as many seeds, or one; got {len(each)}")
        images: list[Image.Image] = []
        for first in range(0, len(labels), batch_size):
            some = slice(first, first + batch_size)
            y = torch.tensor(labels[some], device=self.device)
            predict = Guided(self.model, y, guidance_scale, guidance_channels)
            drawn = self._draw(predict, each[some], num_inference_steps, scheduler_type)
            images += to_pil(self.space.decode(drawn))
        return images

    @torch.no_grad()
    def _draw(
        self, predict: Guided, seeds: Sequence[int], num_inference_steps: int, scheduler_type: str
    ) -> Tensor:
        """Latents, one for each seed."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shape = (self.model.in_channels, self.sample_size, self.sample_size)

        def noise(_: int = 0) -> Tensor:
            drawn = [torch.randn(shape, generator=generator) for generator in generators]
            return torch.stack(drawn).to(self.device)

        if scheduler_type == "ddim":
            return sample_ddim(predict, noise(), num_inference_steps)
        return sample_ddpm(predict, noise(), num_inference_steps, noise)


class Guided:
    """The network as the samplers ask it: (x, timestep) -> noise, the variance's place."""

    def __init__(self, model: ClassDiT, labels: Tensor, scale: float, channels: int) -> None:
        self.model, self.labels, self.scale, self.channels = model, labels, scale, channels

    def __call__(self, x: Tensor, timestep: float) -> tuple[Tensor, Tensor]:
        t = torch.full((len(x),), timestep, device=x.device)
        epsilon, place = self.model.guided(x, t, self.labels, self.scale, self.channels).chunk(2, 1)
        return epsilon, place
