"""Trajectories: every state of drawings that a teacher made of trained captions, kept in a store.

Each drawing has its own caption, its own noise, and perhaps its own guidance scale, which follow
from the run's seed and the drawing's number. Held-out captions are drawn only to measure with. A
store is for one teacher with one way of drawing; drawing that was killed goes on where it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from limner.config import Config, SamplingConfig
from limner.console import format_duration, progress_lines
from limner.data.dataset import ImageError, Row
from limner.data.open import Data
from limner.data.order import FullShuffle, evenly_spaced, seeded_generator
from limner.data.precomputed.fill import check_space, fill
from limner.data.precomputed.store import Store
from limner.device import name_of
from limner.diffusion.guidance import guided_denoiser
from limner.diffusion.objective import Objective, build_objective
from limner.diffusion.solvers import SOLVERS
from limner.files.fingerprints import digest
from limner.inference.sampling import read
from limner.inference.sampling_settings import inference_timesteps
from limner.memory import in_parts_that_fit
from limner.messages import plural
from limner.models.text_to_image import TextToImage
from limner.text.words import Words
from limner.training.distillation.teacher import open_teacher

log = logging.getLogger(__name__)

STORED = torch.float16
"""Neighbouring states differ by little, of which bfloat16 would keep too few digits."""
PER_MINUTE, PER_IMAGE, LEAST, MOST = 512, 4, 1024, 16_384
"""Trajectories for each minute of training, since a student that sees few of them too often learns
these by heart; for each training image, where there is no limit of minutes; at least, at most."""
AT_ONCE, TOKENS_AT_ONCE = 64, 1024
"""Drawings that are made together; on a CPU as many patches as its caches hold."""
GOLDEN = (5**0.5 - 1) / 2
MOST_ROWS, MOST_BYTES = 1024, 2**28
"""Of a shard, which is in memory as a whole when it is written."""


@dataclass(frozen=True)
class Drawing:
    """What the teacher is to draw."""

    caption: str
    seed: int
    """Of its noise."""
    guidance: float | None = None
    """Its own guidance scale; None: that of all."""

    @property
    def id(self) -> bytes:
        own = () if self.guidance is None else (f"guidance {self.guidance}",)
        return digest(self.caption, str(self.seed), *own)


class Trajectories:
    """Stored trajectories, each of `steps + 1` states from pure noise to the picture.

    Attributes:
        drawings: what each shows.
        timesteps: float64 [steps + 1], the time of each state, descending.
    """

    def __init__(self, store: Store, drawings: Sequence[Drawing], timesteps: Tensor) -> None:
        self.store, self.drawings, self.timesteps = store, drawings, timesteps
        self.positions = store.find(ids_of(drawings))

    def __len__(self) -> int:
        return len(self.drawings)

    def states(self, number: int) -> Tensor:
        """float32 [steps + 1, C, h, w]. Raises ImageError if they are damaged."""
        position = int(self.positions[number])
        if position < 0:
            reason = self.store.reason(self.drawings[number].id)
            raise ImageError(f"trajectory {number}: {reason or 'it is not in the store'}")
        return self.store.read(position).float()


def stored_trajectories(
    config: Config,
    data: Data,
    words: Words,
    text_size: int,
    downsampling: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Trajectories, Trajectories]:
    """Those of trained captions, to learn from, and of held-out ones, to measure with; what is not
    in the store yet is drawn now.

    Args:
        config: of the student, complete.
        words: what reads captions, for the student and for its teacher.
        text_size: see `limner.models.text_to_image.build_model`.
        downsampling: of the autoencoder; 1 in pixel space.

    Raises:
        LimnerError: the teacher cannot be used (see `open_teacher`), or the disk is full.
    """
    teacher = open_teacher(config)
    side, channels = config.data.image_size // downsampling, config.model.in_channels
    assert channels
    assert config.model.patch_size
    trained, held_out = trained_drawings(config, data.trained.rows), held_out_drawings(config, data)
    key: dict[str, str | int | float | bool | None] = {
        "format": 1,
        "teacher": teacher.fingerprint,
        "image_size": config.data.image_size,
        "computed_in": name_of(dtype),
    }
    store = Store.open(Path(config.cache.folder), "trajectories", key)
    everything = [*trained, *held_out]
    missing, steps = len(store.missing(ids_of(everything))), teacher.sampling.num_inference_steps
    if missing:
        row_bytes = (steps + 1) * channels * side**2 * STORED.itemsize
        log.info(
            f"{missing:,} {'trajectory' if missing == 1 else 'trajectories'} of {steps} "
            f"{plural(steps, 'step')} to draw once, into {store.folder} "
            f"({missing * row_bytes / 2**20:,.1f} MiB)"
        )
        check_space(store.folder, missing * row_bytes)
        model, objective = (
            teacher.model(text_size, device, dtype),
            build_objective(teacher.opened.config),
        )
        at_once = AT_ONCE
        if device.type == "cpu":
            tokens = (side // config.model.patch_size) ** 2
            at_once = max(1, min(AT_ONCE, TOKENS_AT_ONCE // tokens))
        shape = (channels, side, side)

        def make(indices: list[int]) -> list[Tensor | str]:
            reasons = {i: why for i in indices if (why := _why_not_read(words, everything[i]))}
            some = [everything[i] for i in indices if i not in reasons]

            def drawn(size: int) -> list[Tensor]:
                parts = [some[i : i + size] for i in range(0, len(some), size)]
                how = (teacher.sampling, shape, dtype)
                states = (draw_trajectories(model, objective, words, p, *how) for p in parts)
                return [one.to(STORED).cpu() for part in states for one in part]

            states = iter(in_parts_that_fit(len(some), drawn) if some else ())
            return [reasons[i] if i in reasons else next(states) for i in indices]

        began, progress = time.monotonic(), progress_lines(log, "trajectories drawn")
        per_shard = max(at_once, min(MOST_ROWS, MOST_BYTES // row_bytes) // at_once * at_once)
        fill(store, ids_of(everything), make, per_shard, at_once, progress)
        log.info(f"trajectories drawn in {format_duration(time.monotonic() - began)}")
    sampling = teacher.sampling
    timesteps = build_objective(config).noise_schedule.inference_timesteps(
        steps, sampling.shift, sampling.timestep_power
    )
    return Trajectories(store, trained, timesteps), Trajectories(store, held_out, timesteps)


def _why_not_read(words: Words, drawing: Drawing) -> str:
    """Why this caption cannot be drawn; empty if it can."""
    try:
        words.encode([drawing.caption])
    except ImageError as error:
        return str(error)
    return ""


def trained_drawings(config: Config, rows: Sequence[Row]) -> list[Drawing]:
    """What the student learns from: captions in shuffled turns, some of them paraphrases, some
    empty, as in training."""
    training, guidance = config.training, config.distill.guidance_range
    count = config.distill.num_trajectories or usual_count(len(rows), training.max_minutes)
    # Shuffled, for there may be fewer drawings than images, which may be sorted by what they show.
    drawings, order = [], FullShuffle(len(rows), training.seed)
    for number in range(count):
        generator = seeded_generator(training.seed, "trajectory", number)
        drop, other, which = torch.rand(3, generator=generator).tolist()
        captions = rows[order.position(number)].captions
        caption = captions[0]
        if len(captions) > 1 and other >= config.data.main_caption_share:
            caption = captions[1 + int(which * (len(captions) - 1))]
        caption = "" if drop < training.caption_dropout else caption
        scale = guidance and spread(number, *guidance, training.seed)
        drawings.append(Drawing(caption, _noise_seed(generator), scale))
    return drawings


def spread(number: int, low: float, high: float, seed: int) -> float:
    """The guidance scale of a drawing: of any number of drawings, all parts of the range have about
    as many (an additive recurrence with the golden ratio, which leaves no large gaps; Knuth, The
    Art of Computer Programming 3, section 6.4)."""
    first = float(torch.rand((), generator=seeded_generator(seed, "guidance"), dtype=torch.float64))
    return round(low + (first + number * GOLDEN) % 1 * (high - low), 4)


def usual_count(images: int, minutes: float | None) -> int:
    """How many trajectories are drawn for so many training images and minutes of training."""
    count = PER_IMAGE * images if minutes is None else int(PER_MINUTE * minutes)
    return max(LEAST, min(MOST, count))


def held_out_drawings(config: Config, data: Data) -> list[Drawing]:
    """What the student is measured with, at the guidance scale that it draws with by default."""
    rows = data.held_out.rows
    scale = None if config.distill.guidance_range is None else config.sampling.guidance_scale
    chosen = evenly_spaced(len(rows), config.training.heldout_pictures)
    return [
        Drawing(
            rows[i].captions[0],
            _noise_seed(seeded_generator(config.training.seed, "held-out trajectory", i)),
            scale,
        )
        for i in chosen
    ]


def _noise_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


def ids_of(drawings: Sequence[Drawing]) -> np.ndarray:
    """uint8 [N, 16]"""
    return np.frombuffer(b"".join(d.id for d in drawings), dtype=np.uint8).reshape(-1, 16)


@torch.no_grad()
def draw_trajectories(
    model: TextToImage,
    objective: Objective,
    words: Words,
    drawings: Sequence[Drawing],
    sampling: SamplingConfig,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
) -> Tensor:
    """Draw, and keep every state: float32 [B, steps + 1, C, h, w], on the model's device.

    Args:
        shape: (C, h, w) of what is denoised.
    """
    device = next(model.parameters()).device
    text, null = read(model, words, [d.caption for d in drawings], "", None, dtype)
    scales = None
    if any(d.guidance is not None for d in drawings):
        own = [sampling.guidance_scale if d.guidance is None else d.guidance for d in drawings]
        scales = torch.tensor(own, device=device)
    denoise = guided_denoiser(model, objective, text, null, sampling, dtype, scales=scales)
    streams = [torch.Generator().manual_seed(d.seed) for d in drawings]
    x = torch.stack([torch.randn(shape, generator=stream) for stream in streams]).to(device)
    timesteps = inference_timesteps(sampling, objective.noise_schedule)
    states: dict[float, Tensor] = {}

    def seen(x: Tensor, timestep: float) -> Tensor:
        states[timestep] = x  # Heun's method looks first at a guess, then at the state itself
        return denoise(x, timestep)

    last = SOLVERS[sampling.scheduler_type](seen, x, timesteps, objective.noise_schedule)
    # While a solver waits (zero_init_steps) the noise stays what it is.
    waited = [x] * sampling.zero_init_steps
    return torch.stack([*waited, *(states[t] for t in timesteps[:-1].tolist()), last], dim=1)
