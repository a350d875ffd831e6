"""The processes of a run and their devices, through accelerate."""

from __future__ import annotations

import atexit

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from limner import device as devices
from limner.config import Config
from limner.distributed.processes import meeting, wait_for_others


def open_accelerator(config: Config) -> Accelerator:
    """The processes of this run, and this one's device. Raises LimnerError if they cannot connect,
    or if the device does not exist."""
    # Accelerate keeps one state per program and refuses another device; but a notebook may well
    # train first on the GPU and then on the CPU.
    if AcceleratorState._shared_state:
        AcceleratorState._reset_state(reset_partial_state=True)
    device = devices.choose_device(config.training.device)
    patience = wait_for_others(config.training.process_timeout)
    atexit.register(_leave)
    with meeting():
        return Accelerator(
            cpu=device.type == "cpu",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=patience)],
            project_dir=config.training.output_dir,
        )


def _leave() -> None:
    """Close the process group before Python exits: else its running threads abort the process
    (SIGABRT, "terminate called without an active exception") whatever its exit code."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
