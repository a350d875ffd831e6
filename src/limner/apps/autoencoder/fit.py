"""The loop of `limner train-autoencoder`: saved and resumed as a training run is.

Its checkpoints are those of training (`limner.checkpoint`), in a folder beside what it will write.
What happens at an update depends on the settings, the weights, and the number of the update (with
`autoencoder.max_steps`; else on the time as well), so that a resumed fit is the same fit.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limner import device as devices
from limner.apps.autoencoder.losses import kl_divergence, reconstruction_loss
from limner.checkpoint.folder import Checkpoint, Contents
from limner.checkpoint.locate import newest_good, step_of
from limner.checkpoint.manifest import finish_interrupted
from limner.checkpoint.saver import Saver
from limner.checkpoint.state import TrainingState
from limner.config import AutoencoderConfig, Config, load_config
from limner.data.dataset import ImageError
from limner.data.examples import DecodedImages
from limner.data.order import position_of, seeded_generator
from limner.data.row_fingerprints import compare, fingerprints_of
from limner.errors import LimnerError
from limner.files.folder_lock import FolderLock
from limner.messages import parameters_in_words
from limner.training.folder import set_aside_later
from limner.training.monitor.progress import Progress
from limner.training.muon import Muon
from limner.training.resume import SAME_RUN
from limner.training.stopping import StopOnSignal, Stopped

log = logging.getLogger(__name__)

WARM_UP, DECAY_SHARE = 50, 0.4
EMA_HALF_LIFE = 100  # updates
SAVE_STEPS, SAVE_EVERY = 1000, 60.0
"""Updates, where `training.save_steps` says nothing, and seconds from checkpoint to checkpoint."""


class Unusable(LimnerError):
    """A checkpoint's checksums are right, and what is in it does not fit."""


