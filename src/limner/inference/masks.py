"""Inpainting and outpainting: a mask says which part of a picture is drawn anew.

At each step the model's estimate of the clean picture is replaced outside of the mask by the
picture itself, which it so always sees there at the noise of that step: the idea of RePaint
(Lugmayr et al. 2022, arXiv 2201.09865), without its repeated steps. On a deterministic path the
noise outside is the one that the drawing began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from limner.data.dataset import ImageError
from limner.data.decoding.image_modes import as_rgb, mend_transparency, upright
from limner.data.images import kept_part, open_rgb, opened, to_pil, upright_size
from limner.diffusion.solvers import Denoiser
from limner.errors import LimnerError
from limner.inference.variations import ImageSource
from limner.messages import shorten_name

BRIGHT = 128
"""Grey value from which a pixel of a mask is drawn anew, and opacity below which it is."""
MOST_MARGIN = 10_000
"""Pixels that are added at a side, at most."""


@dataclass(frozen=True)
class Mask:
    """Where a picture is drawn anew."""

    picture: Image.Image
    """In the size that is drawn."""
    pixels: np.ndarray
    """bool [height, width]; True: drawn anew."""

    def at(self, downsampling: int) -> Tensor:
        """For latents of so many pixels a side, bool [1, 1, h, w]: those with any such pixel."""
        whole = torch.from_numpy(self.pixels)[None, None].float()
        return F.max_pool2d(whole, downsampling) > 0

    def put_back(self, drawn: Image.Image) -> Image.Image:
        """What was drawn within the mask, and the picture outside of it, to the bit."""
        return Image.composite(drawn, self.picture, Image.fromarray(self.pixels))


def keeping(denoise: Denoiser, x0: Tensor, mask: Tensor) -> Denoiser:
    """The denoiser whose estimate outside of the mask is the picture.

    Args:
        x0: the picture, [1 or B, C, h, w].
        mask: bool [1, 1, h, w]; True: drawn anew.
    """
    return lambda x, timestep: torch.where(mask, denoise(x, timestep), x0)


def read_mask(source: ImageSource, picture: ImageSource, pixels: Tensor) -> Mask:
    """The mask of a picture, scaled and cropped as the picture is.

    White is drawn anew and black is kept; in a mask with transparency, what is transparent is
    drawn anew.

    Args:
        pixels: the picture in the size that is drawn, as `fitted` makes it, [1, 3, height, width].

    Raises:
        LimnerError: it cannot be read, has another size than the picture, or nothing is to be
            drawn anew.
    """
    grey = _grey(source)
    size = _size(picture)
    if size is not None and grey.size != size:
        raise LimnerError(
            f"the mask has {grey.width} x {grey.height} pixels and the picture {size[0]} x "
            f"{size[1]}; they must have the same size"
        )
    height, width = pixels.shape[-2:]
    box = kept_part(grey.width, grey.height, height, width)
    anew = np.array(grey.resize((width, height), Image.Resampling.NEAREST, box=box)) >= BRIGHT
    if not anew.any():
        raise LimnerError(
            "the mask keeps the whole picture; white (or transparent) is what is drawn anew"
        )
    return Mask(to_pil(pixels)[0], anew)


def outpainted(picture: ImageSource, margins: Sequence[int]) -> tuple[Image.Image, Image.Image]:
    """A picture with margins, and the mask that draws them.

    Args:
        margins: pixels at the left, top, right, and bottom.

    Raises:
        LimnerError: the picture cannot be read, or the margins are not four numbers from 0, one of
            them greater.
    """
    whole = len(margins) == 4 and all(isinstance(m, int) for m in margins)
    if not whole or min(margins) < 0 or not 0 < max(margins) <= MOST_MARGIN:
        shown = shorten_name(",".join(map(str, margins)))
        raise LimnerError(
            f"--outpaint {shown}: must be the pixels to add at the left, top, right, and bottom, "
            f"such as 0,64,0,64 (at most {MOST_MARGIN:,})"
        )
    left, top, right, bottom = margins
    pixels = np.array(_rgb(picture))
    around = ((top, bottom), (left, right))
    canvas = np.pad(pixels, (*around, (0, 0)), mode="edge")
    mask = np.pad(np.zeros(pixels.shape[:2], dtype=np.uint8), around, constant_values=255)
    return Image.fromarray(canvas), Image.fromarray(mask)


def _grey(source: ImageSource) -> Image.Image:
    """A mask as grey values: 255 is drawn anew."""
    _rgb(source)  # says what is wrong with it
    if isinstance(source, Image.Image):
        image = upright(source)
    else:
        with opened(source) as file:
            mend_transparency(file)
            file.load()
            image = upright(file)
    if image.has_transparency_data:
        opacity = image.convert("RGBA").getchannel("A")
        if np.asarray(opacity).min() < 255:
            return opacity.point([255 if value < BRIGHT else 0 for value in range(256)])
    return image.convert("L")


def _rgb(source: ImageSource) -> Image.Image:
    try:
        if isinstance(source, Image.Image):
            return as_rgb(upright(source))
        return open_rgb(source)
    except ImageError as error:  # here there is no row to remove
        raise LimnerError(str(error).replace(", or remove its row", "")) from None


def _size(source: ImageSource) -> tuple[int, int] | None:
    """(width, height), upright."""
    if isinstance(source, Image.Image):
        return upright(source).size
    found = upright_size(source)
    return None if found is None else (found[1], found[0])
