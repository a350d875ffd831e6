"""Training batches from the current position of a run, prefetched by worker processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from limner.data.examples import Batch, Example, TrainingExamples
from limner.data.open import training_order
from limner.data.order import ImageCountSampler
from limner.errors import LimnerError
from limner.training.distillation.pairs import TrajectoryPairs
from limner.training.run import Run
from limner.training.stopping import leave_signals_to_the_main_process, quiet_about_workers

log = logging.getLogger(__name__)

MOST_WORKER_DEATHS = 5


class Batches:
    """A context manager; leaving it ends the processes that load.

    Which pictures a batch has, their captions, and their noise follow from the run's image count
    and seed alone, so that loading can begin anew at any update.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.loaded: Iterator[Batch] = iter(())

    def __enter__(self) -> Batches:
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self.loaded = iter(())  # ends the workers

    def restart(self) -> None:
        """Start loading anew from the run's image count."""
        self.loaded = load_batches(self.run)

    def of_next_update(self) -> list[Batch]:
        """The micro-batches of the next update; if a worker dies, they are loaded again.

        Raises:
            LimnerError: workers died `MOST_WORKER_DEATHS` times in a row.
        """
        for _ in range(MOST_WORKER_DEATHS):
            try:
                accumulation = self.run.config.training.gradient_accumulation_steps
                return [next(self.loaded) for _ in range(accumulation)]
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                reason = " ".join(str(error).split())[:200]
                log.info(f"a data loading worker died and was restarted ({reason})")
                self.restart()
        raise LimnerError(
            f"data loading workers died {MOST_WORKER_DEATHS} times in step "
            f"{self.run.state.step + 1} ({reason}); if memory is short, set training.num_workers=0"
        )


def load_batches(run: Run) -> Iterator[Batch]:
    """Endless micro-batches from the run's current position."""
    settings, processes = run.config.training, run.accelerator.num_processes
    counts = ImageCountSampler(
        run.state.images, settings.micro_batch_size, processes, run.accelerator.process_index
    )
    loader: DataLoader[Any] = DataLoader(
        examples_of(run),
        batch_sampler=counts,
        num_workers=settings.num_workers,
        prefetch_factor=settings.prefetch_factor if settings.num_workers else None,
        collate_fn=Batch.of,
        pin_memory=run.device.type == "cuda",
        worker_init_fn=leave_signals_to_the_main_process,
    )
    with quiet_about_workers():
        return iter(loader)


def examples_of(run: Run) -> Dataset[Example]:
    """What the run learns from, by image count."""
    settings, data, processes = run.config.training, run.config.data, run.accelerator.num_processes
    if run.inputs.trajectories:
        return TrajectoryPairs(run.inputs.trajectories[0], run.inputs.words, run.config)
    return TrainingExamples(
        run.inputs.trained,
        run.inputs.words,
        settings.seed,
        settings.caption_dropout,
        data.main_caption_share,
        data.horizontal_flip,
        training_order(run.data, run.config, processes, run.state.images),
        run.data.trained.buckets,
    )
