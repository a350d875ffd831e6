"""ImageGenerator: generate pictures from prompts with a checkpoint."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from limner.checkpoint.matching import check_same_model
from limner.checkpoint.open_model import open_model
from limner.config import Config, SamplingConfig
from limner.config.types import SEEDS
from limner.data.buckets import ratio_of, size_for
from limner.data.images import to_pil
from limner.device import (
    choose_device,
    name_of,
    part_precision,
    precision_note,
    usable_precision,
    why_not_compile,
)
from limner.diffusion.flow_map import timesteps_from
from limner.diffusion.objective import build_objective
from limner.errors import LimnerError
from limner.inference.autoguidance import open_guide
from limner.inference.masks import Mask, outpainted, read_mask
from limner.inference.sampling import Guide, Progress, draw, ready
from limner.inference.sampling_settings import inference_timesteps, sampling_settings
from limner.inference.saving import remember
from limner.inference.unfamiliar import far_in_words
from limner.inference.variations import ImageSource, InitImage, Interpolation, fitted
from limner.memory import is_out_of_memory
from limner.messages import shorten
from limner.models.text_to_image import build_model
from limner.pretrained.components import moved, open_parts
from limner.pretrained.text_encoder import PretrainedTextEncoder
from limner.text.tokenizer import CaptionTokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
USUAL_STRENGTH = 0.6
MOST_TOKENS = 2**16
"""The most patches of a picture, 256 x 256; models are trained on about 16 x 16."""

log = logging.getLogger(__name__)


class ImageGenerator:
    """Generates pictures from a checkpoint, which contains its own configuration.

    Args:
        checkpoint: a checkpoint folder, a run folder (its newest checkpoint), a .safetensors
            file that `limner export` wrote, or the Hub id of a published model, `owner/name` or
            `owner/name@revision`.
        scheduler_type: solver, one of ddpm, ddim, euler, heun, dpmsolver++, unipc; None: as
            configured.
        device: "cuda", "mps", "cpu", or a torch.device. None: the best available.
        dtype: "float32" generates the same picture (to 1/255) for any batch size; "bfloat16" or
            "float16" is faster.
        config: optional; only checked against the checkpoint's configuration.
        vae, text_encoder: paths of the pretrained components, if they were moved since training.
        guide: a weaker model trained in the same space, such as an earlier checkpoint of the run,
            to guide away from instead of the empty prompt (autoguidance, Karras et al. 2024, arXiv
            2406.02507).

    Raises:
        LimnerError: a missing or incomplete checkpoint, an unknown solver, a configuration of
            another model, or a guide trained in another space.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        scheduler_type: str | None = None,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        config: Config | None = None,
        vae: str | Path | None = None,
        text_encoder: str | Path | None = None,
        guide: str | Path | None = None,
    ) -> None:
        opened = open_model(checkpoint)
        if config is not None:
            check_same_model(opened.config, config)
        parts = open_parts(moved(opened.config, vae=vae, text_encoder=text_encoder))
        self.config, self.autoencoder = parts.config, parts.autoencoder
        self.sampling = sampling_settings(self.config, scheduler_type=scheduler_type)
        self.device = choose_device(str(device or "auto"))
        if dtype not in DTYPES:
            raise LimnerError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
        self.dtype = usable_precision(DTYPES[dtype], self.device)
        if note := precision_note(DTYPES[dtype], self.device, f"dtype {dtype}"):
            log.warning(note)
        self.objective = build_objective(self.config)
        part_dtype = part_precision(self.dtype)
        self.words: CaptionTokenizer | PretrainedTextEncoder
        if parts.text_encoder is not None:
            parts.text_encoder.load(self.device, part_dtype)
            self.words = parts.text_encoder
        else:
            assert opened.tokenizer is not None
            self.words = opened.tokenizer
        self.autoencoder.load(self.device, part_dtype)
        self.known_words = opened.words
        """Of the captions that its text encoder learned from; None: nobody knows them."""
        self.step, self.state = opened.state.step, opened.state
        model = build_model(self.config, self.words.text_size)
        opened.load_weights(model, averaged=True)
        self.model = ready(model, self.device, self.dtype)
        self.compiled = False
        self.patch = self.config.model.patch_size or 1
        self.guide: Guide | None = None
        if guide is not None:
            self.guide, theirs = open_guide(guide, self.config, self.words, self.device, self.dtype)
            self.patch = math.lcm(self.patch, theirs.model.patch_size or 1)

    def generate(
        self,
        prompt: str,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        height: int | None = None,
        width: int | None = None,
        **others: Any,
    ) -> Image.Image:
        """Generate one picture. An empty prompt gives an unconditional sample.

        Args:
            others: as `generate_batch` takes them.
        """
        return self.generate_batch(
            [prompt], num_inference_steps, guidance_scale, [seed], height, width, **others
        )[0]

    def generate_batch(
        self,
        prompts: Sequence[str],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seeds: Sequence[int] | int = 0,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 16,
        *,
        aspect_ratio: float | str | None = None,
        negative_prompt: str | None = None,
        init_image: ImageSource | None = None,
        strength: float | None = None,
        mask: ImageSource | None = None,
        outpaint: Sequence[int] | None = None,
        towards: Interpolation | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> list[Image.Image]:
        """Generate one picture per prompt, with the settings in its `info` (see
        `saving.how_drawn`).

        Args:
            num_inference_steps, guidance_scale: None: from the checkpoint's configuration.
            seeds: one per prompt, or one for all.
            height, width: in pixels. None: the training size.
            aspect_ratio: width over height, such as 1.5 or "3:2", instead of height and width:
                selects the closest size that was trained (see `data.buckets`).
            batch_size: maximum number of prompts per batch (a CPU is faster with fewer); the
                pictures do not depend on it.
            negative_prompt: prompt to guide away from, instead of the empty prompt (or of the
                guide's prediction).
            init_image: a picture to start from (file, bytes, or Pillow image). It is scaled to
                cover the size and center-cropped.
            strength: how far to change `init_image`, from 0 (unchanged) to 1 (ignored). None: 0.6,
                with a mask 1. Only about this fraction of the steps is run.
            mask: a picture of the size of `init_image` that is white (or transparent) where that is
                drawn anew. Everywhere else its pixels stay.
            outpaint: pixels to add to `init_image` at the left, top, right, and bottom, which are
                drawn. The size is that of both together, if no other is given.
            towards: prompts and seeds to interpolate to (see `interpolate`).
            progress: called as `progress(step, steps, x0)` after each step of each batch.
            settings: other keys of the `sampling` section of a configuration, such as
                `shift=3.0` or `guidance_interval=(0.2, 0.8)`.

        Raises:
            LimnerError: an invalid setting, size, or picture, or too few seeds.
        """
        self._check_prompts([*prompts, *([negative_prompt] if negative_prompt else [])])
        if outpaint is not None:
            init_image, mask = _with_margins(init_image, mask, outpaint)
            if height is None and width is None and aspect_ratio is None:
                width, height = init_image.size
        height, width, sampling = self.plan(
            height,
            width,
            aspect_ratio=aspect_ratio,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            **settings,
        )
        if self.model.is_flow_map:
            self._tell_of_unknown_steps(sampling)
        each = _one_each(seeds, len(prompts))
        start, kept = self._start(init_image, strength, mask, height, width, sampling)
        at_once = max(1, min(self.at_once(batch_size, height, width), len(prompts)))
        images: list[Image.Image] = []
        wanted = len(prompts)
        if self.compiled and (missing := -wanted % at_once):
            prompts, each = [*prompts, *[""] * missing], [*each, *[0] * missing]
            towards = towards and towards.with_more(missing)
        for first in range(0, len(prompts), at_once):
            some = slice(first, first + at_once)
            try:
                drawn = draw(
                    self.model,
                    self.objective,
                    self.words,
                    prompts[some],
                    each[some],
                    sampling,
                    height // self.autoencoder.downsampling,
                    width // self.autoencoder.downsampling,
                    self.dtype,
                    negative_prompt=negative_prompt,
                    guide=self.guide,
                    start=start,
                    towards=towards and towards.rows(some),
                    progress=progress,
                )
                some_images = to_pil(self.autoencoder.decode(drawn[: wanted - first]))
            except Exception as error:
                if at_once > 1 or not is_out_of_memory(error):
                    raise
                raise LimnerError(
                    f"out of memory for a picture of {width} x {height} pixels; use fewer pixels"
                ) from error
            images += [kept.put_back(image) for image in some_images] if kept else some_images
        how = {
            "model_step": self.step,
            "negative_prompt": negative_prompt,
            "strength": start and start.strength,
            "inpainted": True if kept else None,
            "guided_by_a_model": True if self.guide else None,
            "sampling": sampling.model_dump(mode="json"),
            "dtype": name_of(self.dtype),
        }
        for i, image in enumerate(images):
            way = towards and {
                "end_prompt": towards.prompts[i],
                "end_seed": towards.seeds[i],
                "weight": towards.weights[i],
            }
            remember(image, {"prompt": prompts[i], "seed": each[i], "towards": way, **how})
        return images

    def plan(
        self,
        height: int | None = None,
        width: int | None = None,
        *,
        aspect_ratio: float | str | None = None,
        negative_prompt: str | None = None,
        **settings: Any,
    ) -> tuple[int, int, SamplingConfig]:
        """What `generate_batch` would draw with these arguments, without drawing.

        Returns:
            (height, width) in pixels, and the sampling settings.

        Raises:
            LimnerError: it would refuse them, whatever the prompt.
        """
        height, width = self._size(height, width, aspect_ratio)
        sampling = sampling_settings(
            self.config.model_copy(update={"sampling": self.sampling}), **settings
        )
        if self.model.is_flow_map and (negative_prompt or self.guide):
            raise LimnerError(
                "a distilled model cannot be guided away from another prompt or model: its "
                "guidance was fixed when it was made; use the model it was made from"
            )
        return height, width, sampling

    def notes(
        self,
        prompts: Sequence[str],
        height: int | None = None,
        width: int | None = None,
        *,
        aspect_ratio: float | str | None = None,
    ) -> list[str]:
        """Sentences about what this asks for that training did not show: words that were in no
        caption, a size far from the trained ones. Drawing works all the same.

        Raises:
            LimnerError: there cannot be such a size.
        """
        height, width = self._size(height, width, aspect_ratio)
        words = self.known_words and self.known_words.in_words(prompts)
        return [said for said in (words, far_in_words(height, width, self.config)) if said]

    def _tell_of_unknown_steps(self, sampling: SamplingConfig) -> None:
        """Of a distilled model: says which steps it knows, if these are others."""
        known, own = self.config.distill.numbers_of_steps, self.config.sampling
        times = (sampling.shift, sampling.timestep_power)
        same_times = times == (own.shift, own.timestep_power)
        if sampling.num_inference_steps not in known or not same_times:
            steps = list(map(str, known))
            log.warning(
                "this model was distilled for %s, or %s steps at its own shift; other steps look "
                "worse",
                ", ".join(steps[:-1]),
                steps[-1],
            )

    def _size(
        self, height: int | None, width: int | None, aspect_ratio: float | str | None
    ) -> tuple[int, int]:
        """(height, width) in pixels of what was asked for. Raises LimnerError if it cannot be."""
        size = self.config.data.image_size
        if aspect_ratio is not None:
            if height is not None or width is not None:
                raise LimnerError("--aspect_ratio cannot be combined with --height and --width")
            height, width = self.size_for(aspect_ratio)
        height, width = size if height is None else height, size if width is None else width
        self._check_sides(height, width)
        tokens = height * width // (self.autoencoder.downsampling * self.patch) ** 2
        if tokens > MOST_TOKENS:
            raise LimnerError(
                f"{width} x {height} pixels make {tokens:,} patches, more than the maximum of "
                f"{MOST_TOKENS:,} (the model was trained at {size} x {size}); use fewer pixels"
            )
        return height, width

    def size_for(self, aspect_ratio: float | str) -> tuple[int, int]:
        """(height, width) in pixels for width over height, as 1.5 or "3:2"."""
        data = self.config.data
        trained = data.buckets if isinstance(data.buckets, tuple) else ()
        unit = self.patch * self.autoencoder.downsampling
        return size_for(ratio_of(aspect_ratio), trained, data.image_size, unit)

    def compile(self) -> None:
        """Compile the network's blocks with torch.compile; pays off for many pictures.

        Compiled code has a fixed batch size, so a smaller last batch is padded. The kernels round
        differently: in float32 the pictures are the same to 1/255, in bfloat16 nearly.

        Raises:
            LimnerError: torch.compile does not work here; the message says why.
        """
        if reason := why_not_compile(self.device):
            raise LimnerError(
                f"torch.compile does not work on this machine ({reason}); generate without it"
            )
        for network in [self.model, *([self.guide.model] if self.guide else [])]:
            for block in network.denoiser.blocks:
                block.compile(dynamic=False)
        self.compiled = True

    def interpolate(
        self,
        prompt: str,
        end_prompt: str | None = None,
        count: int = 8,
        seed: int = 0,
        end_seed: int | None = None,
        **others: Any,
    ) -> list[Image.Image]:
        """Interpolate in equal steps from one prompt and seed to another, both ends included.

        Prompts are interpolated in their encoded text (see `variations.between` for texts of
        different lengths), seeds by spherical interpolation of the noise.

        Args:
            end_prompt, end_seed: None: same as the start.
            count: number of pictures, at least 2.
            others: as `generate_batch` takes them.
        """
        if count < 2:
            raise LimnerError(
                f"--interpolate {count}: must be at least 2, since both ends are drawn"
            )
        towards = Interpolation(
            [prompt if end_prompt is None else end_prompt] * count,
            [seed if end_seed is None else end_seed] * count,
            [i / (count - 1) for i in range(count)],
        )
        return self.generate_batch(
            [prompt] * count, seeds=[seed] * count, towards=towards, **others
        )

    def _check_prompts(self, prompts: Sequence[str]) -> None:
        """Check prompts before sampling: raises LimnerError if one is not text, logs if one is
        cut."""
        for prompt in prompts:
            if not isinstance(prompt, str):
                several = isinstance(prompt, list | tuple)
                raise LimnerError(
                    f"a prompt must be text, not {shorten(prompt)}"
                    + ("; use generate_batch for several prompts" if several else "")
                )
        for prompt in dict.fromkeys(prompts):
            try:
                prompt.encode("utf-8")
            except UnicodeEncodeError:
                raise LimnerError(
                    f"the prompt {ascii(prompt)[:80]} is not valid UTF-8; use a UTF-8 terminal or "
                    "file"
                ) from None
            length, most = self.words.length(prompt), self.words.max_length
            if length > most:
                log.warning(
                    "a prompt of %d tokens was truncated to %d, the most this model reads (%s)",
                    *(length, most, shorten(prompt)),
                )

    def _start(
        self,
        image: ImageSource | None,
        strength: float | None,
        mask: ImageSource | None,
        height: int,
        width: int,
        sampling: SamplingConfig,
    ) -> tuple[InitImage | None, Mask | None]:
        """The picture to start from, and what of it stays."""
        if image is None:
            if strength is not None or mask is not None:
                flag = "--strength" if mask is None else "--mask"
                raise LimnerError(f"{flag} requires --init_image")
            return None, None
        if strength is None:
            strength = USUAL_STRENGTH if mask is None else 1.0
        if not 0 <= strength <= 1:
            raise LimnerError(
                f"--strength {strength}: must be between 0 (the picture itself) and 1 (nothing of "
                "it)"
            )
        pixels = fitted(image, height, width)
        kept = None if mask is None else read_mask(mask, image, pixels)
        x0 = self.autoencoder.encode(pixels.to(self.device))
        timesteps = None
        if self.model.is_flow_map and strength < 1:
            steps = self.config.distill.num_inference_steps
            known = inference_timesteps(
                sampling.model_copy(update={"num_inference_steps": steps}),
                self.objective.noise_schedule,
            )
            timesteps = timesteps_from(strength, known, sampling.num_inference_steps)
        where = None if kept is None else kept.at(self.autoencoder.downsampling)
        return InitImage(x0, strength, timesteps, where), kept

    def at_once(self, most: int, height: int, width: int) -> int:
        """How many pictures of a size to generate in a batch. On a CPU only as many as fit its
        caches between layers: about 2,048 tokens, including those of guidance's second text."""
        if self.device.type != "cpu":
            return most
        patch = self.autoencoder.downsampling * (self.config.model.patch_size or 1)
        return max(1, min(most, 1024 // (height * width // patch**2)))

    def _check_sides(self, height: int, width: int) -> None:
        patch = self.patch * self.autoencoder.downsampling
        for name, value in (("height", height), ("width", width)):
            if value >= patch and value % patch == 0:
                continue
            below = value // patch * patch
            near = f"{below} or {below + patch}" if below > 0 else f"{patch}"
            far = far_in_words(height, width, self.config) if min(height, width) > 0 else None
            raise LimnerError(
                f"--{name} {value} is not a multiple of {patch}, the model's patch in pixels; use "
                f"{near}" + (f"; {far}" if far else "")
            )


def _with_margins(
    picture: ImageSource | None, mask: ImageSource | None, margins: Sequence[int]
) -> tuple[Image.Image, Image.Image]:
    if picture is None:
        raise LimnerError("--outpaint requires --init_image")
    if mask is not None:
        raise LimnerError("--outpaint cannot be combined with --mask")
    return outpainted(picture, margins)


def _one_each(seeds: Sequence[int] | int, count: int) -> list[int]:
    """A seed for each of `count` prompts. Raises LimnerError for a wrong number of them."""
    each = [seeds] * count if isinstance(seeds, int) else list(seeds)
    if bad := [seed for seed in each if not 0 <= seed < SEEDS]:
        raise LimnerError(f"seed {bad[0]} is not between 0 and 2^63 - 1")
    if len(each) != count:
        raise LimnerError(f"{count} prompts need one seed, or one each; got {len(each)}")
    return each
