"""Autoencoders: a pretrained one for latent space, or the identity for pixel space."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import torch
from torch import Tensor

from limner.config import VaeConfig
from limner.errors import LimnerError
from limner.memory import give_back_freed_memory
from limner.pretrained.hub import find_folder, read_config
from limner.pretrained.strips import in_strips

KEY = "vae.pretrained_model_name"
FAMILIES = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
USUAL_SCALING = {"AutoencoderKL": 0.18215}
"""Where config.json does not say (that of sd-vae-ft-mse), what diffusers takes it for; else 1."""


class IdentityAutoencoder:
    """The identity, for training in pixel space (no autoencoder)."""

    channels = 3
    downsampling = 1

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        pass

    def unload(self) -> None:
        pass

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class PretrainedAutoencoder:
    """A pretrained diffusers autoencoder: AutoencoderKL, AutoencoderTiny, or AutoencoderDC.

    Only its config.json is read until `load`.

    Raises:
        LimnerError: the autoencoder cannot be found, or is of an unsupported class.

    Attributes:
        channels: of the latents.
        downsampling: pixels per latent, in each direction.
    """

    def __init__(self, config: VaeConfig) -> None:
        assert config.pretrained_model_name is not None
        self.use_slicing, self.use_tiling = config.use_slicing, config.use_tiling
        self.folder = find_folder(config.pretrained_model_name, KEY, subfolder="vae")
        self.settings = read_config(self.folder)
        self.class_name = self.settings.get("_class_name")
        if self.class_name not in FAMILIES:
            raise LimnerError(
                f"{KEY}: {self.folder / 'config.json'} describes a {self.class_name}; supported "
                f"autoencoders are {', '.join(FAMILIES)}"
            )
        self.channels = int(self.settings.get("latent_channels", 4))
        self.downsampling = 2 ** (self._stages() - 1)
        self.model: Any = None
        self.loaded: tuple[torch.device, torch.dtype] | None = None

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Put the weights on the device, in `dtype` (float32 or bfloat16)."""
        if self.loaded == (device, dtype):
            return
        try:
            import diffusers
        except ImportError:
            raise LimnerError(
                f'{KEY} requires the package diffusers; run pip install "limner[pretrained]"'
            ) from None
        family = getattr(diffusers, str(self.class_name))
        give_back_freed_memory()  # what training has freed is not added to what is loaded now
        try:
            model, info = family.from_pretrained(
                self.folder,
                torch_dtype=dtype,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except Exception as error:  # damaged or foreign weights raise nearly anything
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise LimnerError(f"{KEY}: {self.folder} cannot be loaded: {reason}") from None
        if missing := sorted(info["missing_keys"]):
            raise LimnerError(
                f"{KEY}: {self.folder} lacks {len(missing)} weights of a {self.class_name}, such "
                f"as {missing[0]}; it is incomplete, or another kind of model"
            )
        # Channels last is what convolutions in bfloat16 run fastest in.
        model = model.to(device=device, memory_format=torch.channels_last)
        self.model = model.eval().requires_grad_(False)
        self.loaded = device, dtype

    def unload(self) -> None:
        """Free its memory."""
        self.model = self.loaded = None
        gc.collect()
        give_back_freed_memory()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures float32 [B, 3, H, W] in [-1, 1] -> latents float32 [B, C, h, w].

        The latents have about mean 0 and standard deviation 1. Where the autoencoder gives a
        distribution its mode is taken, so that a picture has one latent.
        """
        height, width = images.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            near = round(height / self.downsampling) * self.downsampling or self.downsampling
            raise LimnerError(
                f"data.image_size: {width} x {height} is not divisible by {self.downsampling}, the "
                f"pixels per latent of {self.folder}; use {near}"
            )

        def encode(some: Tensor) -> Tensor:
            encoded = self.model.encode(some)
            if self.class_name == "AutoencoderKL":
                return encoded.latent_dist.mode()
            return encoded.latents if self.class_name == "AutoencoderTiny" else encoded.latent

        mean, scale = self.normalisation(images.device)
        return (self._run(encode, images) - mean) * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents float32 [B, C, h, w] -> pictures float32 [B, 3, H, W], about [-1, 1]."""
        mean, scale = self.normalisation(latents.device)
        return self._run(lambda some: self.model.decode(some).sample, latents / scale + mean)

    def _run(self, part: Any, x: Tensor) -> Tensor:
        assert self.loaded, "load() comes first"
        dtype = self.loaded[1]
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        strips = in_strips(self.model) if self.use_tiling else contextlib.nullcontext()
        with strips:
            pieces = x.split(1) if self.use_slicing else [x]
            return torch.cat([part(piece).to(x.device).float() for piece in pieces]).contiguous()

    def normalisation(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(mean, scale), each [1, 1 or C, 1, 1], such that (z - mean) * scale is what a diffusion
        model should see."""
        usual = USUAL_SCALING.get(str(self.class_name), 1.0)
        scale = torch.tensor(float(self.settings.get("scaling_factor", usual) or 1.0))
        mean, std = self.settings.get("latents_mean"), self.settings.get("latents_std")
        if mean is not None and std is not None:  # as in diffusers' pipeline of SDXL
            means = torch.tensor(mean, dtype=torch.float32)
            scales = scale / torch.tensor(std, dtype=torch.float32)
        else:
            means = torch.tensor(float(self.settings.get("shift_factor") or 0.0))
            scales = scale
        return means.reshape(1, -1, 1, 1).to(device), scales.reshape(1, -1, 1, 1).to(device)

    def _stages(self) -> int:
        settings = self.settings
        name = "block_out_channels" if self.class_name == "AutoencoderKL" else (
            "encoder_block_out_channels"
        )  # fmt: skip
        channels = settings.get(name)
        if channels is None and self.class_name == "AutoencoderDC":
            return 6  # diffusers' default
        return len(channels or (64,) * 4)
