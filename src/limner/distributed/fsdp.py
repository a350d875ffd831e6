"""Sharding (FSDP2): weights, gradients, and optimizer states split over the processes of a run.

`torch.distributed.fsdp.fully_shard` gives each process a shard of every weight. A block's weights
are gathered for its forward and backward pass, block by block, and its gradients are averaged and
scattered as they are computed (Zhao et al. 2023, arXiv 2304.11277).

It is called directly and not through Accelerator.prepare: our optimizers are made after the model
is sharded, so that no parameters have to be swapped in them, and the loop calls backward itself.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import torch

from limner.files.atomic import write_text_whole
from limner.files.small_files import read_json
from limner.models.text_to_image import TextToImage

NOTES = "short-of-memory-{}.json"


def shard_model(model: TextToImage, device: torch.device, dtype: torch.dtype) -> None:
    """Shard the model; each process keeps its shard on its device. Every process must call this.

    The blocks' weights are sent and used in `dtype`, and their gradients are averaged in float32.
    The stored weights and the layers around the blocks stay float32 (autocast does the rest).

    Args:
        model: whole and the same in every process. It may be in host memory: then only one whole
            block at a time is on the device.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Inputs are not cast: a timestep of 999 is 1000 in bfloat16.
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for part in (model.text_encoder, model.denoiser):
        for block in getattr(part, "blocks", []):
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))


def note_pieces(folder: Path, process: int, micro_batch: int, pieces: int) -> None:
    """Note, for the next start of the run, into how many parts its micro-batches must be split."""
    text = json.dumps({"micro_batch": micro_batch, "pieces": pieces})
    write_text_whole(folder / NOTES.format(process), text)


def noted_pieces(folder: Path, micro_batch: int) -> int:
    """The number of parts into which micro-batches of this size must be split; 1 if not known."""
    pieces = 1
    for path in folder.glob(NOTES.format("*")):
        try:
            note = read_json(path)
            if note["micro_batch"] == micro_batch:
                pieces = max(pieces, int(note["pieces"]))
        except (OSError, ValueError, TypeError, KeyError):
            continue  # it will be found out again
    return min(pieces, micro_batch)


def forget_notes(folder: Path) -> None:
    """Delete the notes, which a checkpoint now contains."""
    with contextlib.suppress(OSError):  # then they only repeat what it says
        for path in folder.glob(NOTES.format("*")):
            path.unlink(missing_ok=True)
