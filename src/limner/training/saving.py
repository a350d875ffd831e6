"""Save a checkpoint of a run: what it holds, and when all processes take part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from limner.checkpoint.folder import Contents, save_checkpoint
from limner.checkpoint.save_sharded import save_in_shards
from limner.checkpoint.saver import Saver
from limner.distributed.fsdp import forget_notes
from limner.training.lora import adapters_of, merged
from limner.training.run import Run
from limner.training.train_step import stateful


def contents_of(run: Run) -> Contents:
    """The contents of a checkpoint of the current state. With sharding, every process contributes
    its shard."""
    contents = contents_here(run)
    return contents.whole(run.is_main) if run.sharded else contents


def contents_here(run: Run) -> Contents:
    """The same, as this process holds it."""
    averaged = run.ema if run.config.training.use_ema else None
    parts = run.model, averaged, stateful(run.train_step)
    contents = Contents.of(*parts, run.tokenizer, run.config, run.state)
    contents = replace(contents, rows=run.rows, lineage=run.lineage, words=run.words)
    if run.config.lora.rank is None:
        return contents
    return replace(
        contents,
        model=merged(run.model),
        averaged=merged(averaged.model) if averaged else None,
        adapters=adapters_of(run.model, averaged.model if averaged else None),
    )


def save_to(run: Run, folder: Path) -> None:
    """Write a checkpoint to a folder atomically, and wait for it."""
    contents = contents_of(run)
    if run.is_main:
        save_checkpoint(folder, contents)
    run.accelerator.wait_for_everyone()


def save_numbered(run: Run, saver: Saver) -> None:
    """Start writing `checkpoint-STEP` in the run's folder."""
    folder = run.folder / f"checkpoint-{run.state.step}"
    if run.is_main:
        forget_notes(run.folder)
    if run.sharded and run.config.training.checkpoint_shards:
        saver.failed = None
        which = run.accelerator.process_index, run.accelerator.num_processes
        if reason := save_in_shards(folder, contents_here(run), *which):
            saver.not_written(folder, reason)
        elif run.is_main:
            saver.tell(saver.prune(run.folder))
        return
    contents = contents_of(run)
    if run.is_main:
        saver.save(folder, contents)
