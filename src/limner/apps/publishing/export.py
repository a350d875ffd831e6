"""Export of a checkpoint as a single weights file or a diffusers folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from limner.apps.publishing.diffusers_folder import is_export, write_diffusers_folder
from limner.apps.publishing.model_spec import model_spec, title_of
from limner.apps.publishing.public import public_config, public_words
from limner.checkpoint.find_model import WEIGHTS_FILE
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.lineage import write_lineage
from limner.checkpoint.manifest import written_whole
from limner.checkpoint.open_model import open_model
from limner.checkpoint.single_file import SUFFIX, WeightsFile, write_weights_file
from limner.data.own_folder import keep_out_of_the_data
from limner.device import part_precision
from limner.errors import LimnerError
from limner.files.atomic import refuse_mounted
from limner.files.folder_lock import FolderLock
from limner.files.output_folders import foreign_names
from limner.pretrained.components import moved, open_parts

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Format = Literal["safetensors", "diffusers"]


def export(
    checkpoint: str | Path,
    output: str | Path,
    format: Format = "safetensors",
    dtype: str = "float32",
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    averaged: bool = True,
) -> Path:
    """Export a checkpoint for inference. The output is written atomically.

    Args:
        checkpoint: a checkpoint folder, a run folder, or an exported weights file.
        output: the output folder; for `safetensors` also a file name with this suffix.
        dtype: of the model weights. Pretrained components are never converted to float16, in which
            the activations of some overflow.
        vae, text_encoder: current paths of the pretrained components, if they moved after training.
        averaged: use the EMA weights, which give better images, instead of the raw weights. A run
            without EMA has only the latter.

    Returns:
        The file or the folder that was written.

    Raises:
        LimnerError: there is no valid checkpoint, a component is missing, the format or dtype is
            unknown, or the output contains something other than an earlier export.
        OSError: the output could not be written.
    """
    output = Path(output)
    _check("format", format, get_args(Format))
    if format == "safetensors" and output.suffix != SUFFIX:
        output = output / WEIGHTS_FILE
    with FolderLock(output, "choose another --output"):
        return _export(checkpoint, output, format, dtype, vae, text_encoder, averaged)


def _export(
    checkpoint: str | Path,
    output: Path,
    format: Format,
    dtype: str,
    vae: str | Path | None,
    text_encoder: str | Path | None,
    averaged: bool,
) -> Path:
    opened = open_model(checkpoint)
    if not averaged and isinstance(opened, WeightsFile):
        raise LimnerError(
            f"{checkpoint} contains only one set of weights; export from the original checkpoint "
            "instead"
        )
    keep_out_of_the_data(output, opened.config, "--output", checkpoint)
    config = moved(opened.config, vae=vae, text_encoder=text_encoder)
    weights = in_precision(opened.tensors(averaged), dtype)
    if format == "safetensors":
        public, lineage = public_config(config), opened.lineage.public()
        parameters = sum(tensor.numel() for tensor in weights.values())
        title = title_of(output) if isinstance(opened, Checkpoint) else None
        spec = model_spec(opened, public, lineage, parameters, title=title)
        written = opened.tokenizer, opened.state, lineage, public_words(opened), spec
        write_weights_file(output, weights, public, *written)
        return output
    refuse_foreign(output)
    with written_whole(output, check=refuse_foreign) as staging:
        parts = open_parts(config)
        write_diffusers_folder(staging, parts, opened.tokenizer, weights, part_dtype(dtype))
        write_lineage(staging, opened.lineage.public())
    return output


def in_precision(weights: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Cast the weights. Raises LimnerError if the dtype is unknown or cannot represent them."""
    _check("dtype", dtype, DTYPES)
    cast = {n: t.to(DTYPES[dtype]) if t.is_floating_point() else t for n, t in weights.items()}
    if lost := [n for n, t in cast.items() if not torch.isfinite(t).all()]:
        raise LimnerError(
            f"{lost[0]} contains values that {dtype} cannot represent (or NaN); use another dtype, "
            "or an earlier checkpoint"
        )
    return cast


def sizes(written: Path) -> list[str]:
    """A line with the size of each file in bytes, and for a folder the total."""
    if written.is_file():
        return [f"{written.stat().st_size:>14,}  {written}"]
    found = {p.relative_to(written).as_posix(): p.stat().st_size for p in _files(written)}
    lines = [f"{size:>14,}  {name}" for name, size in found.items()]
    return [*lines, f"{sum(found.values()):>14,}  bytes in total"]


def _check(what: str, asked: str, known: Iterable[str]) -> None:
    if asked not in known:
        raise LimnerError(f"unknown {what} {asked!r}; use one of {', '.join(known)}")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def part_dtype(dtype: str) -> torch.dtype:
    """The dtype of a pretrained text encoder for a model of `dtype`."""
    return part_precision(DTYPES[dtype])


def refuse_foreign(folder: Path) -> None:
    """Raises LimnerError if `folder` exists and is not an unmodified export."""
    refuse_mounted(folder)
    if not folder.exists() or is_export(folder):
        return
    if foreign_names(folder):
        raise LimnerError(
            f"{folder} already exists and is not an earlier export, contains other files, or was "
            "changed since, so it is not overwritten; use a new folder"
        )
