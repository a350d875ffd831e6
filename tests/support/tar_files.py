"""Tars of pictures and captions."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader

from limner.config import Config
from limner.data.examples import Batch, TrainingExamples
from limner.data.open import Data, training_order
from limner.data.order import ImageCountSampler


def png(number: int) -> bytes:
    """A picture of one colour, another for each number."""
    colour = (number % 251, number // 251, 7)
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "png")
    return file.getvalue()


def tar_of(entries: list[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, contents in entries:
            about = tarfile.TarInfo(name)
            about.size = len(contents)
            tar.addfile(about, io.BytesIO(contents))
    return file.getvalue()


def pairs(first: int, count: int) -> list[tuple[str, bytes]]:
    numbers = range(first, first + count)
    return [
        entry
        for n in numbers
        for entry in ((f"{n:05d}.png", png(n)), (f"{n:05d}.txt", f"colour {n}".encode()))
    ]


def keys_seen(
    config: Config,
    data: Data,
    start: int,
    batches: int,
    workers: int,
    processes: int = 1,
    rank: int = 0,
) -> list[int]:
    """The colours' numbers in the order in which the loader shows them."""

    def silent(caption: str) -> torch.Tensor:
        return torch.zeros(1)

    examples = TrainingExamples(
        data.trained, silent, 0, 0.0, 0.5, 0.0, training_order(data, config)
    )
    counts = ImageCountSampler(start, 5, processes, rank)
    loader: DataLoader[Any] = DataLoader(
        examples, batch_sampler=counts, num_workers=workers, collate_fn=Batch.of
    )
    seen: list[int] = []
    for number, batch in enumerate(loader):
        if number == batches:
            break
        red = ((batch.image[:, 0, 4, 4] + 1) * 127.5).round().int().tolist()
        seen += red
    return seen
