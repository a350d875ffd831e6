"""`limner estimate`: parameters, memory, disk, and time of a run, before it is started."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from limner import device as devices
from limner.config import Config
from limner.config.notes import notes
from limner.console import format_duration
from limner.memory import free_memory
from limner.messages import bytes_in_words, parameters_in_words, plural
from limner.training.batch_size import MOST, fitting, settle_batch
from limner.training.memory_probe import (
    GIB,
    MARGIN,
    images_in_memory,
    line,
    probe_quickly,
    probe_twice,
    with_training,
)
from limner.training.saving import checkpoints_kept

HOW_EXACT = "memory may be off by a fifth, time by a third"
"""Of a quick estimate, on a machine that does nothing else (benchmarks/README.md)."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take. Bytes, seconds, and counts."""

    device: str
    precision: str
    notes: tuple[str, ...]
    """What will not be as the configuration says."""
    parameters: int
    denoiser_parameters: int
    gflops_per_picture: float
    batch_size: int
    effective_batch: int
    weights: int
    averaged: int
    gradients: int
    optimizer: int
    activations: int
    """By how much the micro-batch raises the peak; 0: by nothing that can be measured."""
    rest: int
    """Program, libraries, compiled code, pictures kept in memory."""
    peak: int
    free: int
    checkpoint: int
    checkpoints_kept: int | None
    cache: int
    pictures_per_second: float
    share_of_matmul_peak: float | None
    """None: the machine was too busy to measure its peak."""
    seconds_to_encode: float
    steps: int | None
    seconds: float
    """Of the training itself."""
    advice: tuple[str, ...]
    full: bool
    """Measured in short runs as training does them; else quickly, in a few updates."""
    measured_batch_size: int
    """The largest micro-batch that was measured; what a larger one takes follows from it."""
    probe_seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        mib = bytes_in_words
        text = self.parameters - self.denoiser_parameters
        kept = ", all kept"
        if self.checkpoints_kept:
            whole = mib(self.checkpoint * self.checkpoints_kept)
            kept = f" x {self.checkpoints_kept} kept: {whole}"
        steps = f"{self.steps:,} steps" if self.steps else "as many steps as fit"
        said = [f"note          {sentence}" for sentence in self.notes]
        said += [
            f"parameters    {parameters_in_words(self.parameters)}: "
            f"{parameters_in_words(self.denoiser_parameters)} in the denoiser, "
            f"{parameters_in_words(text)} in the text encoder",
            f"work          {self.gflops_per_picture:.2f} GFLOP per training picture",
            f"memory        {mib(self.peak)} at its peak, of {mib(self.free)} free on "
            f"{self.device}:",
            f"              weights {mib(self.weights)}, their average {mib(self.averaged)}, "
            f"gradients {mib(self.gradients)}, optimizer {mib(self.optimizer)},",
            f"              {self._activations(mib)} {mib(self.rest)}",
            f"disk          checkpoints {mib(self.checkpoint)}{kept}"
            + (f", latents and embeddings {mib(self.cache)}" if self.cache else ""),
        ]
        if self.seconds_to_encode:
            said.append(f"encoding      {format_duration(self.seconds_to_encode)}, once")
        said.append(
            f"time          {format_duration(self.seconds)} of training, {steps}, at "
            f"{self.pictures_per_second:.1f} pictures/s{self._share_of_peak()}"
        )
        said += [f"advice        {sentence}" for sentence in self.advice]
        took = format_duration(self.probe_seconds)
        if self.full:
            return [*said, f"(from short runs that took {took})"]
        size = self.measured_batch_size
        return [
            *said,
            f"quick         from a few updates of up to {size} {plural(size, 'picture')}, not "
            f"compiled, in {took}: {HOW_EXACT}; --full measures short runs, for minutes",
        ]

    def _share_of_peak(self) -> str:
        if self.share_of_matmul_peak is None:
            return ""
        share = f"{self.share_of_matmul_peak:.0%}"
        return f" ({share} of a {self.precision} matrix product on this machine)"

    def _activations(self, mib: Callable[[float], str]) -> str:
        """Of what cannot be told from the rest, no figure is given: one picture at a time leaves
        nothing to compare with, and the activations of a small model fit into memory that was
        taken and given back before."""
        if self.batch_size == 1:
            return "activations of 1 picture at a time and the rest together"
        if self.activations < 2**20:
            return (
                f"activations of {self.batch_size} pictures at a time raise the peak by less than "
                "1 MiB, the rest"
            )
        return (
            f"activations {mib(self.activations)} for {self.batch_size} pictures at a time, "
            "the rest"
        )


