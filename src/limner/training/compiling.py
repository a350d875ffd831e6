"""torch.compile where it works: each block class is compiled once and shared by its instances."""

from __future__ import annotations

import logging

import torch

from limner import device as devices
from limner.models.shape_log import log_shapes
from limner.training.run import Run

log = logging.getLogger(__name__)


def compile_model(run: Run) -> None:
    """Compile the blocks and the last layer of the run's model, or say why not."""
    if log.isEnabledFor(logging.DEBUG):
        log_shapes(run.model)  # compiled code does not call its hooks
        return
    if not run.config.training.compile_model:
        return
    if reason := devices.why_not_compile(run.device):
        log.info(f"torch.compile is off, so training is slower: {reason}")
        return
    log.info("the first step compiles the model, which may take a minute or two")
    if run.config.data.buckets:
        devices.allow_shapes(len(run.config.data.buckets))
    for part in (run.model.denoiser, run.model.text_encoder):
        for block in getattr(part, "blocks", []):
            if run.sharded:  # gathering the weights stays outside
                block.forward = torch.compile(block.forward)
            else:
                block.compile()
    run.model.denoiser.final_layer.compile()
