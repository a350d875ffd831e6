"""A short run in a subprocess that measures memory and time (`python -m limner.training.probe`).

    python -m limner.training.probe < request.json

It runs in its own process, so that its memory is measured alone and running out of it harms nothing
else. It does what training does, with compiling, the held-out loss, a preview, and a checkpoint;
latents and text embeddings that would have to be computed first are random.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.config import Config, load_config
from limner.console import say
from limner.data.dataset import Row
from limner.data.precomputed.sources import StoredCaptions
from limner.device import part_precision
from limner.files.process_identity import end_with_the_parent
from limner.models.size import count_parameters
from limner.pretrained.autoencoder import PretrainedAutoencoder
from limner.text.batch import TextEmbeddings
from limner.text.caption_lengths import lengths_of
from limner.text.words import stack
from limner.training.inputs import Inputs
from limner.training.monitor.run_log import read_log
from limner.training.trainer import Trainer

STEPS = 10
SAMPLE = 200
"""Number of captions among which the longest is sought."""


class MadeUpLatents:
    """A `Source` of random latents."""

    def __init__(self, rows: Sequence[Row], shape: tuple[int, ...]) -> None:
        self.rows = rows
        self.noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def tensor(self, position: int, flipped: bool = False) -> Tensor:
        return self.noise.clone()


class MadeUpCaptions(StoredCaptions):
    """Random text embeddings, each as long as the longest caption."""

    def __init__(self, length: int, width: int, dtype: torch.dtype) -> None:
        self.length = length
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(length, width, generator=generator).to(dtype)
        self.one = TextEmbeddings(states, torch.ones(length, dtype=torch.bool), states[0])

    def __call__(self, caption: str) -> TextEmbeddings:
        return self.one

    def encode(self, captions: Sequence[str]) -> TextEmbeddings:
        batch = stack([self.one for _ in captions])
        assert isinstance(batch, TextEmbeddings)
        return batch


def measure(config: Config) -> dict[str, Any]:
    """Train for a few steps, and measure memory and time."""
    with short_run(config) as trainer:
        trainer.train()
        run = trainer.run
        (speed,) = (e for e in read_log(run.folder / "log.jsonl") if e["kind"] == "speed")
        checkpoint = sum(f.stat().st_size for f in run.folder.glob("checkpoint-*/**/*"))
        return {
            "batch_size": run.config.training.micro_batch_size,
            "seconds_per_step": run.config.training.micro_batch_size / speed["images_per_second"],
            "share_of_matmul_peak": speed["mfu"],
            "gflops_per_picture": speed["training_gflops_per_picture"],
            "peak_bytes": peak_bytes(run.device),
            "checkpoint_bytes": checkpoint,
            **counts(trainer),
            **encoding(trainer),
        }


@contextlib.contextmanager
def short_run(config: Config, **changes: Any) -> Iterator[Trainer]:
    """A trainer of this configuration that leaves nothing behind and computes no inputs.

    Args:
        changes: keys of `training`.
    """
    with tempfile.TemporaryDirectory() as folder:
        short = {
            "training": {
                "output_dir": folder,
                "max_steps": STEPS,
                "max_minutes": None,
                "num_epochs": None,
                "logging_steps": STEPS,
                "save_steps": 10**9,
                "save_every_n_epochs": None,
                "heldout_steps": 10**9,
                "preview_steps": 10**9,
                "num_workers": 0,
                "effective_batch_size": None,
                "resume": "no",
                "trackers": ("none",),
                **changes,
            },
            "data": {"buckets": None},  # no size has more pixels than the square
            "sampling": {"num_inference_steps": 2},
        }
        config = config.model_copy(
            update={
                section: getattr(config, section).model_copy(update=changes)
                for section, changes in short.items()
            }
        )
        trainer = Trainer(config)
        trainer.run.inputs = made_up_inputs(trainer)
        yield trainer


def counts(trainer: Trainer) -> dict[str, Any]:
    """What can be counted once an update has made the optimizers' states."""
    weights = list(trainer.model.parameters())
    states = [
        value
        for optimizer in trainer.run.optimizers.values()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    return {
        "parameters": count_parameters(trainer.model),
        "denoiser_parameters": count_parameters(trainer.model.denoiser),
        "weight_bytes": sum(p.nbytes for p in weights),
        "trained_bytes": sum(p.nbytes for p in weights if p.requires_grad),
        "optimizer_bytes": sum(value.nbytes for value in states),
        "trained": len(trainer.data.trained.rows),
        "held_out": len(trainer.data.held_out.rows),
        "captions": len({c for r in trainer.data.set.rows for c in r.captions}),
        "captions_cut": lengths_of(trainer.data.trained.rows, trainer.run.reader).in_words(),
    }


def made_up_inputs(trainer: Trainer) -> Inputs:
    """Inputs for training, with random values where they would have to be precomputed."""
    config, parts, data = trainer.config, trainer.run.parts, trainer.data
    trained: Any = data.trained
    held_out: Any = data.held_out
    if isinstance(parts.autoencoder, PretrainedAutoencoder):
        side = config.data.image_size // parts.autoencoder.downsampling
        shape = (parts.autoencoder.channels, side, side)
        trained = MadeUpLatents(data.trained.rows, shape)
        held_out = MadeUpLatents(data.held_out.rows, shape)
    words: Any = trainer.run.tokenizer
    if parts.text_encoder is not None:
        rows = data.trained.rows
        sample = [c for r in rows[:: max(1, len(rows) // SAMPLE)] for c in r.captions]
        longest = max(
            min(parts.text_encoder.length(c), parts.text_encoder.max_length) for c in sample
        )
        words = MadeUpCaptions(
            longest, parts.text_encoder.width, getattr(torch, config.cache.dtype)
        )
    return Inputs(trained, held_out, words)


def encoding(trainer: Trainer) -> dict[str, float]:
    """Seconds to encode a picture and a caption, and the bytes that each takes in the store."""
    config, parts = trainer.config, trainer.run.parts
    device, dtype = trainer.run.device, part_precision(trainer.run.dtype)
    stored: torch.dtype = getattr(torch, config.cache.dtype)
    found: dict[str, float] = {}
    if isinstance(parts.autoencoder, PretrainedAutoencoder):
        size = config.data.image_size
        side = size // parts.autoencoder.downsampling
        parts.autoencoder.load(trainer.run.device, dtype)
        found["latent_bytes"] = parts.autoencoder.channels * side * side * stored.itemsize
        found["seconds_per_picture"] = _seconds(
            lambda: parts.autoencoder.encode(torch.zeros(1, 3, size, size, device=device)).cpu()
        )
        parts.autoencoder.unload()
    if parts.text_encoder is not None:
        caption = trainer.data.trained.rows[0].captions[0]
        parts.text_encoder.load(trainer.run.device, dtype)
        length = min(parts.text_encoder.length(caption), parts.text_encoder.max_length) + 1
        found["caption_bytes"] = length * parts.text_encoder.width * stored.itemsize
        found["seconds_per_caption"] = _seconds(lambda: parts.text_encoder.rows([caption]))
        parts.text_encoder.unload()
    return found


def _seconds(do: Any) -> float:
    do()
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has had, on the GPU if it computes there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return peak_resident()


def peak_resident() -> int:
    """The most memory this process has had, bytes."""
    import psutil

    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def main() -> None:
    end_with_the_parent()  # it may run for minutes
    found = measure(load_config(json.load(sys.stdin)))
    say(json.dumps(found))


if __name__ == "__main__":
    main()
