"""A checkpoint to take elsewhere: one file of weights, or a folder that diffusers loads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from limner.apps.publishing.diffusers_folder import is_export, write_diffusers_folder
from limner.apps.publishing.public import public_config
from limner.checkpoint.find_model import WEIGHTS_FILE
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
    """Write the weights to draw with, whole or not at all.

    Args:
        checkpoint: a checkpoint folder, a run folder, or an exported file of weights.
        output: the folder to write; for `safetensors` also the file, by a name that ends so.
        dtype: of the model's weights. Pretrained parts never become float16, in which the
            activations of some are too large for a number.
        vae, text_encoder: where the pretrained parts are now, if not where they were in training.
        averaged: the averaged weights, which draw better, and not those of the last update. A run
            without an average has only the latter.

    Returns:
        The file or the folder that was written.

    Raises:
        LimnerError: no good checkpoint, parts that cannot be had, a format or dtype that is not
            known, or something else than an earlier export is where this one should go.
        OSError: it could not be written.
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
            f"{checkpoint} contains only one set of weights; the others are in the checkpoint it "
            "was exported from"
        )
    keep_out_of_the_data(output, opened.config, "--output", checkpoint)
    config = moved(opened.config, vae=vae, text_encoder=text_encoder)
    weights = in_precision(opened.tensors(averaged), dtype)
    if format == "safetensors":
        write_weights_file(
            output,
            weights,
            public_config(config),
            opened.tokenizer,
            opened.state,
            opened.lineage.public(),
        )
        return output
    refuse_foreign(output)
    with written_whole(output, check=refuse_foreign) as staging:
        parts = open_parts(config)
        write_diffusers_folder(staging, parts, opened.tokenizer, weights, part_dtype(dtype))
        write_lineage(staging, opened.lineage.public())
    return output


def in_precision(weights: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Raises LimnerError for a dtype that is not known, and numbers that it does not have."""
    _check("dtype", dtype, DTYPES)
    cast = {n: t.to(DTYPES[dtype]) if t.is_floating_point() else t for n, t in weights.items()}
    if lost := [n for n, t in cast.items() if not torch.isfinite(t).all()]:
        raise LimnerError(
            f"{lost[0]} contains values that {dtype} cannot represent (or NaN); use another dtype, "
            "or an earlier checkpoint"
        )
    return cast


def sizes(written: Path) -> list[str]:
    """A line for each file that was written, and for a folder one for all of them; bytes."""
    if written.is_file():
        return [f"{written.stat().st_size:>14,}  {written}"]
    found = {p.relative_to(written).as_posix(): p.stat().st_size for p in _files(written)}
    lines = [f"{size:>14,}  {name}" for name, size in found.items()]
    return [*lines, f"{sum(found.values()):>14,}  bytes in all"]


def _check(what: str, asked: str, known: Iterable[str]) -> None:
    if asked not in known:
        raise LimnerError(f"unknown {what} {asked!r}; use one of {', '.join(known)}")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def part_dtype(dtype: str) -> torch.dtype:
    """Of a pretrained text encoder beside a model in that precision."""
    return part_precision(DTYPES[dtype])


def refuse_foreign(folder: Path) -> None:
    """Raises LimnerError if `folder` is there and holds something else than an export."""
    refuse_mounted(folder)
    if not folder.exists() or is_export(folder):
        return
    if foreign_names(folder):
        raise LimnerError(
            f"{folder} already exists and is not an earlier export, contains other files, or was "
            "changed since, so it is not overwritten; use a new folder"
        )