class Fit:
    """An autoencoder that is being fitted: its weights, their average, and how far it is.

    Args:
        folder: of its checkpoints. If one is there that verifies, this goes on from it.
        lock: of the folder that the autoencoder will be written to, which this process holds.

    Raises:
        LimnerError: none of the checkpoints that are there verifies, or they are of other settings.
    """

    def __init__(
        self,
        config: Config,
        images: DecodedImages,
        device: torch.device,
        dtype: torch.dtype,
        folder: Path,
        lock: FolderLock,
    ) -> None:
        self.config, self.images, self.folder, self.lock = config, images, folder, lock
        self.device, self.dtype = device, dtype
        torch.manual_seed(config.training.seed)
        model = build_autoencoder(config.autoencoder)
        self.model = model.to(device=device, memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizers = _optimizers(self.model, config)
        self.state = TrainingState()
        self.saved_at: int | None = None
        self.rows = fingerprints_of(images.set, images.rows)
        self._resume()

    def run(self) -> None:
        """Fit it to the end; checkpoints appear in the folder.

        Raises:
            Stopped: a signal asked for it; all is saved, and the same call goes on.
            LimnerError: none of the pictures could be decoded, or the last checkpoint could not be
                written.
        """
        settings, state = self.config.autoencoder, self.state
        save_steps = self.config.training.save_steps or SAVE_STEPS
        stop_on_error = self.config.training.save_errors == "stop"
        with (
            StopOnSignal() as stop,
            Progress() as progress,
            Saver(2, lambda: None, stop_on_error) as saver,
        ):
            self._say_hello()
            started = saved = time.perf_counter()
            before, first = state.seconds, state.step
            loss_sum: Tensor | float = 0.0
            while not self.finished() and stop.name is None:
                loss_sum += self._update()
                self.lock.check()
                now = time.perf_counter()
                state.advance(settings.batch_size, before + now - started)
                if state.step % 20 == 0:
                    steps = state.step - first
                    speed = steps * settings.batch_size / (now - started)
                    figures = speed, float(loss_sum) / min(20, steps), None, self._left()
                    share = self._done()
                    progress.update(
                        state.step, settings.max_steps, state.images, *figures, share=share
                    )
                    loss_sum = 0.0
                saver.poll()
                if state.step % save_steps == 0 or now - saved > SAVE_EVERY:
                    saved = now
                    self._save(saver)
            if self.saved_at != state.step:
                self._save(saver)
            saver.wait()
            if saver.failed and not self.finished():
                raise LimnerError(
                    f"{saver.failed}. Free some disk space and run the same command again."
                )
            if not self.finished():
                raise Stopped(
                    f"stopped by {stop.name} after step {state.step}; saved in {self.folder}. Run "
                    "the same command to resume"
                )

    def finished(self) -> bool:
        return self._done() >= 1 or self.state.seconds >= self.config.autoencoder.max_minutes * 60

    def _done(self) -> float:
        """The share that is done. With a number of steps the rate follows these, so that a seeded
        run repeats itself."""
        settings, state = self.config.autoencoder, self.state
        if settings.max_steps:
            return state.step / settings.max_steps
        return state.seconds / (settings.max_minutes * 60)

    def _left(self) -> float:
        done = max(self._done(), 1e-9)
        return self.state.seconds / done * (1 - done)

    def _update(self) -> Tensor:
        """One update of the weights and of their average; the loss, still on the device."""
        settings, seed, step = self.config.autoencoder, self.config.training.seed, self.state.step
        share = min(1.0, (step + 1) / WARM_UP) * min(1.0, (1 - self._done()) / DECAY_SHARE)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * share
        crops = _crops(self.config, self.images, step).to(self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            posterior = self.model.encode(crops).latent_dist
            generator = seeded_generator(seed, "posterior", step)
            noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
            output = self.model.decode(posterior.mean + posterior.std * noise).sample
        loss = reconstruction_loss(output.float(), crops, settings.edge_weight)
        total = loss + settings.kl_weight * kl_divergence(posterior.mean, posterior.logvar)
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(0.5 ** (1 / EMA_HALF_LIFE), step / (step + 10))
        with torch.no_grad():
            weights = [p.detach() for p in self.model.parameters()]
            torch._foreach_lerp_(list(self.averaged.parameters()), weights, 1 - decay)
        return loss.detach()

    def _save(self, saver: Saver) -> None:
        contents = Contents.of(
            self.model, self.averaged, self.optimizers, None, self.config, self.state
        )
        contents = replace(contents, rows=self.rows)
        saver.save(self.folder / f"checkpoint-{self.state.step}", contents)
        self.saved_at = self.state.step

    def _resume(self) -> None:
        finish_interrupted(self.folder)
        before, bad = None, list[str]()
        while True:
            found, passed_over = newest_good(self.folder, before=before)
            bad += passed_over
            if found is None:
                break
            try:
                rows = self._restore(found)
            except Unusable as error:
                bad.append(f"skipped {found.name}: {' '.join(str(error).split())[:300]}")
                before = step_of(found)
                continue
            for sentence in bad:
                log.info(sentence)
            if rows is not None and (changes := compare(rows, self.rows)):
                log.info(
                    f"the data changed since {found.name} was saved ({changes}); resuming with the "
                    "current data"
                )
            log.info(f"resumed at step {self.state.step}, {self.state.images:,} crops seen")
            set_aside_later(self.folder, self.state.step)
            return
        if bad:
            raise LimnerError(
                f"no usable checkpoint in {self.folder}; delete the folder to start over:"
                + "".join(f"\n  - {sentence}" for sentence in bad)
            )

    def _restore(self, found: Path) -> np.ndarray | None:
        """Go on from a checkpoint; the fingerprints of what it learned from, if it has them."""
        saved = load_config(found / "config.yaml")
        if different := differences(saved, self.config):
            raise LimnerError(
                f"{self.folder} contains an unfinished autoencoder with other settings:\n"
                + "\n".join(f"  - {d}" for d in different)
                + "\ndelete the folder to start over, or choose another --output"
            )
        state = TrainingState.read(found / "training_state.json")
        checkpoint = Checkpoint(found, saved, None, state)
        try:
            rows = checkpoint.rows()
            checkpoint.load_weights(self.model, averaged=False)
            checkpoint.load_weights(self.averaged, averaged=True)
            checkpoint.load_optimizers(self.optimizers)
        except LimnerError as error:
            raise Unusable(str(error)) from None
        self.state, self.saved_at = state, state.step
        return rows

    def _say_hello(self) -> None:
        count = parameters_in_words(sum(p.numel() for p in self.model.parameters()))
        log.info(
            f"{count} parameters on {devices.describe(self.device)} in "
            f"{devices.name_of(self.dtype)}; {len(self.images.rows):,} pictures for training"
        )
        wanted = self.config.training.mixed_precision
        if note := devices.precision_note(wanted, self.device, "training.mixed_precision"):
            log.info(note)


def differences(saved: Config, asked: Config) -> list[str]:
    """What makes the two configurations different fits, in words. It may become longer or shorter:
    the learning rate follows."""
    sections = {
        "data": set(type(asked.data).model_fields) - set(SAME_RUN["data"]),
        "autoencoder": set(type(asked.autoencoder).model_fields) - {"max_steps", "max_minutes"},
        "optimizer": {"type"},
        "training": {"seed", "mixed_precision"},
    }
    return [
        f"{section}.{key}: {there!r} in the checkpoint, {here!r} in this run"
        for section, keys in sections.items()
        for key in sorted(keys)
        for there, here in [
            (getattr(getattr(saved, section), key), getattr(getattr(asked, section), key))
        ]
        if there != here
    ]


def build_autoencoder(settings: AutoencoderConfig) -> Any:
    """A small AutoencoderKL, freshly initialised; without attention, so that any size works."""
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise LimnerError(
            'train-autoencoder requires the package diffusers; run pip install "limner[pretrained]"'
        ) from None
    stages = settings.downsampling.bit_length()
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=tuple(settings.base_channels * 2**i for i in range(stages)),
        layers_per_block=settings.layers_per_block,
        latent_channels=settings.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def _optimizers(model: nn.Module, config: Config) -> dict[str, torch.optim.Optimizer]:
    """Muon for the convolutions between many channels and AdamW for the rest, or AdamW for all, as
    `optimizer.type` says."""
    learning_rate = config.autoencoder.learning_rate
    convolutions = [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
        and min(module.in_channels, module.out_channels) > 8
        and config.optimizer.type == "muon"
    ]
    taken = {id(p) for p in convolutions}
    rest = [p for p in model.parameters() if id(p) not in taken]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    }
    if convolutions:
        optimizers["muon"] = Muon(convolutions, learning_rate)
    return optimizers


def _crops(config: Config, images: DecodedImages, step: int) -> Tensor:
    """The squares of one update, from pictures in a seeded order: float32 [B, 3, crop, crop]."""
    settings, seed = config.autoencoder, config.training.seed
    side, size = min(settings.crop, config.data.image_size), config.data.image_size
    side -= side % settings.downsampling
    squares, count = list[Tensor](), step * settings.batch_size
    generator = seeded_generator(seed, "crops", step)
    tries = 0
    while len(squares) < settings.batch_size:
        position = position_of(count + tries, len(images.rows), seed)
        tries += 1
        if tries > settings.batch_size + len(images.rows):
            raise LimnerError(
                "none of the pictures could be decoded; check the folder and its files"
            )
        try:
            image = images.tensor(position, bool(torch.rand((), generator=generator) < 0.5))
        except ImageError:
            continue  # named when the run in its latents starts; here the next one stands in
        top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for _ in "yx")
        squares.append(image[:, top : top + side, left : left + side])
    return torch.stack(squares).contiguous(memory_format=torch.channels_last)
