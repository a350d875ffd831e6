"""`limner train-autoencoder`: a small diffusers AutoencoderKL, fitted to the user's own pictures.

For pictures that published autoencoders draw badly (pixel art, scans, spectra), and for machines
that cannot reach the Hub. What it writes is a folder for `vae.pretrained_model_name`.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from limner import __version__
from limner import device as devices
from limner.config import AutoencoderConfig, Config, VaeConfig
from limner.data.examples import Pictures
from limner.data.order import position_of, seeded_generator
from limner.data.pictures import to_pil
from limner.data.rows import PictureError, shown_set
from limner.data.sources import open_data, squares
from limner.errors import LimnerError
from limner.inference.contact_sheet import contact_sheet
from limner.training.autoencoder_losses import kl_divergence, psnr, reconstruction_loss, ssim
from limner.training.heldout import spread
from limner.training.optimizer import Muon
from limner.training.progress import Progress

WARM_UP, DECAY_SHARE = 50, 0.4
EMA_HALF_LIFE = 100  # updates
MEASURED, SHOWN = 256, 12
"""Pictures of each split that are measured, and that are shown."""
RESULTS = "results.json"


def train_autoencoder(config: Config, output: Path) -> dict[str, Any]:
    """Fit an autoencoder to the trained pictures and write it, whole or not at all.

    Args:
        config: its `data`, `autoencoder`, and of `training` the seed, device, and precision.
        output: the folder to write: config.json and weights as save_pretrained writes them,
            results.json, reconstructions.png (held-out pictures, each beside what is left of it).

    Returns:
        What results.json holds.

    Raises:
        LimnerError: the folder holds something else, or there are no pictures.
    """
    settings = config.autoencoder
    if output.exists() and any(output.iterdir()) and not (output / RESULTS).is_file():
        raise LimnerError(
            f"{output} is not empty and no earlier autoencoder: name another --output"
        )
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
    devices.keep_freed_memory()
    began = time.perf_counter()
    model, steps = _fit(config, data.trained, device, dtype)
    minutes = (time.perf_counter() - began) / 60
    _normalise(model, data.trained, device)
    staging = output.with_name(f".{output.name}.writing")
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging)
    measured = {
        name: _measure(model, pictures, device)
        for name, pictures in (("trained", data.trained), ("held_out", data.held_out))
        if len(pictures.rows)
    }
    shown = data.held_out if len(data.held_out.rows) else data.trained
    _reconstructions(model, shown, device).save(staging / "reconstructions.png")
    results = {
        **measured,
        "pictures": {"trained": len(data.trained.rows), "held_out": len(data.held_out.rows)},
        "dataset": shown_set(data.set)["description"],
        "image_size": config.data.image_size,
        "downsampling": settings.downsampling,
        "latent_channels": settings.latent_channels,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "crops": steps * settings.batch_size,
        "minutes": round(minutes, 2),
        "device": devices.describe(device),
        "precision": devices.name_of(dtype),
        "settings": settings.model_dump(mode="json"),
        "versions": {"limner": __version__, "torch": torch.__version__},
    }
    (staging / RESULTS).write_text(json.dumps(results, indent=1), encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    os.replace(staging, output)
    return results


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
        f"look at {output / 'reconstructions.png'}, and train in its latents with",
        f"  limner train vae.pretrained_model_name={output} ...",
    ]


def build_autoencoder(settings: AutoencoderConfig) -> Any:
    """A small AutoencoderKL, freshly initialised; without attention, so that any size works."""
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise LimnerError(
            'train-autoencoder needs the package diffusers: pip install "limner[pretrained]"'
        ) from None
    stages = settings.downsampling.bit_length()
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=tuple(settings.base_channels * 2**i for i in range(stages)),
        layers_per_block=settings.layers_per_block,
        latent_channels=settings.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def _fit(
    config: Config, pictures: Pictures, device: torch.device, dtype: torch.dtype
) -> tuple[Any, int]:
    """The averaged model after the time or the steps that there are, and the steps."""
    settings, seed = config.autoencoder, config.training.seed
    torch.manual_seed(seed)
    model = build_autoencoder(settings).to(device=device, memory_format=torch.channels_last)
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    optimizers = _optimizers(model, config)
    seconds, began, step = settings.max_minutes * 60, time.perf_counter(), 0
    million = sum(p.numel() for p in model.parameters()) / 1e6
    with Progress() as progress:
        progress.message(
            f"{million:.2f}M parameters on {devices.describe(device)} in {devices.name_of(dtype)}; "
            f"{len(pictures.rows):,} pictures to learn from"
        )
        wanted = config.training.mixed_precision
        if note := devices.precision_note(wanted, device, "training.mixed_precision"):
            progress.message(note)
        loss_sum = torch.zeros((), device=device)
        while True:
            elapsed = time.perf_counter() - began
            # With a number of steps the rate follows these, so that a seeded run repeats itself.
            done = step / settings.max_steps if settings.max_steps else elapsed / seconds
            if done >= 1 or elapsed >= seconds:
                break
            share = min(1.0, (step + 1) / WARM_UP) * min(1.0, (1 - done) / DECAY_SHARE)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * share
            crops = _crops(config, pictures, step).to(device)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                posterior = model.encode(crops).latent_dist
                generator = seeded_generator(seed, "posterior", step)
                noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
                output = model.decode(posterior.mean + posterior.std * noise).sample
            loss = reconstruction_loss(output.float(), crops, settings.edge_weight)
            total = loss + settings.kl_weight * kl_divergence(posterior.mean, posterior.logvar)
            total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            decay = min(0.5 ** (1 / EMA_HALF_LIFE), step / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(averaged.parameters()), [p.detach() for p in model.parameters()], 1 - decay
                )
            step += 1
            loss_sum += loss.detach()
            if step % 20 == 0:
                speed = step * settings.batch_size / (time.perf_counter() - began)
                mean, loss_sum = float(loss_sum) / 20, torch.zeros_like(loss_sum)
                images, left = step * settings.batch_size, elapsed / max(done, 1e-9) * (1 - done)
                progress.update(step, settings.max_steps, images, speed, mean, None, left)
    return averaged, step


def _optimizers(model: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions between many channels and AdamW for the rest, or AdamW for all, as
    `optimizer.type` says."""
    learning_rate = config.autoencoder.learning_rate
    convolutions = [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
        and min(module.in_channels, module.out_channels) > 8
        and config.optimizer.type == "muon"
    ]
    taken = {id(p) for p in convolutions}
    rest = [p for p in model.parameters() if id(p) not in taken]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    ]
    if convolutions:
        optimizers.append(Muon(convolutions, learning_rate))
    return optimizers


