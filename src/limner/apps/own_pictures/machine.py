"""What this machine does in a second and how much it can hold; what a model costs."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from limner import device as devices
from limner.config import Config
from limner.memory import free_memory
from limner.models.size import count_parameters
from limner.models.text_to_image import build_model
from limner.text.batch import TextEmbeddings
from limner.training.monitor.throughput import matmul_peak, training_flops

SHARE_OF_PEAK = {"cpu": 0.5, "cuda": 0.3, "mps": 0.3}
"""How much of the peak of a matrix product a whole training step reaches: 51 to 54% for the demo on
two CPU cores (benchmarks/training_speed.py); on GPUs a guess, on the low side."""
LEAST_STEP = {"cpu": 1e-3, "cuda": 0.03, "mps": 0.05}
"""Seconds in which a GPU is given the work of a step, which a small model does in less; a guess."""
TEXT_SIZE = 1000
"""Of the vocabulary, or the width of a pretrained text encoder: next to no part of the cost."""

DOWNSAMPLING = 8
"""Of most autoencoders."""


@dataclass(frozen=True)
class Machine:
    """What computes.

    Attributes:
        kind: cpu, cuda, or mps.
        name: for people.
        flops: of a training step, per second.
        memory: free bytes.
    """

    kind: str
    name: str
    flops: float
    memory: int

    @property
    def least_step(self) -> float:
        """Seconds of a training step, however small the model is."""
        return LEAST_STEP[self.kind]


@dataclass(frozen=True)
class Cost:
    """Of a model: its weights, and the FLOPs of training on one image."""

    parameters: int
    flops: float


def measure(config: Config) -> Machine:
    """The device and the precision that a configuration names, measured for about a second."""
    device = devices.choose_device(config.training.device)
    dtype = devices.choose_precision(config.training.mixed_precision, device)
    flops = SHARE_OF_PEAK[device.type] * matmul_peak(device, dtype)
    return Machine(device.type, devices.describe(device), flops, free_memory(device))


def input_side(config: Config) -> int:
    """Side of what the model is given: pixels, or latents of an autoencoder."""
    latent = config.vae.pretrained_model_name is not None
    return config.data.image_size // (DOWNSAMPLING if latent else 1)


def training_cost(config: Config, vocabulary: int | None = None) -> Cost:
    """Counted on a model without weights, once for each shape.

    Args:
        vocabulary: tokens of the built-in text encoder; None: about `TEXT_SIZE`.
    """
    key = (config.data.image_size, config.model, config.text_encoder, config.vae, vocabulary)
    if key not in _costs:
        _costs[key] = _counted(config, vocabulary or TEXT_SIZE)
    return _costs[key]


_costs: dict[Hashable, Cost] = {}


def _counted(config: Config, text_size: int) -> Cost:
    side, channels = input_side(config), config.model.in_channels or 3
    length = config.text_encoder.max_length or 64
    with torch.device("meta"):
        model = build_model(config, text_size).eval()
        x, t = torch.empty(1, channels, side, side), torch.empty(1)
        words: torch.Tensor | TextEmbeddings = torch.empty(1, length, dtype=torch.long)
        if config.text_encoder.pretrained_model_name is not None:
            words = TextEmbeddings(
                torch.empty(1, length, text_size),
                torch.empty(1, length, dtype=torch.bool),
                torch.empty(1, text_size),
            )
        flops = training_flops(model, (x, t, words))
    return Cost(count_parameters(model), flops)
