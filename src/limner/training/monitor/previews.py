"""Preview images: the same prompts and seeds, sampled as training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from limner.config import Config
from limner.data.dataset import Row
from limner.data.examples import DecodedImages
from limner.data.images import height_and_width, to_pil
from limner.data.order import evenly_spaced
from limner.device import part_precision
from limner.diffusion.objective import Objective
from limner.inference.contact_sheet import contact_sheet, save_contact_sheet
from limner.inference.sampling import draw
from limner.memory import in_parts_that_fit, is_out_of_memory
from limner.models.text_to_image import TextToImage
from limner.pretrained.autoencoder import IdentityAutoencoder, PretrainedAutoencoder
from limner.text.words import Words


def preview_prompts(config: Config, trained: Sequence[Row], held_out: Sequence[Row]) -> list[str]:
    """The configured prompts, or eight captions, half of them never trained on."""
    if config.training.preview_prompts is not None:
        return list(config.training.preview_prompts)
    unseen = [held_out[i].captions[0] for i in evenly_spaced(len(held_out), 4)]
    return [trained[i].captions[0] for i in evenly_spaced(len(trained), 8 - len(unseen))] + unseen


def preview_sizes(
    config: Config, trained: DecodedImages, held_out: DecodedImages
) -> list[tuple[int, int]]:
    """(height, width) in pixels of each preview: those of the picture whose caption is drawn.

    Configured prompts take the sizes in turn, the most frequent first."""
    side, buckets = config.data.image_size, trained.buckets
    prompts = preview_prompts(config, trained.rows, held_out.rows)
    if buckets is None:
        return [(side, side)] * len(prompts)
    if config.training.preview_prompts is not None:
        counts = buckets.counts()
        sizes = sorted(buckets.sizes, key=lambda size: -counts[buckets.sizes.index(size)])
        return [sizes[i % len(sizes)] for i in range(len(prompts))]
    unseen = evenly_spaced(len(held_out.rows), 4)
    seen = evenly_spaced(len(trained.rows), 8 - len(unseen))
    both = [(trained, i) for i in seen] + [(held_out, i) for i in unseen]
    return [height_and_width(images.size(i)) for images, i in both]


def save_preview(
    path: Path,
    model: TextToImage,
    objective: Objective,
    words: Words,
    space: IdentityAutoencoder | PretrainedAutoencoder,
    prompts: list[str],
    config: Config,
    dtype: torch.dtype,
    sizes: Sequence[tuple[int, int]] | None = None,
    steps: Sequence[int | None] = (None,),
) -> None:
    """Draw the prompts with seeds 0, 1, 2, ... as a sheet, in training's precision and batches,
    or in smaller ones if memory is short.

    Args:
        sizes: (height, width) in pixels of each.
        steps: in how many steps each is drawn, one after the other; None: as configured.
    """
    side, smaller = config.data.image_size, space.downsampling
    each = list(sizes or [(side, side)] * len(prompts))

    def images_of(at_once: int) -> list[Image.Image]:
        return [image for count in steps for image in in_steps(count, at_once)]

    def in_steps(count: int | None, at_once: int) -> list[Image.Image]:
        sampling = config.sampling
        if count is not None:
            sampling = sampling.model_copy(update={"num_inference_steps": count})
        images: dict[int, Image.Image] = {}
        for size in dict.fromkeys(each):
            alike = [i for i, other in enumerate(each) if other == size]
            height, width = (pixels // smaller for pixels in size)
            for first in range(0, len(alike), at_once):
                seeds = alike[first : first + at_once]
                some = [prompts[i] for i in seeds]
                settings = sampling, height, width, dtype
                drawn = draw(model, objective, words, some, seeds, *settings)
                decoded = decode_within_memory(space, drawn, part_precision(dtype))
                images |= zip(seeds, to_pil(decoded), strict=True)
        return [images[i] for i in range(len(prompts))]

    images = in_parts_that_fit(config.training.micro_batch_size, images_of)
    headings = [
        "" if count is None else f"{count} step{'s' * (count > 1)}"
        for count in steps
        for _ in prompts
    ]
    sheet = contact_sheet(images, [*prompts] * len(steps), groups=headings)
    save_contact_sheet(sheet, path, prompts)


def decode_within_memory(
    space: IdentityAutoencoder | PretrainedAutoencoder, latents: Tensor, dtype: torch.dtype
) -> Tensor:
    """Decode latents, loading the autoencoder only for that time.

    One picture at a time, and on the CPU if even one does not fit on the device, so that a preview
    never needs more memory than training.
    """

    def decode(device: torch.device) -> Tensor:
        space.load(device, dtype)
        return torch.cat([space.decode(one[None].to(device)).cpu() for one in latents])

    try:
        return decode(latents.device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        space.unload()
        return decode(torch.device("cpu"))
    finally:
        space.unload()
