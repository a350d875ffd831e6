"""Save a checkpoint of a run: what it holds, and when all processes take part."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from limner.checkpoint.folder import Contents, save_checkpoint
from limner.checkpoint.save_sharded import save_in_shards
from limner.checkpoint.saver import Saver
from limner.config import Config
from limner.device import fast_bfloat16
from limner.distributed.fsdp import forget_notes
from limner.messages import bytes_in_words
from limner.training.lora import adapters_of, merged
from limner.training.muon import Muon
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


# ---- how much of the disk they take --------------------------------------------------------------


def checkpoint_bytes(run: Run) -> int:
    """About the size of a checkpoint, without writing one: of the weights, their average, and what
    the optimizers keep for each weight that is trained, also before they have."""
    weights = list(run.model.parameters())
    found = sum(p.nbytes for p in weights) * (2 if run.config.training.use_ema else 1)
    for optimizer in run.optimizers.values():
        trained = sum(p.nbytes for group in optimizer.param_groups for p in group["params"])
        # Both keep two numbers; Muon's direction is in bfloat16 where it is computed in that.
        halved = isinstance(optimizer, Muon) and fast_bfloat16(run.device)
        found += round(trained * (1.5 if halved else 2))
    if run.config.lora.rank is not None:  # the adapters, beside the weights that they are added to
        found += 2 * sum(p.nbytes for p in weights if p.requires_grad)
    return found + (0 if run.rows is None else run.rows.nbytes)


def checkpoints_kept(config: Config) -> int | None:
    """Checkpoints on the disk at the end, the one of the lowest held-out loss among them; None:
    all."""
    limit = config.training.checkpoints_total_limit
    return limit + 1 if limit and config.training.keep_best else limit


def disk_in_words(run: Run) -> str:
    """How much of the disk the checkpoints of a run will take."""
    size, kept = checkpoint_bytes(run), checkpoints_kept(run.config)
    said = f"a checkpoint takes about {bytes_in_words(size)}"
    if kept is None:
        return f"{said}, and all are kept (training.checkpoints_total_limit keeps the newest)"
    limit = run.config.training.checkpoints_total_limit
    best = " and the one of the lowest held-out loss" if run.config.training.keep_best else ""
    said += f"; the newest {limit}{best} are kept: {bytes_in_words(kept * size)} in all"
    free = shutil.disk_usage(run.folder).free
    return said if free > (kept + 1) * size else f"{said}, and {bytes_in_words(free)} are free"
