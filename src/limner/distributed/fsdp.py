"""Sharding (FSDP2): weights, gradients, and optimizer states split over the processes of a run.

`torch.distributed.fsdp.fully_shard` gives each process a part of every weight. A block's weights
are brought together for its forward and its backward pass, one block after the other, and its
gradients are averaged and shared out as they appear (Zhao et al. 2023, arXiv 2304.11277).

It is called directly and not through Accelerator.prepare: our optimizers are made after the model
is sharded, so that nothing has to be exchanged in them, and the loop has its own backward.
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
    """Shard the model, so that this process keeps its shard on its device; every process calls it.

    The blocks' weights travel and compute in `dtype`, and their gradients are averaged in float32;
    what is kept, and the layers around the blocks, stay float32 (autocast does the rest).

    Args:
        model: whole and the same in every process. It may be in the host's memory: only one
            block at a time is then on the device as a whole.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Inputs are left as they are: a timestep of 999 is 1000 in bfloat16.
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
    """Keep, for the next start of the run, that its micro-batches must be cut into more parts."""
    text = json.dumps({"micro_batch": micro_batch, "pieces": pieces})
    write_text_whole(folder / NOTES.format(process), text)


def noted_pieces(folder: Path, micro_batch: int) -> int:
    """In how many parts micro-batches of this size must go through the model; 1: not known."""
    pieces = 1
    for path in folder.glob(NOTES.format("*")):
        try:
            note = read_json(path)
            if note["micro_batch"] == micro_batch:
                pieces = max(pieces, int(note["pieces"]))
        except (OSError, ValueError, TypeError, KeyError):
            continue  # what it says will be found out again
    return min(pieces, micro_batch)


def forget_notes(folder: Path) -> None:
    """Delete the notes, which a checkpoint now contains."""
    with contextlib.suppress(OSError):  # then they say it once more
        for path in folder.glob(NOTES.format("*")):
            path.unlink(missing_ok=True)
