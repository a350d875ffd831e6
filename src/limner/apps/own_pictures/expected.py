"""What may be expected of so many images seen, and what to say if they were too few."""

from __future__ import annotations

from pathlib import Path

from limner.apps.own_pictures.request import command_of
from limner.apps.own_pictures.settings_file import read_request
from limner.checkpoint.state import TrainingState
from limner.config import Config
from limner.console import format_duration
from limner.training.folder import CHOSEN

PASSES, LEAST_IMAGES, MOST_IMAGES = 100, 50_000, 2_000_000
"""What a model from scratch sees until most trained captions have their picture: so many passes,
and at least (the demo: 52,000 images, 178 passes) and at most so many images."""
SHARE_WHEN_BEGUN = 1 / 4
"""Of these images, that a model needs which begins with another's weights."""
EXPECTED = (
    (0.8, "most captions that it learned from get their picture"),
    (0.4, "recognisable pictures"),
    (0.1, "rough shapes and colours"),
    (0.0, "blots of colour"),
)
"""By the share of the images that are wanted which it sees in the time."""
TOO_FEW = 0.1
"""Share of the least images with which no model has learned anything to speak of, whatever its
data."""


def images_wanted(trained: int, begun: bool) -> float:
    """Images to be seen, for so many pictures to learn from.

    Args:
        begun: whether the model begins with another's weights.
    """
    wanted = max(LEAST_IMAGES, min(MOST_IMAGES, PASSES * trained))
    return wanted * (SHARE_WHEN_BEGUN if begun else 1.0)


def hope(share: float) -> str:
    """What to expect of this share of the images wanted."""
    return next(words for least, words in EXPECTED if share >= least)


def if_too_few(folder: Path, config: Config, state: TrainingState, trained: int) -> str | None:
    """Of a finished run that saw too few images to have learned anything: so, and the command that
    goes on with it; None: it saw enough.

    Args:
        trained: pictures to learn from.
    """
    images = state.images
    begun = config.training.init_from is not None
    least = LEAST_IMAGES * (SHARE_WHEN_BEGUN if begun else 1.0)
    if images >= TOO_FEW * least or not images:
        return None
    times = images_wanted(trained, begun) / images
    minutes = max(1, round(state.seconds * times / 60))
    training, bounds = config.training, dict[str, float]()
    if training.max_minutes is not None:
        bounds["training.max_minutes"] = minutes
    if training.max_steps is not None:
        bounds["training.max_steps"] = round(state.step * times)
    if not bounds:
        bounds["training.num_epochs"] = round(images * times / max(1, trained))
    longer = " ".join(f"{key}={value:g}" for key, value in bounds.items())
    go_on = f"limner train --resume latest training.output_dir={folder.as_posix()} {longer}"
    chosen = command_of(read_request(folder / CHOSEN), folder)
    if chosen is not None and training.max_steps is None and training.max_minutes is not None:
        go_on = f"{chosen} --minutes {minutes}"
    passes = f"{images / max(1, trained):.2g} times each of its pictures"
    return (
        f"this run saw {images:,} images ({passes}), too few to learn from: its pictures are noise "
        f"or blots of colour. To go on for about {format_duration(60 * minutes)}: {go_on}"
    )
