"""Draws one prompt from the newest checkpoint of a run, step by step, and shows where the model
looked at each word."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field
from torch import Tensor

from limner.apps.serving.images import encoded
from limner.apps.serving.one_at_a_time import OneAtATime
from limner.apps.serving.request import Prompt
from limner.apps.serving.server import Tell
from limner.checkpoint.locate import checkpoints
from limner.config.types import PositiveInt, Section, Seed
from limner.data.images import to_pil
from limner.errors import LimnerError
from limner.inference.generator import ImageGenerator
from limner.inference.saving import how_drawn
from limner.inference.word_attention import WordAttention, recorded, words_of

MOST_WORDS = 24
OVERLAY = np.array([[255, 196, 61], [196, 30, 58]], dtype=np.float32)
"""RGB where a word is read half as much as most, and most."""
OPAQUE = 0.75
"""Of the overlay where a word is read most; where it is read least there is none."""
PALE = 0.5
"""Share of white in the grey picture below, so that the colours stand out from its dark parts."""


class ExplainRequest(Section):
    run: str
    """Name of the run."""
    prompt: Prompt
    seed: Seed = 0
    num_inference_steps: Annotated[PositiveInt, Field(le=100)] | None = None


class Explainer(OneAtATime):
    """Holds the model of one run at a time, and draws one prompt at a time.

    Args:
        options: keyword arguments of `ImageGenerator`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.generator: ImageGenerator | None = None
        self.opened: tuple[Path, int] | None = None

    def explain(self, asked: ExplainRequest, folder: Path, tell: Tell) -> None:
        """Draw the prompt, and report it. Events, by `kind`:

        opening   the model is being loaded
        progress  `step` of `steps`, and `preview`: what the model now expects, JPEG in base64
        picture   `png` in base64, `how`: the sampling settings, `scale`: the colours of the maps
                  from least to most, and `words`: of each word its `text`, its `share` of the
                  attention to all words, `image`: its map over the picture (JPEG in base64), and
                  `least` and `most`, the ends of its scale, as multiples of its mean; None: the
                  architecture reads the prompt as a whole

        Raises:
            LimnerError: there is no checkpoint yet, or a setting is invalid.
            ConnectionError: raised by `tell`, or the server is shutting down.
        """
        if not checkpoints(folder):
            raise LimnerError(
                f"{asked.run} has no checkpoint yet; the first comes at training.save_steps, or "
                "when the run ends or is interrupted"
            )
        with self.turn():
            self._draw(self._newest(folder, tell), asked, tell)

    def _newest(self, folder: Path, tell: Tell) -> ImageGenerator:
        newest = checkpoints(folder)[-1]
        found = newest, newest.stat().st_mtime_ns
        if self.generator is None or self.opened != found:
            tell({"kind": "opening"})
            self.generator = None  # its memory is free before the next is loaded
            self.generator = ImageGenerator(folder, **self.options)
            self.opened = found
        return self.generator

    def _draw(self, generator: ImageGenerator, asked: ExplainRequest, tell: Tell) -> None:
        size: list[int] = []

        def progress(step: int, steps: int, x0: Tensor) -> None:
            self.go_on()
            size[:] = [side // generator.patch for side in x0.shape[-2:]]
            (preview,) = to_pil(generator.autoencoder.decode(x0[:1]))
            tell(
                {
                    "kind": "progress",
                    "step": step,
                    "steps": steps,
                    "preview": encoded(preview, "JPEG"),
                }
            )

        with recorded(generator.model) as attention:
            (image,) = generator.generate_batch(
                [asked.prompt],
                seeds=[asked.seed],
                num_inference_steps=asked.num_inference_steps,
                progress=progress,
            )
        words = None
        if attention is not None and attention.total is not None:
            found = words_of(asked.prompt, generator.words)[:MOST_WORDS]
            words = pictures_of(found, attention, size, image) if found else []
        tell(
            {
                "kind": "picture",
                "png": encoded(image, "PNG"),
                "how": how_drawn(image),
                "scale": encoded(scale(), "PNG"),
                "words": words,
            }
        )


def pictures_of(
    words: list[tuple[str, tuple[int, ...]]],
    attention: WordAttention,
    size: list[int],
    image: Image.Image,
) -> list[dict[str, Any]]:
    """Of each word its share of the attention, and where it is read: a map over the picture, which
    has its own scale, since some words are read much more than others."""
    maps = attention.of_words(words, size[0], size[1]).cpu().numpy()
    whole = max(float(maps.sum()), 1e-12)
    found = []
    for (text, _), one in zip(words, maps, strict=True):
        low, high, mean = float(one.min()), float(one.max()), max(float(one.mean()), 1e-12)
        level = (one - low) / (high - low) if high > low else np.zeros_like(one)
        large = Image.fromarray(level.astype(np.float32)).resize(
            image.size, Image.Resampling.BILINEAR
        )
        found.append(
            {
                "text": text,
                "share": float(one.sum()) / whole,
                "least": low / mean,
                "most": high / mean,
                "image": encoded(overlaid(image, np.asarray(large)), "JPEG"),
            }
        )
    return found


def overlaid(image: Image.Image, level: np.ndarray) -> Image.Image:
    """The picture in pale grey below colours.

    Args:
        level: how much, 0 to 1, float32 [height, width] in pixels.
    """
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    below = grey + PALE * (255 - grey)
    up = level[..., None].clip(0, 1)
    half, most = OVERLAY
    colour = half + (2 * up - 1).clip(0, 1) * (most - half)
    shown = below + OPAQUE * up * (colour - below)
    return Image.fromarray(shown.clip(0, 255).astype(np.uint8))


def scale() -> Image.Image:
    """The colours of `overlaid` on white, from least to most."""
    level = np.broadcast_to(np.linspace(0, 1, 128, dtype=np.float32), (8, 128))
    return overlaid(Image.new("RGB", (128, 8), "white"), level)
