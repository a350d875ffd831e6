"""`limner train-autoencoder`: a small diffusers AutoencoderKL, fitted to the user's own pictures.

For pictures that published autoencoders draw badly (pixel art, scans, spectra), and for machines
that cannot reach the Hub. What it writes is a folder for `vae.pretrained_model_name`.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from limner import device as devices
from limner import memory
from limner.apps.autoencoder.fit import Fit
from limner.apps.autoencoder.losses import psnr, ssim
from limner.checkpoint.locate import checkpoints
from limner.checkpoint.manifest import written_whole
from limner.config import Config, VaeConfig
from limner.data.dataset import ImageError, shown_set
from limner.data.examples import DecodedImages
from limner.data.images import to_pil
from limner.data.open import open_data, squares
from limner.data.order import evenly_spaced
from limner.data.own_folder import keep_out_of_the_data
from limner.errors import LimnerError
from limner.files.atomic import is_staging, recover, refuse_mounted, remove
from limner.files.folder_lock import FolderLock
from limner.files.output_folders import foreign_names
from limner.inference.contact_sheet import contact_sheet
from limner.version import __version__

MEASURED, SHOWN = 256, 12
"""Pictures of each split that are measured, and that are shown."""
RESULTS, SHEET = "results.json", "reconstructions.png"
WRITTEN = (RESULTS, SHEET, "config.json", "diffusion_pytorch_model.safetensors")


def train_autoencoder(config: Config, output: Path) -> dict[str, Any]:
    """Fit an autoencoder to the trained pictures and write it, whole or not at all.

    Until then its checkpoints are in `fitting_folder(output)`; the same call goes on from there.

    Args:
        config: its `data`, `autoencoder`, `optimizer.type`, and of `training` the seed, device,
            precision, `save_steps`, and `save_errors`.
        output: the folder to write: config.json and weights as save_pretrained writes them,
            results.json, reconstructions.png (held-out pictures, each beside what is left of it).

    Returns:
        What results.json holds.

    Raises:
        Stopped: a signal asked for it; what was learned is saved.
        LimnerError: the folder holds something else, there are no pictures, or what is not finished
            yet has other settings.
        OSError: it could not be written; what was learned is saved.
    """
    keep_out_of_the_data(output, config, "--output")
    keep_out_of_the_data(fitting_folder(output), config, "--output")
    with FolderLock(output, "choose another --output") as lock:
        return _train_autoencoder(config, output, lock)


def check_replaceable(folder: Path) -> None:
    """Raises LimnerError if the folder holds anything that no earlier autoencoder is made of: it is
    replaced as a whole."""
    refuse_mounted(folder)
    ours = WRITTEN if (folder / RESULTS).is_file() else ()
    if others := foreign_names(folder, ours):
        raise LimnerError(
            f"{folder} is not empty and is not an earlier autoencoder (it contains {others[0]}), "
            "so it is not overwritten; choose another --output"
        )


def check_checkpoints_folder(folder: Path) -> None:
    """Raises LimnerError if the folder in which checkpoints wait holds anything else: it is removed
    at the end."""
    if others := _no_checkpoints(folder):
        raise LimnerError(
            f"{folder}, where the checkpoints of this autoencoder are kept until it is finished, "
            f"contains {others[0]}; move that elsewhere, or choose another --output"
        )


def _no_checkpoints(folder: Path) -> list[str]:
    """Of what is in the folder in which checkpoints wait, what is none."""
    others = foreign_names(folder)
    return [n for n in others if not (re.fullmatch(r"checkpoint-\d+", n) or is_staging(n))]


def _train_autoencoder(config: Config, output: Path, lock: FolderLock) -> dict[str, Any]:
    settings = config.autoencoder
    recover(output)  # an earlier one
    recover(fitting_folder(output))
    check_replaceable(output)
    check_checkpoints_folder(fitting_folder(output))
    if config.data.image_size % settings.downsampling:
        raise LimnerError(
            f"data.image_size: {config.data.image_size} is not divisible by "
            f"autoencoder.downsampling {settings.downsampling}"
        )
    # The configuration may already name the folder that is to be written here.
    data = open_data(squares(config.model_copy(update={"vae": VaeConfig()})))
    device = devices.choose_device(config.training.device)
    dtype = devices.part_precision(
        devices.choose_precision(config.training.mixed_precision, device)
    )
    memory.keep_freed_memory()
    fit = Fit(config, data.trained, device, dtype, fitting_folder(output), lock)
    fit.run()
    lock.check()
    model, state = fit.averaged, fit.state
    _normalise(model, data.trained, device)
    measured = {
        name: _measure(model, images, device)
        for name, images in (("trained", data.trained), ("held_out", data.held_out))
        if len(images.rows)
    }
    shown = data.held_out if len(data.held_out.rows) else data.trained
    sheet = _reconstructions(model, shown, device)
    results = {
        **measured,
        "pictures": {"trained": len(data.trained.rows), "held_out": len(data.held_out.rows)},
        "dataset": shown_set(data.set)["description"],
        "image_size": config.data.image_size,
        "downsampling": settings.downsampling,
        "latent_channels": settings.latent_channels,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": state.step,
        "crops": state.images,
        "minutes": round(state.seconds / 60, 2),
        "device": devices.describe(device),
        "precision": devices.name_of(dtype),
        "settings": settings.model_dump(mode="json"),
        "versions": {"limner": __version__, "torch": torch.__version__},
    }
    needed = sum(tensor.nbytes for tensor in model.state_dict().values())
    with written_whole(output, False, needed, check_replaceable) as staging:
        model.save_pretrained(staging)
        sheet.save(staging / SHEET)
        (staging / RESULTS).write_text(json.dumps(results, indent=1), encoding="utf-8")
    _remove_checkpoints(fit.folder)
    return results


def _remove_checkpoints(folder: Path) -> None:
    if not folder.is_dir():
        return
    if not _no_checkpoints(folder):
        remove(folder)
        return
    for found in checkpoints(folder):  # what somebody put beside them meanwhile stays
        remove(found)


def fitting_folder(output: Path) -> Path:
    """Where the checkpoints are until the autoencoder is written."""
    return output.with_name(f"{output.name}-unfinished")


def sentences(results: dict[str, Any], output: Path) -> list[str]:
    """What came out, in words, and what to do with it."""
    said = [
        f"{name.replace('_', ' ')} pictures: PSNR {figures['psnr']:.2f} dB, SSIM "
        f"{figures['ssim']:.4f} (mean of {figures['count']})"
        for name, figures in results.items()
        if isinstance(figures, dict) and "psnr" in figures
    ]
    return [
        *said,
        f"look at {output / 'reconstructions.png'}, and train in its latent space with",
        f"  limner train vae.pretrained_model_name={output} ...",
    ]


def _images(images: DecodedImages, most: int) -> list[Tensor]:
    found = []
    for position in evenly_spaced(len(images.rows), most):
        try:
            found.append(images.tensor(position))
        except ImageError:
            continue
    return found


@torch.no_grad()
def _normalise(model: Any, images: DecodedImages, device: torch.device) -> None:
    """Set shift and scale such that the latents of trained pictures have mean 0 and std 1."""
    latents = [
        model.encode(image[None].to(device)).latent_dist.mode().cpu()
        for image in _images(images, MEASURED)
    ]
    std, mean = torch.std_mean(torch.cat(latents))
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise LimnerError(
            f"the latents of this autoencoder have mean {mean:g} and standard deviation {std:g}: "
            "training has failed. Delete the folder of its checkpoints and start over with a lower "
            "autoencoder.learning_rate; an earlier autoencoder is unchanged"
        )
    model.register_to_config(shift_factor=float(mean), scaling_factor=1 / float(std))


@torch.no_grad()
def _round_trip(model: Any, image: Tensor, device: torch.device) -> Tensor:
    """[3, S, S] in [-1, 1] -> the same, encoded, decoded, and within the range."""
    latent = model.encode(image[None].to(device)).latent_dist.mode()
    return model.decode(latent).sample[0].clamp(-1, 1).cpu()


def _measure(model: Any, images: DecodedImages, device: torch.device) -> dict[str, float]:
    ratios, similarities = [], []
    for image in _images(images, MEASURED):
        both = torch.stack([_round_trip(model, image, device), image]) / 2 + 0.5
        ratios.append(float(psnr(both[:1], both[1:])))
        if image.shape[-1] >= 11:
            similarities.append(float(ssim(both[:1], both[1:])))
    return {
        "count": len(ratios),
        "psnr": round(sum(ratios) / len(ratios), 3),
        "ssim": round(sum(similarities) / max(1, len(similarities)), 4),
    }


def _reconstructions(model: Any, images: DecodedImages, device: torch.device) -> Image.Image:
    """Each original beside what is left of it."""
    sheet, labels = list[Tensor](), list[str]()
    for original in _images(images, SHOWN):
        decoded = _round_trip(model, original, device)
        decibels = float(psnr(decoded[None] / 2 + 0.5, original[None] / 2 + 0.5))
        sheet += [original, decoded]
        labels += ["original", f"{decibels:.1f} dB"]
    return contact_sheet(to_pil(torch.stack(sheet)), labels)
