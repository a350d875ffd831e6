"""The teacher of a distillation: a finished model, and the settings that it draws with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch

from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.inherit import MEANING
from limner.checkpoint.single_file import WeightsFile
from limner.config import Config, SamplingConfig
from limner.config.defaults import changed
from limner.errors import LimnerError
from limner.inference.sampling import ready
from limner.models.text_to_image import TextToImage, build_model
from limner.training.init_from import open_origin

INSTEAD = {"ddpm": "ddim", "unipc": "dpmsolver++"}
"""For solvers without a trajectory of what the network saw: ddpm adds fresh noise at each step, and
unipc evaluates the network at guesses, which it then corrects."""


@dataclass(frozen=True)
class Teacher:
    """An opened model, not yet in memory.

    Attributes:
        sampling: its own solver and guidance, at the times of the student's steps. If the student
            is told the guidance scale, it is the student's own default here.
        fingerprint: "hash of its averaged weights.hash of `sampling`", with the range of guidance
            scales in the place of one that the student is told.
    """

    opened: Checkpoint | WeightsFile
    sampling: SamplingConfig
    fingerprint: str

    def model(self, text_size: int, device: torch.device, dtype: torch.dtype) -> TextToImage:
        """Its averaged weights, ready to draw."""
        model = build_model(self.opened.config, text_size)
        self.opened.load_weights(model, averaged=True)
        return ready(model, device, dtype)


def open_teacher(config: Config, same_drawing: bool = True) -> Teacher:
    """The model in `training.init_from`, from which this configuration's student is distilled.

    Args:
        same_drawing: whether it must still draw with the settings that the run began with.

    Raises:
        LimnerError: it is not there, is a student itself, is of another shape, or is not the one
            that the run began with.
    """
    name = config.training.init_from
    opened = open_origin(config)
    if opened is None:
        raise LimnerError(
            "model.flow_map: a model that draws in few steps is made from one that needs many; set "
            "training.init_from to that model, or use limner distill"
        )
    if found := _differences(opened.config, config):
        raise LimnerError(
            f"training.init_from: a student has the shape of its teacher, but {found[0]}; remove "
            "that key"
        )
    sampling = _sampling(opened.config.sampling, config)
    fingerprint = _fingerprint(opened, sampling, config.distill.guidance_range)
    before = config.distill.fingerprint
    if before is not None and before.partition(".")[0] != fingerprint.partition(".")[0]:
        raise LimnerError(
            f"training.init_from: {name} is not the teacher that this run began with "
            "(distill.fingerprint); put it back, or start again in another training.output_dir"
        )
    if same_drawing and before not in (None, fingerprint):
        raise LimnerError(
            f"training.init_from: {name} draws with other settings than when this run began, "
            "perhaps since limner sweep; put these back into its config.yaml, or start again in "
            "another training.output_dir"
        )
    return Teacher(opened, sampling, fingerprint)


def _differences(teacher: Config, student: Config) -> list[str]:
    keys = [("model", key) for key in type(student.model).model_fields]
    text = ("vocab_size", "hidden_size", "num_layers", "max_length")
    keys += [("text_encoder", key) for key in text]
    keys += [("scheduler", key) for key in MEANING] + [("vae", "fingerprint")]
    keys += [("data", "image_size")]
    return [
        f"{section}.{key} is {here} here and {there} there"
        for section, key in keys
        if key not in ("flow_map", "dropout")
        and (there := getattr(getattr(teacher, section), key))
        != (here := getattr(getattr(student, section), key))
    ]


def _sampling(own: SamplingConfig, config: Config) -> SamplingConfig:
    settings, student = config.distill, config.sampling
    scale = own.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
    if isinstance(scale, tuple):
        scale = student.guidance_scale
    steps = settings.num_inference_steps
    return changed(
        own,
        scheduler_type=INSTEAD.get(own.scheduler_type, own.scheduler_type),
        num_inference_steps=steps,
        guidance_scale=scale,
        shift=student.shift,
        timestep_power=student.timestep_power,
        zero_init_steps=min(own.zero_init_steps, steps - 1),
    )


def _fingerprint(
    opened: Checkpoint | WeightsFile,
    sampling: SamplingConfig,
    guidance: tuple[float, float] | None,
) -> str:
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(opened.tensors(averaged=True).items()):
        found.update(name.encode())
        found.update(tensor.contiguous().cpu().view(torch.uint8).numpy().data)
    settings = sampling.model_dump(mode="json")
    if guidance is not None:
        settings["guidance_scale"] = list(guidance)
    how = json.dumps(settings, sort_keys=True).encode()
    return f"{found.hexdigest()}.{hashlib.blake2b(how, digest_size=8).hexdigest()}"
