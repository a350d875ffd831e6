"""Models of Limner in ComfyUI: copy this file into ComfyUI/custom_nodes (see docs/comfyui.md).

Four nodes: two that load a model, one that draws from words, one that begins from a picture. All
that draws is `limner.ImageGenerator`, so that a seed gives the picture of `limner generate`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from PIL import Image

try:
    from limner.errors import LimnerError
except ImportError as error:
    raise ImportError(
        f"Limner is not installed in ComfyUI's Python, {sys.executable}; install it there: "
        f'"{sys.executable}" -m pip install PATH_TO_LIMNER'
    ) from error

if TYPE_CHECKING:
    from limner import ImageGenerator

FOLDER = "limner"
"""ComfyUI/models/limner, and what extra_model_paths.yaml names so."""
MODEL = "LIMNER_MODEL"
"""The type of what the nodes are connected by."""
PRECISIONS = ["float32", "bfloat16", "float16"]
MOST_SEED = 2**53 - 1
"""ComfyUI's page cannot hold larger whole numbers exactly."""
MOST_PIXELS = 4096
"""Of width and height."""

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


class LoadModel:
    """A model of the folder models/limner."""

    CATEGORY = "Limner"
    DESCRIPTION = "A model from ComfyUI's folder models/limner: an exported file, or a run folder."
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": (sorted(models_here()),), "precision": precision()}}

    @classmethod
    def VALIDATE_INPUTS(cls, model: str | None) -> bool | str:
        """Instead of ComfyUI's own check of the list, which does not say what to do."""
        if model is None or model in models_here():  # None: it comes from another node
            return True
        folders = " or ".join(folder_paths.get_folder_paths(FOLDER))
        return (
            f"there is no model {model!r} in {folders}; put a file written by limner export, or a "
            "run folder, there, and press R"
        )

    @classmethod
    def IS_CHANGED(cls, model: str, precision: str) -> str:
        return state_of(models_here()[model])

    def load(self, model: str, precision: str) -> tuple[ImageGenerator]:
        return (opened(models_here()[model], precision),)


class LoadModelFromPath:
    """A model that lies anywhere."""

    CATEGORY = "Limner"
    DESCRIPTION = "A model by its path, or by its Hub id: owner/name."
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "run folder, checkpoint, .safetensors file of limner export, or Hub id"
        path = ("STRING", {"default": "", "placeholder": "outputs/demo", "tooltip": tooltip})
        return {"required": {"path": path, "precision": precision()}}

    @classmethod
    def IS_CHANGED(cls, path: str, precision: str) -> str:
        return state_of(as_path(path))

    def load(self, path: str, precision: str) -> tuple[ImageGenerator]:
        if not path.strip():
            raise ValueError("path is empty; give a run folder, a .safetensors file, or a Hub id")
        return (opened(as_path(path), precision),)


class TextToImage:
    """Pictures from a prompt."""

    CATEGORY = "Limner"
    DESCRIPTION = "Draws a prompt. The pictures of a batch have the seed, the next one, and so on."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        count = ("INT", {"default": 1, "min": 1, "max": 256, "tooltip": "number of pictures"})
        return {"required": drawing_inputs() | {"batch_size": count}}

    def draw(self, model: ImageGenerator, batch_size: int, **asked: Any) -> tuple[torch.Tensor]:
        return (pictures(model, [None] * batch_size, asked),)


