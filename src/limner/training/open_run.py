"""From a configuration to a run that is ready to train, in named stages.

The order matters. The pretrained parts complete the configuration, and a checkpoint may have chosen
what it leaves open (`auto`), so both come before anything is sized by it. The folder is locked
before anything is written into it. The data come before the tokenizer, which is learned from
captions, and the tokenizer before the model, whose embedding it sizes. The average is taken of the
whole model, before it is sharded; the optimizers are made afterwards, from what each process holds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from limner import console, memory
from limner import device as devices
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.manifest import finish_interrupted
from limner.checkpoint.single_file import WeightsFile
from limner.checkpoint.state import TrainingState
from limner.config import Config
from limner.config.defaults import changed
from limner.config.notes import notes as notes_of
from limner.data.open import Data, open_data, with_buckets
from limner.data.own_folder import keep_apart, keep_out_of_links
from limner.data.row_fingerprints import compare, fingerprints_of
from limner.data.verify import check_share_refused
from limner.diffusion.objective import build_objective
from limner.distributed.accelerator import open_accelerator
from limner.distributed.fsdp import noted_pieces, shard_model
from limner.distributed.processes import done_by_one
from limner.files.folder_lock import FolderLock
from limner.files.output_folders import is_training_run
from limner.models.dit import DiT
from limner.models.modern import ModernDiT
from limner.pretrained.components import Parts, open_parts
from limner.redaction import as_path, is_same_place
from limner.text.known_words import KnownWords
from limner.text.tokenizer import CaptionTokenizer
from limner.training.batch_size import images_that_fit, settle_batch
from limner.training.distillation.flow_map_step import SEEN_BY, FlowMapStep
from limner.training.distillation.teacher import open_teacher
from limner.training.ema import EMA
from limner.training.first_weights import first_model
from limner.training.folder import check_run_folder, run_lock
from limner.training.init_from import lineage_of, open_origin, words_of
from limner.training.lora import check_installed
from limner.training.monitor.run_log import RunEvents, list_refused
from limner.training.monitor.trackers import check_trackers
from limner.training.optimizer import build_optimizers
from limner.training.restore import restore_newest
from limner.training.resume import check_rows, find_resume
from limner.training.run import Run, is_sharded
from limner.training.train_step import TrainStep

log = logging.getLogger(__name__)


def open_run(config: Config, resume: str | Path | None = None) -> Run:
    """Open a run at the step from which it continues.

    Args:
        config: from `load_config`.
        resume: as of `limner.training.trainer.Trainer`.

    Raises:
        LimnerError: for bad data, a missing or foreign checkpoint, or settings that need parts
            which are not there.
    """
    check_installed(config)
    check_trackers(config)
    parts = open_parts(config)
    accelerator = open_accelerator(config)
    console.mute(not accelerator.is_main_process)
    folder = Path(parts.config.training.output_dir)
    lock = run_lock(folder)
    try:
        done_by_one(accelerator.is_main_process, lambda: take_folder(folder, lock, parts.config))
        with (events := RunEvents()).listening():
            run = _open(parts, accelerator, folder, lock, resume)
        run.events = events
        return run
    except BaseException:
        lock.release()
        raise


def _open(
    parts: Parts,
    accelerator: Accelerator,
    folder: Path,
    lock: FolderLock,
    resume: str | Path | None,
) -> Run:
    # ---- where the run resumes, and its complete configuration
    wanted = str(parts.config.training.resume if resume is None else resume)
    checkpoint = find_resume(resume, parts.config)
    state = checkpoint.state if checkpoint else TrainingState()
    config = with_paths_as_such(parts.config, checkpoint)
    config = settle(config, checkpoint, accelerator)

    # ---- device and precision
    device = accelerator.device
    memory.keep_freed_memory()
    precision = config.training.mixed_precision
    dtype = devices.choose_precision(precision, device)
    tell(notes_of(config))
    if note := devices.precision_note(precision, device, "training.mixed_precision"):
        log.info(note)

    # ---- data
    data = open_data(config, parts.unit)
    config = with_buckets(config, data)
    config = with_teacher(config, checkpoint)
    tell(data.notes)
    check_data(folder, data, config, accelerator.is_main_process)
    fingerprints, rows_changed = done_by_one(
        accelerator.is_main_process, lambda: check_trained(data, checkpoint, wanted == "auto")
    ) or (None, False)

    # ---- tokenizer, model, average
    origin = None if checkpoint else open_origin(config)
    if checkpoint:
        tokenizer = checkpoint.tokenizer
    else:
        tokenizer = words_of(origin, config) or learn_words(config, parts, data)
    reader = parts.text_encoder or tokenizer
    assert reader is not None
    sharded = is_sharded(config, accelerator)
    at_first = torch.device("cpu") if sharded else device
    model, notes = first_model(config, tokenizer, reader.text_size, origin, at_first)
    tell(notes)
    ema = EMA(model)
    if sharded:
        shard_model(model, device, dtype)
        ema.shard(model, accelerator.is_main_process)
        recall_pieces(state, folder, config)

    # ---- optimizers, and the state of the checkpoint
    run = Run(
        config=config,
        folder=folder,
        lock=lock,
        accelerator=accelerator,
        device=device,
        dtype=dtype,
        parts=parts,
        data=data,
        rows=fingerprints,
        lineage=lineage_of(config, origin, checkpoint, rows_changed),
        tokenizer=tokenizer,
        objective=(objective := build_objective(config)),
        model=model,
        ema=ema,
        train_step=(FlowMapStep if config.model.flow_map else TrainStep)(
            model,
            objective,
            build_optimizers(model, config),
            torch.amp.GradScaler(device.type) if dtype == torch.float16 else None,
            config,
            state,
            device,
            dtype,
        ),
        state=state,
        words=list_words(data, tokenizer, checkpoint or origin, checkpoint is None or rows_changed)
        if accelerator.is_main_process
        else None,
    )
    if isinstance(run.train_step, FlowMapStep):
        run.train_step.open_teacher = lambda: teacher_of(run, reader.text_size)
    if checkpoint:
        restore_newest(run, checkpoint, named=wanted not in ("auto", "latest"))
    return run


def with_paths_as_such(config: Config, checkpoint: Checkpoint | None) -> Config:
    """Write models in local folders as `./owner/name`, so that they are not taken for ids on the
    Hub when the configuration is read from another folder."""

    def said(section: str, key: str) -> str | None:
        name: str | None = getattr(getattr(config, section), key)
        before = getattr(getattr(checkpoint.config, section), key) if checkpoint else None
        # The folder may no longer exist.
        return before if is_same_place(name, before) else name and as_path(name)

    model = "pretrained_model_name"
    return config.model_copy(
        update={
            "training": changed(config.training, init_from=said("training", "init_from")),
            "vae": changed(config.vae, **{model: said("vae", model)}),
            "text_encoder": changed(config.text_encoder, **{model: said("text_encoder", model)}),
        }
    )


def teacher_of(run: Run, text_size: int) -> ModernDiT | DiT:
    """The denoiser of a flow map's teacher, as the student's loss looks through it."""
    teacher = open_teacher(run.config).model(text_size, run.device, torch.float32).denoiser
    del teacher.blocks[SEEN_BY:]
    if run.config.training.compile_model and not devices.why_not_compile(run.device):
        for block in teacher.blocks:
            block.compile()
    return teacher


def with_teacher(config: Config, checkpoint: Checkpoint | None) -> Config:
    """With the fingerprint of the teacher that a flow map is made from.

    Raises:
        LimnerError: the teacher cannot be used, or is another one than the checkpoint's.
    """
    if not config.model.flow_map:
        return config
    distill = config.distill
    if checkpoint is not None:
        distill = changed(distill, fingerprint=checkpoint.config.distill.fingerprint)
    teacher = open_teacher(changed(config, distill=distill))
    return changed(config, distill=changed(distill, fingerprint=teacher.fingerprint))


def take_folder(folder: Path, lock: FolderLock, config: Config) -> None:
    """Lock the run folder, and clean up after an interruption."""
    if not is_training_run(folder):
        keep_apart(folder, config, "training.output_dir")
    check_run_folder(folder)
    lock.acquire()
    finish_interrupted(folder)


def settle(config: Config, checkpoint: Checkpoint | None, accelerator: Accelerator) -> Config:
    """Resolve the batch size of a configuration (from the checkpoint if `auto` chose it there)."""
    earlier = checkpoint.config.training if checkpoint else None
    processes = accelerator.num_processes

    def fits(config: Config) -> int:
        if earlier:
            return earlier.micro_batch_size
        found = [images_that_fit(config) if accelerator.is_main_process else 0]
        return (broadcast_object_list(found) if processes > 1 else found)[0]

    auto = config.training.batch_size == "auto"
    config = settle_batch(config, processes, fits)
    if auto:
        size = config.training.micro_batch_size
        log.info(f"training.batch_size: auto selected {size}")
    if checkpoint is None:
        return config
    if config.data.buckets == "auto":
        config = changed(config, data=changed(config.data, buckets=checkpoint.config.data.buckets))
    if (state := checkpoint.state).step:
        if config.training.batch_size != checkpoint.config.training.batch_size:
            state.join_micro_batches()
        size = config.training.micro_batch_size * processes
        now = size * config.training.gradient_accumulation_steps
        before = checkpoint.images_per_update()
        if before != now:
            log.info(
                f"the effective batch size is now {now}, and was {before}: this is no longer the "
                "same run (training.effective_batch_size keeps it)"
            )
    return config


def check_data(folder: Path, data: Data, config: Config, main: bool) -> None:
    """Raises LimnerError if the run would write into its data, or too many rows cannot be used."""
    if not is_training_run(folder):
        keep_out_of_links(folder, data.set, "training.output_dir")
    if main:  # first, because their number may end the run
        list_refused(folder, data.set.refused)
    check_share_refused(data.refused, data.refused + len(data.set.rows), config)


def check_trained(data: Data, checkpoint: Checkpoint | None, auto: bool) -> tuple[np.ndarray, bool]:
    """The fingerprints of the training rows, and whether they differ from the checkpoint's.

    Raises:
        LimnerError: they differ, and nobody asked for this checkpoint by name.
    """
    fingerprints = fingerprints_of(data.set, data.trained.rows)
    if checkpoint is None:
        return fingerprints, False
    check_rows(checkpoint, fingerprints, auto)
    before = checkpoint.rows()
    # Checkpoints of earlier versions do not say.
    return fingerprints, before is None or compare(before, fingerprints) is not None


def learn_words(config: Config, parts: Parts, data: Data) -> CaptionTokenizer | None:
    """Train the built-in tokenizer on the training captions."""
    text = config.text_encoder
    if parts.text_encoder is not None:
        return None
    assert text.max_length
    captions = (c for row in data.trained.rows for c in row.captions)
    return CaptionTokenizer.learn(captions, text.vocab_size, text.max_length)


def list_words(
    data: Data,
    tokenizer: CaptionTokenizer | None,
    before: Checkpoint | WeightsFile | None,
    more: bool,
) -> KnownWords | None:
    """The words of all captions that the model of a run learned from; None: nobody knows them all.

    Args:
        before: the checkpoint that it resumes from, or the model that it starts from.
        more: whether captions are to be learned that the former did not.
    """
    if tokenizer is None:
        return None
    known = None
    if before is not None and before.tokenizer is not None:
        known = before.words
        # An earlier version wrote none down, and a model of private data is exported without them.
        if known is None or not more:
            return known
    own = KnownWords.of(c for row in data.trained.rows for c in row.captions)
    return own if known is None else own.joined(known)


def recall_pieces(state: TrainingState, folder: Path, config: Config) -> None:
    """Split micro-batches into as many parts as an earlier start needed."""
    noted = [noted_pieces(folder, config.training.micro_batch_size)]
    state.split_micro_batches(broadcast_object_list(noted)[0])


def tell(notes: Iterable[str]) -> None:
    for note in notes:
        log.info(note)
