"""Restore a run from a checkpoint, or to its initial state."""

from __future__ import annotations

import logging

import torch

from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.locate import newest_good, step_of
from limner.checkpoint.matching import fit_weights
from limner.errors import LimnerError
from limner.training.first_weights import first_model
from limner.training.init_from import open_origin
from limner.training.lora import load_checkpoint
from limner.training.run import Run
from limner.training.train_step import stateful

log = logging.getLogger(__name__)


def restore(run: Run, checkpoint: Checkpoint | None) -> None:
    """Restore weights, EMA, and optimizers from a checkpoint, or to their initial values. The
    `state` of the run stays as it is."""
    if checkpoint:
        if run.config.lora.rank is not None:
            load_checkpoint(checkpoint, run.model, run.averaged)
        else:
            checkpoint.load_weights(run.model, averaged=False)
            checkpoint.load_weights(run.ema, averaged=True)
        checkpoint.load_optimizers(stateful(run.train_step))
        return
    at_first = torch.device("cpu") if run.sharded else run.device
    origin = open_origin(run.config)
    fresh, _ = first_model(run.config, run.tokenizer, run.reader.text_size, origin, at_first)
    weights = fresh.state_dict()
    for model in (run.model, run.ema):
        fit_weights(model, weights, run.folder)
    run.train_step.balance.reset()
    for optimizer in run.optimizers.values():
        optimizer.state.clear()


def restore_newest(run: Run, checkpoint: Checkpoint, named: bool) -> None:
    """Restore a checkpoint and its `state`, or those of an older one if this one is unusable
    although its checksums match.

    Args:
        named: this checkpoint was asked for by name, so no other will do.

    Raises:
        LimnerError: none can be used. The run does not start over in their place.
    """
    while True:
        try:
            restore(run, checkpoint)
            break
        except LimnerError as error:
            older, damaged = None, list[str]()
            if not named:
                older, damaged = newest_good(run.folder, before=step_of(checkpoint.folder))
            if older is None:
                raise
            reason = " ".join(str(error).split())[:300]
            for sentence in (f"skipped {checkpoint.folder.name}: {reason}", *damaged):
                log.info(sentence)
            checkpoint = Checkpoint.open(older)
    run.state.become(checkpoint.state)
