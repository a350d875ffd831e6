"""A loaded model that serves requests one at a time."""

from __future__ import annotations

import itertools
import re
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from limner.apps.play.request import DrawRequest
from limner.apps.serving.images import encoded
from limner.apps.serving.one_at_a_time import OneAtATime
from limner.apps.serving.server import Tell
from limner.checkpoint.locate import checkpoints
from limner.data.images import to_pil
from limner.data.own_folder import keep_out_of_the_data
from limner.device import describe, name_of
from limner.diffusion.solvers import SOLVERS
from limner.errors import LimnerError
from limner.inference.generator import ImageGenerator
from limner.inference.saving import how_drawn, save_image
from limner.pretrained.autoencoder import IdentityAutoencoder
from limner.reports.example_prompts import example_prompts, run_folder

AT_ONCE = 16


class Painter(OneAtATime):
    """Args:
    checkpoint: as for `ImageGenerator`. In a run folder, newer checkpoints are detected.
    keep_in: a folder to save every image in.
    options: keyword arguments of `ImageGenerator`.

    Raises:
        LimnerError: the model cannot be opened.
    """

    def __init__(self, checkpoint: str | Path, keep_in: Path | None = None, **options: Any) -> None:
        super().__init__()
        self.checkpoint, self.keep_in, self.options = checkpoint, keep_in, options
        self.generator = ImageGenerator(checkpoint, **options)
        if keep_in is not None:
            keep_out_of_the_data(keep_in, self.generator.config, "--output", checkpoint)

    def about(self) -> dict[str, Any]:
        """Information about the model, and default values for the page."""
        generator = self.generator
        config, sampling = generator.config, generator.sampling
        return {
            "name": Path(self.checkpoint).name,
            "step": generator.step,
            "newer": self.newer(),
            "parameters": sum(p.numel() for p in generator.model.parameters()),
            "device": describe(generator.device),
            "dtype": name_of(generator.dtype),
            "size": config.data.image_size,
            "unit": generator.patch * generator.autoencoder.downsampling,
            "shapes": self.shapes(),
            "solvers": list(SOLVERS),
            "distilled": self.generator.model.is_flow_map,
            "guidance_range": config.distill.guidance_range,
            "sampling": sampling.model_dump(mode="json"),
            "examples": example_prompts(self.checkpoint, config),
            "keeps": None if self.keep_in is None else str(self.keep_in),
        }

    def shapes(self) -> list[tuple[int, int]]:
        """(height, width) of the training sizes, in pixels."""
        data = self.generator.config.data
        if isinstance(data.buckets, tuple):
            return [(int(height), int(width)) for height, width in data.buckets]
        return [(data.image_size, data.image_size)]

    def newer(self) -> int | None:
        """The step of a newer checkpoint of the run, if there is one."""
        folder = run_folder(self.checkpoint)
        finished = checkpoints(folder) if folder else []
        newest = int(finished[-1].name.rpartition("-")[2]) if finished else 0
        return newest if newest > self.generator.step else None

    def take_newest(self) -> None:
        """Load the newest checkpoint of the run. Raises LimnerError."""
        with self.turn():
            self.generator = ImageGenerator(self.checkpoint, **self.options)

    def draw(self, asked: DrawRequest, tell: Tell) -> None:
        """Generate the requested images, and report each step and each image.

        Events, by `kind`:
            waiting   another request is running
            notes     what of the request training did not show, as sentences
            progress  `first` and `count` of the current batch, `step` of `steps`, and in pixel
                      space `previews`: the current estimates, JPEG in base64
            picture   `number`, `png` in base64, and `how`: the sampling settings

        Raises:
            LimnerError: a setting, size, or initial image is invalid; or, after all images were
                sent, some could not be saved.
            ConnectionError: raised by `tell`, or the server is shutting down.
        """
        settings = asked.settings()
        with self.turn(lambda: tell({"kind": "waiting"})):
            self._draw(asked, settings, tell)

    def _draw(self, asked: DrawRequest, settings: dict[str, Any], tell: Tell) -> None:
        unkept: list[str] = []
        generator, every = self.generator, asked.images()
        if notes := generator.notes(asked.texts(), asked.height, asked.width):
            tell({"kind": "notes", "notes": notes})
        size = generator.config.data.image_size
        at_once = generator.at_once(AT_ONCE, asked.height or size, asked.width or size)
        for first in range(0, len(every), at_once):
            some = every[first : first + at_once]

            def progress(step: int, steps: int, x0: Tensor, first: int = first) -> None:
                self.go_on()
                event: dict[str, Any] = {"first": first, "count": len(x0)}
                event |= {"step": step, "steps": steps}
                if isinstance(generator.autoencoder, IdentityAutoencoder):
                    event["previews"] = [encoded(p, "JPEG") for p in to_pil(x0)]
                tell({"kind": "progress", **event})

            drawn = generator.generate_batch(
                [prompt for prompt, _ in some],
                seeds=[seed for _, seed in some],
                batch_size=at_once,
                progress=progress,
                **settings,
            )
            for number, image in enumerate(drawn, start=first):
                how = how_drawn(image)
                event = {"kind": "picture", "number": number, "how": how}
                try:
                    if self.keep_in is not None:
                        keep(image, self.keep_in)
                except OSError as error:
                    unkept.append(error.strerror or str(error))
                tell({**event, "png": encoded(image, "PNG")})
        if unkept:
            raise LimnerError(
                f"{len(unkept)} of {len(every)} images could not be saved in {self.keep_in} "
                f"({unkept[0]}); save them from this page"
            )


def keep(image: Image.Image, folder: Path) -> Path:
    """Save an image under its prompt and seed, without overwriting an existing file."""
    how = how_drawn(image)
    words = re.sub(r"[^\w-]+", "-", str(how["prompt"])).strip("-")[:60].strip("-") or "empty"
    folder.mkdir(parents=True, exist_ok=True)
    data = BytesIO()
    save_image(image, data, "PNG")
    for number in itertools.count(1):
        path = folder / f"{words}-{how['seed']}{f'-{number}' if number > 1 else ''}.png"
        try:
            with path.open("xb") as file:  # does not follow an existing link
                file.write(data.getvalue())
        except FileExistsError:
            continue
        return path
    raise AssertionError("names do not end")
