"""Draws one prompt from the newest checkpoint of a run, step by step, and shows where the model
looked at each word."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field
from torch import Tensor

from limner.apps.serving.images import encoded
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
DARK = 0.2
"""Brightness of a picture where a word is read least."""


class ExplainRequest(Section):
    run: str
    """Name of the run."""
    prompt: Prompt
    seed: Seed = 0
    num_inference_steps: Annotated[PositiveInt, Field(le=100)] | None = None


class Explainer:
    """Holds the model of one run at a time, and draws one prompt at a time.

    Args:
        options: keyword arguments of `ImageGenerator`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.lock = threading.Lock()
        self.generator: ImageGenerator | None = None
        self.opened: tuple[Path, int] | None = None
        self.stopping = False

    def explain(self, asked: ExplainRequest, folder: Path, tell: Tell) -> None:
        """Draw the prompt, and report it. Events, by `kind`:

        opening   the model is being loaded
        progress  `step` of `steps`, and `preview`: what the model now expects, JPEG in base64
        picture   `png` in base64, `how`: the sampling settings, and `words`: of each word its
                  `text`, its `share` of the attention to all words, and `image`, the picture
                  (JPEG in base64) where it was looked at; None: the architecture reads the prompt
                  as a whole

        Raises:
            LimnerError: there is no checkpoint yet, or a setting is invalid.
            ConnectionError: raised by `tell`, or the server is shutting down.
        """
        if not checkpoints(folder):
            raise LimnerError(
                f"{asked.run} has no checkpoint yet; the first comes at training.save_steps, or "
                "when the run ends or is interrupted"
            )
        with self.lock:
            self._go_on()
            self._draw(self._newest(folder, tell), asked, tell)

    def stop(self, within: float) -> bool:
        """Stop what is being drawn at its next step. Returns whether there was something; waits for
        at most `within` seconds."""
        self.stopping = True
        if self.lock.acquire(blocking=False):  # never released, so waiting requests do not start
            return False
        self.lock.acquire(timeout=within)
        return True

    def _go_on(self) -> None:
        if self.stopping:
            raise ConnectionAbortedError("the server is shutting down")

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
            self._go_on()
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
                "words": words,
            }
        )


def pictures_of(
    words: list[tuple[str, tuple[int, ...]]],
    attention: WordAttention,
    size: list[int],
    image: Image.Image,
) -> list[dict[str, Any]]:
    """Of each word its share of the attention, and the picture, dark where the word is not read."""
    maps = attention.of_words(words, size[0], size[1]).cpu().numpy()
    whole = max(float(maps.sum()), 1e-12)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    found = []
    for (text, _), one in zip(words, maps, strict=True):
        span = float(one.max() - one.min())
        light = (one - one.min()) / span if span > 0 else np.ones_like(one)
        large = Image.fromarray(light.astype(np.float32)).resize(
            image.size, Image.Resampling.BILINEAR
        )
        shown = pixels * (DARK + (1 - DARK) * np.asarray(large)[..., None])
        picture = Image.fromarray(shown.clip(0, 255).astype(np.uint8))
        found.append(
            {"text": text, "share": float(one.sum()) / whole, "image": encoded(picture, "JPEG")}
        )
    return found
