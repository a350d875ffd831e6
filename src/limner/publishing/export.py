"""A checkpoint to take elsewhere: one file of weights, or a folder that diffusers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from limner.checkpoint_writing import written_whole
from limner.config import Config
from limner.config_choices import changed
from limner.device import part_precision
from limner.errors import LimnerError
from limner.models.parts import moved, open_parts
from limner.publishing.diffusers_folder import is_export, write_diffusers_folder
from limner.weights_file import SUFFIX, open_for_drawing, write_weights_file

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Format = Literal["safetensors", "diffusers"]
FILE_NAME = "limner.safetensors"
"""Of the file of weights, where only a folder was named."""


def export(
    checkpoint: str | Path,
    output: str | Path,
    format: Format = "safetensors",
    dtype: str = "float32",
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
) -> Path:
    """Write the weights to draw with (the averaged ones), whole or not at all.

    Args:
        checkpoint: a checkpoint folder, a run folder, or an exported file of weights.
        output: the folder to write; for `safetensors` also the file, by a name that ends so.
        dtype: of the model's weights. Pretrained parts never become float16, in which the
            activations of some are too large for a number.
        vae, text_encoder: where the pretrained parts are now, if not where they were in training.

    Returns:
        The file or the folder that was written.

    Raises:
        LimnerError: no good checkpoint, parts that cannot be had, or something else than an earlier
            export is where this one should go.
    """
    output = Path(output)
    opened = open_for_drawing(checkpoint)
    config = moved(opened.config, vae=vae, text_encoder=text_encoder)
    weights = in_precision(opened.tensors(), dtype)
    if format == "safetensors":
        path = output if output.suffix == SUFFIX else output / FILE_NAME
        write_weights_file(path, weights, without_paths(config), opened.tokenizer, opened.state)
        return path
    refuse_foreign(output)
    with written_whole(output) as staging:
        parts = open_parts(config)
        write_diffusers_folder(staging, parts, opened.tokenizer, weights, part_dtype(dtype))
    return output


def in_precision(weights: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    return {n: t.to(DTYPES[dtype]) if t.is_floating_point() else t for n, t in weights.items()}


def part_dtype(dtype: str) -> torch.dtype:
    """Of a pretrained text encoder beside a model in that precision."""
    return part_precision(DTYPES[dtype])


def without_paths(config: Config) -> Config:
    """Where things were on the machine it was trained on is nobody else's business."""
    plain = Config()
    return config.model_copy(
        update={
            "data": changed(config.data, dataset_path=plain.data.dataset_path),
            "training": changed(config.training, output_dir=plain.training.output_dir),
            "cache": changed(config.cache, folder=plain.cache.folder),
            "evaluation": changed(
                config.evaluation, reference=None, inception=None, dinov2=None, clip=None
            ),
        }
    )


def refuse_foreign(folder: Path) -> None:
    """Raises LimnerError if `folder` is there and holds something else than an export."""
    if not folder.exists() or is_export(folder):
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise LimnerError(
            f"{folder} is there already and holds more than an earlier export, so it is not "
            "replaced by one: name a folder that does not exist yet"
        )
