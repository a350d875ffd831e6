"""Settings for a data set, a machine, and a time: rules, with what was measured behind them.

Whatever the user set is part of every candidate, so that what follows from it fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from limner.apps.own_pictures.expected import images_wanted
from limner.apps.own_pictures.machine import Machine, input_side, training_cost
from limner.apps.own_pictures.survey import Survey
from limner.config import Config
from limner.config.defaults import changed
from limner.config.loading import Sections
from limner.errors import LimnerError
from limner.training.batch_size import MOST


@dataclass(frozen=True)
class ModelSize:
    """A size of model, and what it is for."""

    hidden_size: int
    num_layers: int
    num_heads: int
    grid: int
    """Patches a side."""
    largest: int
    """Pixels a side of the largest pictures that it is for."""
    fewest: int
    """Pictures below which it would only learn them by heart."""
    batch_size: int


MODEL_SIZES = (
    ModelSize(256, 6, 4, 8, 96, 0, 32),  # the demo's
    ModelSize(256, 6, 4, 16, 128, 0, 32),
    ModelSize(384, 8, 6, 16, 128, 0, 64),
    ModelSize(512, 12, 8, 16, 256, 2_000, 128),
    ModelSize(768, 12, 12, 16, 256, 50_000, 256),
)
"""From small to large."""
SHORTEST, LONGEST = 10.0, 60.0
"""Minutes, where none are given."""
GRIDS = sorted({size.grid for size in MODEL_SIZES})
SIDE_STEP = max(GRIDS)
"""Pixels: multiples of it are cut into each of these grids."""
WASTEFUL, SLOWER = 2.0, 1.25
"""How many times as fast a size near the one that was asked for must be to be taken instead; to be
named."""
SMALLEST_PATCH = 2
"""Pixels a side; smaller pictures are made larger."""
FEW = 100
"""Pictures, with which it is better to begin with another model."""
PROGRAM, PER_PARAMETER, PER_ACTIVATION = 1.2 * 2**30, 16, 70
"""Bytes: of the program with compiled code; of a weight with its average, gradient, and state of
the optimizer; of a number of the residual stream in each layer."""
SAVED_EVERY, SHOWN = 10.0, 8
"""Minutes between checkpoints; previews of a run."""
SAMPLING = {
    "scheduler_type": "ddim",
    "num_inference_steps": 10,
    "guidance_scale": 2.5,
    "guidance_interval": [0.5, 1.0],
    "timestep_power": 1.2,
}
"""What `limner sweep` found for the demo's model at 16 evaluations (docs/sampling.md)."""
CLASSIC = {"objective", "prediction_type", "beta_start", "beta_end", "beta_schedule"}
"""Keys of `scheduler` with which a model may be another than those it was found for."""


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        sections: the configuration, without what the user set.
        config: with it, complete.
        rate: images per second, about.
        images: that are learned from in the time.
        wanted: images until most trained captions have their picture.
        faster: a side near that of the configuration that is cut into fewer patches, and how many
            times as fast the model is with it; None: there is none.
    """

    sections: Sections
    config: Config
    rate: float
    images: float
    wanted: float
    faster: tuple[int, float] | None = None


def choose(
    found: Survey,
    machine: Machine,
    build: Callable[[Sections], Config],
    minutes: float | None = None,
    origin: Config | None = None,
    given: Sections | None = None,
) -> Choice:
    """The largest model that learns enough in the time; or, if none does, the smallest.

    Args:
        build: completes sections, after the user's own settings are put into them.
        minutes: None: as many as the smallest model needs, between `SHORTEST` and `LONGEST`.
        origin: of the model that the run begins with, whose shape is kept.
        given: what the user set, which other choices follow from.

    Raises:
        LimnerError: not even the smallest model fits into memory.
    """
    given = given or {}
    wanted = images_wanted(found.trained, begun=origin is not None)
    candidates = list(_candidates(found, machine, build, origin, given))
    if not candidates:
        raise LimnerError(
            f"{machine.memory / 2**30:.1f} GiB of memory are free, too little for the smallest "
            "model that draws; close other programs, or use a smaller --size"
        )
    sections, config, rate = candidates[0]
    if minutes is None:
        minutes = config.training.max_minutes
    if minutes is None:
        needed = wanted / rate / 60
        minutes = max(SHORTEST, min(LONGEST, 5 * math.ceil(needed / 5)))
    for larger in candidates[1:]:
        if larger[2] * 60 * minutes >= wanted:
            sections, config, rate = larger
    images, bound = rate * 60 * minutes, {"max_minutes": minutes}
    training = config.training
    if training.max_minutes is None and (training.max_steps or training.num_epochs):
        epochs = (training.num_epochs or 0) * found.trained
        images = float((training.max_steps or 0) * per_update(config) or epochs)
        bound = {}
    sections["training"] |= bound | _intervals(config, images, images / rate / 60)
    config = build(sections)
    return Choice(sections, config, rate, images, wanted, _faster(config, origin, given))


def near_side(side: int) -> int:
    """The nearest side that is cut into patches well."""
    return max(SIDE_STEP, round(side / SIDE_STEP) * SIDE_STEP)


def patches_at_best(side: int) -> int:
    """Patches a side, as the smallest model has them."""
    return side // _patch(side, GRIDS[0])


def rounded_side(side: int) -> int:
    """The side itself; or a near one where no patch of a good size divides it: 61 pixels can only
    be cut into patches of one pixel, 3,721 of them, where 64 make 64."""
    wasteful = patches_at_best(side) ** 2 > WASTEFUL * GRIDS[0] ** 2
    return near_side(side) if wasteful and side > SIDE_STEP else side


def _faster(config: Config, origin: Config | None, given: Sections) -> tuple[int, float] | None:
    side, near = config.data.image_size, near_side(config.data.image_size)
    patches = side // (config.model.patch_size or 1)
    grid = max((grid for grid in GRIDS if grid <= patches), default=patches)
    own = origin is not None or "patch_size" in given.get("model", {})
    if own or near == side or grid == patches or side < SIDE_STEP:
        return None
    model = changed(config.model, patch_size=near // grid)
    other = changed(config, data=changed(config.data, image_size=near), model=model)
    times = training_cost(config).flops / training_cost(other).flops
    return (near, times) if times >= SLOWER else None


def per_update(config: Config) -> int:
    """Images per update."""
    training = config.training
    if training.effective_batch_size or training.batch_size == "auto":
        return training.effective_batch_size or MOST
    return training.micro_batch_size * training.gradient_accumulation_steps


def _candidates(
    found: Survey,
    machine: Machine,
    build: Callable[[Sections], Config],
    origin: Config | None,
    given: Sections,
) -> Iterator[tuple[Sections, Config, float]]:
    """Sections, the configuration that they make, and images per second, from small to large."""
    for size in MODEL_SIZES if origin is None else MODEL_SIZES[:1]:
        if found.trained < size.fewest:
            continue
        sections = _sections(found, machine, size, origin, given)
        config = build(sections)
        cost = training_cost(config)
        batch = size.batch_size
        while batch > 1 and _memory(config, cost.parameters, batch) > machine.memory:
            batch //= 2
        if _memory(config, cost.parameters, batch) > machine.memory:
            continue
        own = {"batch_size", "effective_batch_size", "gradient_accumulation_steps"}
        if not own & given.get("training", {}).keys():
            sections["training"]["batch_size"] = batch
            if batch < size.batch_size:
                sections["training"]["gradient_accumulation_steps"] = size.batch_size // batch
        fastest = size.batch_size / machine.least_step
        yield sections, build(sections), min(fastest, machine.flops / cost.flops)


def _sections(
    found: Survey, machine: Machine, size: ModelSize, origin: Config | None, given: Sections
) -> Sections:
    sections: Sections = {
        "data": {"image_size": _side(found.side, size)},
        "training": {"num_workers": 4 if machine.kind == "cuda" else 0},
    }
    objective = given.get("scheduler", {})
    if origin is None and not objective.keys() & CLASSIC:
        sections["sampling"] = dict(SAMPLING)
    if origin is not None:
        sections["data"]["image_size"] = origin.data.image_size
        return sections
    width = given.get("model", {}).get("hidden_size", size.hidden_size)
    side = given.get("data", {}).get("image_size", sections["data"]["image_size"])
    sections["model"] = {
        "patch_size": _patch(side, size.grid),
        "hidden_size": size.hidden_size,
        "num_layers": size.num_layers,
        "num_heads": size.num_heads,
    }
    if width != size.hidden_size:
        sections["model"]["num_heads"] = _heads(width)
    if found.tokens is not None:
        sections["text_encoder"] = {"max_length": 8 * math.ceil(max(16, found.tokens) / 8)}
    return sections


def _side(own: int | None, size: ModelSize) -> int:
    """Of the pictures: as large as the model is for, or as they are if they are smaller."""
    side = min(own or 64, size.largest)
    return max(SMALLEST_PATCH * size.grid, side // size.grid * size.grid)


def _patch(side: Any, grid: int) -> int:
    """The largest that divides the side and gives at least so many patches."""
    if not isinstance(side, int):
        return SMALLEST_PATCH  # which will be said to be wrong
    return max([n for n in range(1, max(1, side // grid) + 1) if side % n == 0] or [1])


def _heads(width: Any) -> int:
    """Of 64 numbers each, if the width allows it, else of as many as divide it."""
    if not isinstance(width, int):
        return 1
    return next((n for n in (width // 64, 8, 4, 2) if n and width % (4 * n) == 0), 1)


def _memory(config: Config, parameters: int, batch: int) -> float:
    model, patch = config.model, config.model.patch_size or 1
    tokens = (input_side(config) // patch) ** 2
    numbers = batch * tokens * model.num_layers * model.hidden_size
    return PROGRAM + PER_PARAMETER * parameters + PER_ACTIVATION * numbers


def _intervals(config: Config, images: float, minutes: float) -> dict[str, int]:
    """Steps between what is done now and then."""
    steps = max(1.0, images / per_update(config))
    shown = _rounded(steps / SHOWN)
    return {
        "preview_steps": shown,
        "heldout_steps": shown,
        "save_steps": _rounded(steps / max(minutes, 1e-3) * SAVED_EVERY),
    }


def _rounded(steps: float) -> int:
    """To one digit, or a multiple of 5 of the next: 1, 1.5, 2, ... 9.5, 10, 15, 20."""
    unit = 10 ** math.floor(math.log10(max(steps, 10.0))) / 2
    return max(1, round(steps / unit) * round(unit)) if unit >= 1 else max(1, round(steps))