class ImageToImage:
    """Pictures from pictures and a prompt."""

    CATEGORY = "Limner"
    DESCRIPTION = (
        "Changes each picture towards a prompt; it is scaled to cover the size, and cropped. The "
        "first is drawn with the seed, the second with the next one, and so on."
    )
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "how far to change the picture: 0 not at all, 1 until nothing of it is left"
        strength = {"default": 0.6, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": tooltip}
        own = {"image": ("IMAGE",), "strength": ("FLOAT", strength)}
        return {"required": drawing_inputs() | own}

    def draw(
        self, model: ImageGenerator, image: torch.Tensor, strength: float, **asked: Any
    ) -> tuple[torch.Tensor]:
        sources = [picture_of(one) for one in image]
        return (pictures(model, sources, {**asked, "strength": strength}),)


def precision() -> tuple[list[str], dict[str, Any]]:
    tooltip = "float32 gives the picture of limner generate; the others are faster on a GPU"
    return (PRECISIONS, {"default": PRECISIONS[0], "tooltip": tooltip})


def drawing_inputs() -> dict[str, Any]:
    """Inputs of both nodes that draw. Numbers that are not given are those of the model."""
    seed = {"default": 0, "min": 0, "max": MOST_SEED, "control_after_generate": True}
    steps = {"default": 0, "min": 0, "max": 1000, "tooltip": "0: as the model says"}
    tooltip = "-1: as the model says; 1: none. That of a distilled model is fixed"
    range_ = {"default": -1.0, "min": -1.0, "max": 100.0, "step": 0.1, "round": 0.01}
    guidance = {**range_, "tooltip": tooltip}
    pixels = {"default": 0, "min": 0, "max": MOST_PIXELS, "step": 8}
    side = {**pixels, "tooltip": "in pixels; 0: as it was trained"}
    return {
        "model": (MODEL,),
        "prompt": ("STRING", {"multiline": True, "default": ""}),
        "negative_prompt": ("STRING", {"multiline": True, "default": ""}),
        "seed": ("INT", seed),
        "steps": ("INT", steps),
        "guidance_scale": ("FLOAT", guidance),
        "width": ("INT", side),
        "height": ("INT", side),
    }


def models_here() -> dict[str, Path]:
    """Runs, checkpoints, and exported files in the folders of models, by their path in there."""
    found: dict[str, Path] = {}
    for top in map(Path, folder_paths.get_folder_paths(FOLDER)):
        for place, folders, files in os.walk(top, followlinks=True):
            here = Path(place)
            is_run = any(name.startswith("checkpoint-") for name in folders)
            if here != top and (is_run or {"training_state.json", "limner.safetensors"} & {*files}):
                folders.clear()  # what is in it is a part of it
                names = [""]
            else:
                names = [name for name in files if name.endswith(".safetensors")]
            for path in (here / name for name in names):
                found.setdefault(path.relative_to(top).as_posix(), path)
    return found


def as_path(typed: str) -> str:
    """Without the quotes that Windows puts around a copied path."""
    return typed.strip().strip('"')


def state_of(place: str | Path) -> str:
    """Another text once a model has changed, such as a run with a newer checkpoint: then ComfyUI
    loads it again."""
    path = Path(place).expanduser()
    names = ("*.safetensors", "training_state.json", "checkpoint-*/training_state.json")
    files = [path] if path.is_file() else sorted(one for name in names for one in path.glob(name))
    return str([(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in files])


def opened(place: str | Path, precision: str) -> ImageGenerator:
    """A model on ComfyUI's device. ComfyUI keeps it as long as `state_of` stays the same."""
    from limner import ImageGenerator

    # ComfyUI runs nodes in inference mode, whose tensors could be used in nothing else.
    with told_plainly(), torch.inference_mode(False):
        device = comfy.model_management.get_torch_device()
        return ImageGenerator(place, device=device, dtype=precision)


def pictures(
    model: ImageGenerator, sources: Sequence[Image.Image | None], asked: dict[str, Any]
) -> torch.Tensor:
    """A picture for each source, or for each None without one: [B, H, W, 3] float32 in [0, 1].

    Args:
        asked: values of `drawing_inputs`, and perhaps `strength`.
    """
    bar = Bar(len(sources))
    each = [asked["seed"] + number for number in range(len(sources))]
    settings: dict[str, Any] = {
        "num_inference_steps": asked["steps"] or None,
        "guidance_scale": None if asked["guidance_scale"] < 0 else asked["guidance_scale"],
        "negative_prompt": asked["negative_prompt"] or None,
        "width": asked["width"] or None,
        "height": asked["height"] or None,
        "progress": bar,
    }
    prompt, drawn = asked["prompt"], []
    with told_plainly():
        if "strength" not in asked:
            drawn = model.generate_batch([prompt] * len(sources), seeds=each, **settings)
        else:
            settings["strength"] = asked["strength"]
            for seed, source in zip(each, sources, strict=True):
                drawn.append(model.generate(prompt, seed=seed, init_image=source, **settings))
    return torch.from_numpy(np.stack([np.asarray(image) for image in drawn])).float() / 255


def picture_of(image: torch.Tensor) -> Image.Image:
    """One of ComfyUI's pictures, [H, W, 3 or 4] float in [0, 1]."""
    return Image.fromarray((image.float().clamp(0, 1) * 255).round().byte().cpu().numpy())


class Bar:
    """ComfyUI's progress bar and its button "Cancel", after each step of each batch."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.bar = comfy.utils.ProgressBar(total)

    def __call__(self, step: int, steps: int, x0: torch.Tensor) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(self.done * steps + len(x0) * step, self.total * steps)
        if step == steps:
            self.done += len(x0)


@contextmanager
def told_plainly() -> Iterator[None]:
    """Errors of Limner as the nodes call things: without the hyphens of the command line."""
    try:
        yield
    except LimnerError as error:
        raise LimnerError(re.sub(r"--(?=[a-z])", "", str(error))) from None


NODE_CLASS_MAPPINGS = {
    "LimnerLoadModel": LoadModel,
    "LimnerLoadModelFromPath": LoadModelFromPath,
    "LimnerTextToImage": TextToImage,
    "LimnerImageToImage": ImageToImage,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LimnerLoadModel": "Load Limner Model",
    "LimnerLoadModelFromPath": "Load Limner Model from Path",
    "LimnerTextToImage": "Limner Text to Image",
    "LimnerImageToImage": "Limner Image to Image",
}
