"""The models that are served, by name."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from limner.apps.images_api.errors import ApiError
from limner.apps.images_api.limits import MOST_AREA, MOST_STEPS
from limner.apps.images_api.queue import Settings
from limner.apps.images_api.request import ImagesRequest
from limner.checkpoint.single_file import SUFFIX
from limner.device import choose_device
from limner.errors import LimnerError
from limner.inference.generator import ImageGenerator
from limner.messages import shorten, shorten_name

_NAME = re.compile(r"[\w.:@/ -]{1,100}")
_OF_A_RUN = re.compile(r"checkpoint-\d+")


def named(words: Sequence[str]) -> dict[str, str]:
    """Checkpoints by name, of words that are a checkpoint, or NAME=CHECKPOINT.

    Raises:
        LimnerError: two have the same name, or a name cannot be one.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, checkpoint = word.partition("=")
        if not equals or Path(word).expanduser().exists():
            name, checkpoint = name_of(word), word
        if not _NAME.fullmatch(name) or not checkpoint:
            raise LimnerError(
                f"{shorten_name(word)}: a model is named as NAME=CHECKPOINT, with a name of "
                "letters, digits, and . _ - : / @"
            )
        if name in found:
            raise LimnerError(
                f"{shorten_name(found[name])} and {shorten_name(checkpoint)} would both be called "
                f"{name}; name one of them: other-name={shorten_name(checkpoint)}"
            )
        found[name] = checkpoint
    return found


def name_of(checkpoint: str) -> str:
    """The name of a run's folder, or of a file without its ending; a Hub id as it is."""
    path = Path(checkpoint).expanduser()
    if not path.exists():
        return checkpoint.partition("@")[0]
    path = path.resolve()
    if path.is_file():
        if path.suffix == SUFFIX and not (path.parent / "training_state.json").is_file():
            return path.stem
        path = path.parent  # a file of a checkpoint
    return path.parent.name if _OF_A_RUN.fullmatch(path.name) and path.parent.name else path.name


class Model:
    """A generator, and what is told of it."""

    def __init__(self, name: str, generator: ImageGenerator) -> None:
        self.name, self.generator, self.opened = name, generator, int(time.time())
        data = generator.config.data
        size = (data.image_size, data.image_size)
        self.sizes = [size]
        """(height, width) of the sizes that it was trained at."""
        if isinstance(data.buckets, tuple):
            self.sizes = [(int(height), int(width)) for height, width in data.buckets]
        self.most_area = MOST_AREA * max(height * width for height, width in [*self.sizes, size])
        self.most_steps = max(MOST_STEPS, generator.sampling.num_inference_steps)

    def about(self) -> dict[str, Any]:
        """As `GET /v1/models` shows it."""
        return {"id": self.name, "object": "model", "created": self.opened, "owned_by": "limner"}

    def settings(self, asked: ImagesRequest) -> Settings:
        """What is to be drawn, checked against the limits and the model; computes nothing.

        Raises:
            ApiError: the model cannot do it, or it is too much.
        """
        size = asked.height_and_width()
        if size is not None:
            self._check_size(*size, shown=asked.size)
        if (steps := asked.num_inference_steps or 0) > self.most_steps:
            raise ApiError(
                400,
                f"num_inference_steps: {steps} is more than the limit of {self.most_steps}",
                param="num_inference_steps",
                code="integer_above_max_value",
            )
        given = asked.settings()
        try:
            height, width, _ = self.generator.plan(*(size or (None, None)), **given)
        except LimnerError as error:
            param = next(iter(given)) if len(given) == 1 else None
            raise ApiError(400, str(error), param=param, code="invalid_value") from None
        return Settings(self.name, height, width, tuple(sorted(given.items())))

    def _check_size(self, height: int, width: int, shown: str) -> None:
        generator = self.generator
        unit = generator.patch * generator.autoencoder.downsampling
        sizes = ", ".join(f"'{w}x{h}'" for h, w in self.sizes[:6])
        if height % unit or width % unit:
            why = f"both must be multiples of {unit}, the model's patch in pixels"
        elif height * width > self.most_area:
            why = f"at most {self.most_area:,} pixels are drawn"
        else:
            return
        raise ApiError(
            400,
            f"size {shorten(shown)} is not supported by {self.name}: {why}; it was trained at "
            f"{sizes}",
            param="size",
            code="invalid_value",
        )


def open_models(words: Sequence[str], device: str | None, **options: Any) -> dict[str, Model]:
    """Open every model; several are spread over the GPUs that there are.

    Args:
        words: each a checkpoint, or NAME=CHECKPOINT.
        options: other keyword arguments of `ImageGenerator`.

    Raises:
        LimnerError: one of them is damaged, missing, or without a name of its own.
    """
    checkpoints, chosen = named(words), choose_device(device or "auto")
    devices = [chosen]
    if chosen.type == "cuda" and chosen.index is None:
        devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return {
        name: Model(name, ImageGenerator(checkpoint, device=devices[i % len(devices)], **options))
        for i, (name, checkpoint) in enumerate(checkpoints.items())
    }
