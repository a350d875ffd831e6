"""What it saves to encode pictures and captions once instead of at every step.

    python benchmarks/latents_once.py

Trains configs/latents.yaml with an autoencoder of the Stable Diffusion 1.5 shape and a text encoder
of the CLIP ViT-B/32 shape, both full-size and randomly initialised (it costs the same), on made-up
JPEGs of 500 pixels. Measured in one run: a step from the store; a step that encodes its pictures
and captions first, as tutorial code does, with the encoders in float32 and in training's precision;
and the share of a step that is spent waiting for data. Results are kept in
benchmarks/results/latents_once.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from made_up import clip_text_folder, jpeg_folder, sd15_autoencoder_folder

from limner import device as devices
from limner.config import Config, load_config
from limner.data.images import decode, to_tensor
from limner.training.batches import load_batches
from limner.training.compiling import compile_model
from limner.training.probe import peak_resident
from limner.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "latents_once.json"
CONFIG = Path(__file__).parent.parent / "configs" / "latents.yaml"


def configured(folder: Path, batch_size: int) -> Config:
    """The reference configuration with local parts, and data to go with it."""
    return load_config(
        CONFIG,
        [
            f"data.dataset_path='{jpeg_folder(folder / 'data', count=3 * batch_size, side=500)}'",
            f"vae.pretrained_model_name='{sd15_autoencoder_folder(folder / 'vae')}'",
            f"text_encoder.pretrained_model_name='{clip_text_folder(folder / 'clip')}'",
            f"cache.folder='{folder / 'cache'}'",
            f"training.output_dir='{folder / 'run'}'",
            f"training.batch_size={batch_size}",
            "training.trackers=[none]",
        ],
    )


def median_seconds(do: Callable[[], object], times: int, first: int) -> float:
    """Seconds of one call, the median of `times` after `first` that do not count."""
    seconds = []
    for _ in range(first + times):
        start = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[first:])


def from_the_store(trainer: Trainer, steps: int) -> tuple[float, float]:
    """Seconds of a step, and the share of them spent waiting for the batch."""
    batches, waited = load_batches(trainer.run), list[float]()

    class Timed:
        def __iter__(self) -> Timed:
            return self

        def __next__(self) -> object:
            start = time.perf_counter()
            batch = next(batches)
            waited.append(time.perf_counter() - start)
            return batch

    timed = Timed()
    trainer.batches.loaded = timed  # type: ignore[assignment]
    seconds = median_seconds(lambda: trainer.step(), steps, 3)
    return seconds, statistics.median(waited[3:]) / seconds


def encoding_each_step(trainer: Trainer, dtype: torch.dtype, steps: int) -> float:
    """Seconds of a step that decodes, encodes, and then learns."""
    space, reader = trainer.run.parts.autoencoder, trainer.run.parts.text_encoder
    assert reader is not None
    space.load(trainer.run.device, dtype)
    reader.load(trainer.run.device, dtype)
    rows, size = trainer.data.trained.rows, trainer.config.data.image_size
    batch = next(load_batches(trainer.run))
    folder = Path(trainer.config.data.dataset_path)

    def step() -> None:
        some = rows[: trainer.config.training.micro_batch_size]
        pixels = torch.stack([to_tensor(decode(folder / row.key, size)) for row in some])
        with torch.no_grad():
            latents = space.encode(pixels.to(trainer.run.device))
            text = reader.encode([row.captions[0] for row in some])
        assert latents.shape == batch.image.shape
        encoded = replace(batch, image=latents.cpu(), text=text)
        trainer.batches.loaded = iter([encoded])
        trainer.step()

    seconds = median_seconds(step, steps, 0)
    space.unload()
    reader.unload()
    return seconds


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--batch_size", type=int, default=32)
    options.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        config = configured(folder, given.batch_size)
        start = time.perf_counter()
        trainer = Trainer(config)
        trainer.run.inputs  # noqa: B018  computed here
        once = time.perf_counter() - start
        compile_model(trainer.run)
        stored, waiting = from_the_store(trainer, 8)
        each = {
            name: encoding_each_step(trainer, dtype, 2)
            for name, dtype in (("float32", torch.float32), ("training's", trainer.run.dtype))
        }
        peak = peak_resident() / 2**20
        count = len(trainer.data.trained.rows) + len(trainer.data.held_out.rows)
    size = given.batch_size
    print(f"computed once: {count} pictures in {once:.0f} s")
    print(f"from the store: {size / stored:.2f} pictures/s, {waiting:.1%} of it waiting for data")
    for name, seconds in each.items():
        print(
            f"encoding at each step, encoders in {name} precision: {size / seconds:.2f} "
            f"pictures/s, so the store makes it {seconds / stored:.1f} times as fast"
        )
    found = {
        "date": datetime.date.today().isoformat(),
        "machine": devices.describe(trainer.run.device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "batch_size": size,
        "precision": devices.name_of(trainer.run.dtype),
        "seconds_to_compute_once": round(once, 1),
        "pictures": count,
        "step_from_store": round(stored, 4),
        "share_waiting": round(waiting, 4),
        "step_encoding": {name: round(seconds, 4) for name, seconds in each.items()},
        "ratio": {name: round(seconds / stored, 2) for name, seconds in each.items()},
        "peak_mib": round(peak),
    }
    RESULTS.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