def estimate(config: Config, full: bool = False) -> Estimate:
    """Measure a few updates in seconds; or short runs, at half of the batch and at all of it if
    there is room for that, as training does them, which takes minutes.

    Raises:
        LimnerError: the run could not even start, with its reason.
    """
    began = time.perf_counter()
    device = devices.choose_device(config.training.device)
    wanted = config.training.mixed_precision
    dtype = devices.choose_precision(wanted, device)
    all_notes = notes(config)
    if note := devices.precision_note(wanted, device, "training.mixed_precision"):
        all_notes.append(note)
    free = free_memory(device)
    if full:
        config = settle_batch(config, processes=1)
        small, large = probe_twice(config, free)
    else:
        config, small, large = measured_quickly(config, free)
    batch_size = config.training.micro_batch_size
    if cut := large["captions_cut"]:
        all_notes.append(cut)
    if shared := large.get("shared"):
        all_notes.append(f"{shared}: the time is for a machine as busy as this one was just now")
    if small["batch_size"] == large["batch_size"] < batch_size:
        all_notes.append(
            "memory is so short that only a batch of one picture was measured; a batch of "
            f"{batch_size} needs more"
        )
    fixed, per_image = line(small, large, "peak_bytes")
    fixed += images_in_memory(config, large["trained"] + large["held_out"])
    step_fixed, step_per_image = line(small, large, "seconds_per_step")
    step = max(step_fixed + step_per_image * batch_size, large["seconds_per_step"])
    weights = large["weight_bytes"]
    gradients = large["trained_bytes"]
    known = 2 * weights + gradients + large["optimizer_bytes"]
    steps, seconds = length_of(config, large["trained"], step)
    peak = round(fixed + per_image * batch_size)
    short = None
    if peak > free * MARGIN and not config.training.gradient_checkpointing:
        sparing = with_training(config, gradient_checkpointing=True)
        short = line(
            *(probe_twice(sparing, free) if full else probe_quickly(sparing)), "peak_bytes"
        )
    rows = large["trained"] * (2 if config.data.horizontal_flip else 1) + large["held_out"]
    return Estimate(
        device=devices.describe(device),
        precision=devices.name_of(dtype),
        notes=tuple(all_notes),
        parameters=large["parameters"],
        denoiser_parameters=large["denoiser_parameters"],
        gflops_per_picture=large["gflops_per_picture"],
        batch_size=batch_size,
        effective_batch=batch_size * config.training.gradient_accumulation_steps,
        weights=weights,
        averaged=weights,
        gradients=gradients,
        optimizer=large["optimizer_bytes"],
        activations=round(per_image * batch_size),
        rest=max(0, round(fixed - known)),
        peak=peak,
        free=free,
        checkpoint=large["checkpoint_bytes"],
        checkpoints_kept=checkpoints_kept(config),
        cache=round(
            rows * large.get("latent_bytes", 0) + large["captions"] * large.get("caption_bytes", 0)
        ),
        pictures_per_second=batch_size / step,
        share_of_matmul_peak=large["share_of_matmul_peak"],
        seconds_to_encode=rows * large.get("seconds_per_picture", 0.0)
        + large["captions"] * large.get("seconds_per_caption", 0.0),
        steps=steps,
        seconds=seconds,
        advice=tuple(advise(config, fixed, per_image, free, short)),
        full=full,
        measured_batch_size=large.get("measured_batch_size", large["batch_size"]),
        probe_seconds=time.perf_counter() - began,
    )


def measured_quickly(config: Config, free: int) -> tuple[Config, dict[str, Any], dict[str, Any]]:
    """The configuration with its batch size, and two measurements of `probe_quickly`."""
    settings = config.training
    if settings.batch_size != "auto":
        config = settle_batch(config, processes=1)
        return config, *probe_quickly(config)
    most = settings.effective_batch_size or MOST
    both = probe_quickly(with_training(config, batch_size=most, effective_batch_size=None))
    return settle_batch(config, 1, lambda config: fitting(config, free, *both)), *both


def advise(
    config: Config,
    fixed: float,
    per_image: float,
    free: float,
    checkpointed: tuple[float, float] | None = None,
) -> list[str]:
    """What to change if the run needs more memory than there is.

    Args:
        fixed, per_image: bytes of the peak, and what each picture of the micro-batch adds.
        checkpointed: the same two with gradient checkpointing, if that was measured.
    """
    batch, accumulation = (
        config.training.micro_batch_size,
        config.training.gradient_accumulation_steps,
    )
    room = free * MARGIN
    if fixed + per_image * batch <= room:
        return []
    said = []
    if checkpointed is not None:
        with_it = checkpointed[0] + checkpointed[1] * batch
        enough = "is enough" if with_it <= room else "is not enough by itself"
        said.append(
            f"training.gradient_checkpointing=true brings the peak to {with_it / GIB:.2f} GiB, "
            f"which {enough}; a step takes about a third longer"
        )
    fits = int((room - fixed) / per_image) if per_image else 0
    if fits >= 1:
        # The effective batch stays what it is: the largest divisor of it that fits.
        whole = batch * accumulation
        micro = max(n for n in range(1, fits + 1) if whole % n == 0)
        said.append(
            f"training.batch_size={micro} training.gradient_accumulation_steps={whole // micro} "
            f"fits, with the same effective batch of {whole}"
        )
    else:
        said.append(
            f"even a batch of one picture needs {(fixed + per_image) / GIB:.2f} GiB; use a "
            "smaller model.hidden_size or model.num_layers, or another machine"
        )
    if config.training.mixed_precision == "no" and devices.fast_bfloat16(torch.device("cpu")):
        said.append("training.mixed_precision=bf16 keeps smaller activations, and is faster here")
    return said


def length_of(config: Config, rows: int, step: float) -> tuple[int | None, float]:
    """Updates and seconds of the run, by the rules of training/budget.py."""
    settings = config.training
    images = settings.micro_batch_size * settings.gradient_accumulation_steps
    seconds = step * settings.gradient_accumulation_steps
    steps = settings.max_steps
    if steps is None and (settings.num_epochs or not settings.max_minutes):
        steps = math.ceil((settings.num_epochs or 100) * rows / images)
    bound = settings.max_minutes * 60 if settings.max_minutes else math.inf
    if steps is None:
        return round(bound / seconds), bound
    return steps, min(steps * seconds, bound)