def _crops(config: Config, pictures: Pictures, step: int) -> Tensor:
    """The squares of one update, from pictures in a seeded order: float32 [B, 3, crop, crop]."""
    settings, seed = config.autoencoder, config.training.seed
    side, size = min(settings.crop, config.data.image_size), config.data.image_size
    side -= side % settings.downsampling
    squares, count = list[Tensor](), step * settings.batch_size
    generator = seeded_generator(seed, "crops", step)
    tries = 0
    while len(squares) < settings.batch_size:
        position = position_of(count + tries, len(pictures.rows), seed)
        tries += 1
        if tries > settings.batch_size + len(pictures.rows):
            raise LimnerError("none of the pictures could be decoded: see the folder and its files")
        try:
            picture = pictures.tensor(position, bool(torch.rand((), generator=generator) < 0.5))
        except PictureError:
            continue  # named when the run in its latents starts; here the next one stands in
        top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for _ in "yx")
        squares.append(picture[:, top : top + side, left : left + side])
    return torch.stack(squares).contiguous(memory_format=torch.channels_last)


def _pictures(pictures: Pictures, most: int) -> list[Tensor]:
    found = []
    for position in spread(len(pictures.rows), most):
        try:
            found.append(pictures.tensor(position))
        except PictureError:
            continue
    return found


@torch.no_grad()
def _normalise(model: Any, pictures: Pictures, device: torch.device) -> None:
    """Set shift and scale such that the latents of trained pictures have mean 0 and std 1."""
    latents = [
        model.encode(picture[None].to(device)).latent_dist.mode().cpu()
        for picture in _pictures(pictures, MEASURED)
    ]
    std, mean = torch.std_mean(torch.cat(latents))
    model.register_to_config(shift_factor=float(mean), scaling_factor=1 / float(std))


@torch.no_grad()
def _round_trip(model: Any, picture: Tensor, device: torch.device) -> Tensor:
    """[3, S, S] in [-1, 1] -> the same, encoded, decoded, and within the range."""
    latent = model.encode(picture[None].to(device)).latent_dist.mode()
    return model.decode(latent).sample[0].clamp(-1, 1).cpu()


def _measure(model: Any, pictures: Pictures, device: torch.device) -> dict[str, float]:
    ratios, similarities = [], []
    for picture in _pictures(pictures, MEASURED):
        both = torch.stack([_round_trip(model, picture, device), picture]) / 2 + 0.5
        ratios.append(float(psnr(both[:1], both[1:])))
        if picture.shape[-1] >= 11:
            similarities.append(float(ssim(both[:1], both[1:])))
    return {
        "count": len(ratios),
        "psnr": round(sum(ratios) / len(ratios), 3),
        "ssim": round(sum(similarities) / max(1, len(similarities)), 4),
    }


def _reconstructions(model: Any, pictures: Pictures, device: torch.device) -> Image.Image:
    """Each original beside what is left of it."""
    sheet, labels = list[Tensor](), list[str]()
    for original in _pictures(pictures, SHOWN):
        decoded = _round_trip(model, original, device)
        decibels = float(psnr(decoded[None] / 2 + 0.5, original[None] / 2 + 0.5))
        sheet += [original, decoded]
        labels += ["original", f"{decibels:.1f} dB"]
    return contact_sheet(to_pil(torch.stack(sheet)), labels)
