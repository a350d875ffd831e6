"""A checkpoint: a self-contained folder with configuration, weights, and training state.

    checkpoint-1000/
      model.pt              weights as trained, {"text_encoder.*", "denoiser.*"}
      ema.safetensors       averaged weights, the ones to draw with
      optimizer.pt          state of each optimizer
      training_state.json   step, images, seconds, and the schedule's fixed points
      config.yaml           the resolved configuration
      tokenizer.json        how the built-in text encoder splits text into tokens
      words.json            the words of the captions it learned from (text/known_words.py)
      rows.npy              which rows it learned from, to notice others (data/row_fingerprints.py)
      lineage.json          what the model began from and learned from (see lineage.py)
      lora.safetensors      of a run with `lora.rank`: what it needs to resume
      adapter/              and its adapters in peft's format (see training/lora.py)
      manifest.json         size and checksum of each of these, written last

A sharded model may be saved in shards instead of the first three (`limner.checkpoint.sharded`). How
a checkpoint is written is in `limner.checkpoint.manifest`; one that does not verify is not opened.
Everything is read with `weights_only=True`, safetensors, or as plain text, so no code can run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from limner.checkpoint.lineage import Lineage, lineage_of_config, read_lineage, write_lineage
from limner.checkpoint.locate import (
    ADAPTER,
    AVERAGED,
    LORA,
    PLAIN_FILES,
    ROWS,
    TEXTS,
    TOKENIZER,
    WORDS,
    find_checkpoint,
)
from limner.checkpoint.manifest import damage, replaceable, written_whole
from limner.checkpoint.matching import Weighted, check_optimizer, fit_weights
from limner.checkpoint.sharded import INDEX, read_index, read_shards, shard_files
from limner.checkpoint.state import TrainingState
from limner.config import Config, load_config
from limner.data.row_fingerprints import as_bytes, from_bytes
from limner.distributed.dtensors import gathered, sharded_state
from limner.errors import LimnerError
from limner.files.small_files import read_text
from limner.files.tensor_files import load_safetensors, load_tensors
from limner.models.size import check_stored
from limner.text.known_words import KnownWords
from limner.text.tokenizer import CaptionTokenizer


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint folder; weights are read on demand."""

    folder: Path
    config: Config
    tokenizer: CaptionTokenizer | None
    """None: captions are read by a pretrained text encoder."""
    state: TrainingState

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Open a checkpoint folder, or the newest one of a run folder.

        Raises:
            LimnerError: there is none, or its text files are damaged; weights are verified when
                they are read.
        """
        folder = find_checkpoint(path)
        config = load_config(folder / "config.yaml")
        if problem := damage(folder, TEXTS):
            raise LimnerError(f"the checkpoint is damaged: {folder / problem}")
        state = TrainingState.read(folder / "training_state.json")
        tokenizer = None
        if config.text_encoder.pretrained_model_name is None:
            assert config.text_encoder.max_length
            length = config.text_encoder.max_length
            tokenizer = CaptionTokenizer.load(folder / TOKENIZER, length)
        files = shard_files(folder) if (folder / INDEX).is_file() else ("model.pt", AVERAGED)
        sizes = sum(path.stat().st_size for name in files if (path := folder / name).is_file())
        check_stored(config, sizes, folder)
        return cls(folder, config, tokenizer, state)

    def rows(self) -> np.ndarray | None:
        """Fingerprints of the rows it learned from (`limner.data.row_fingerprints`); None: an
        earlier version did not save them. Raises LimnerError if the file is damaged."""
        path = self.folder / ROWS
        if not path.is_file():
            return None
        self.verify(ROWS)
        try:
            return from_bytes(path.read_bytes())
        except (OSError, ValueError, EOFError) as error:
            raise LimnerError(f"{path} is damaged: {error}") from None

    @property
    def words(self) -> KnownWords | None:
        """The words of the captions that its built-in text encoder learned from; None: it has none,
        or an earlier version did not save them. Raises LimnerError if the file is damaged."""
        path = self.folder / WORDS
        if not path.is_file():
            return None
        self.verify(WORDS)
        return KnownWords.from_json(read_text(path), path)

    @property
    def lineage(self) -> Lineage:
        """The lineage of its model. Raises LimnerError if its lineage.json is damaged."""
        return read_lineage(self.folder) or lineage_of_config(self.config)

    def images_per_update(self) -> int:
        """Pictures per update when it was saved (0 before the first step)."""
        return self.state.images // max(1, self.state.step)

    def load_weights(self, model: Weighted, averaged: bool) -> None:
        """Load the weights into the model, or this process's shard of them; the EMA weights if
        requested and present."""
        fit_weights(model, self.tensors(averaged), self._weights(averaged))

    @property
    def in_shards(self) -> bool:
        return (self.folder / INDEX).is_file()

    @property
    def has_average(self) -> bool:
        if self.in_shards:
            return "averaged" in read_index(self.folder)["parts"]
        return (self.folder / AVERAGED).is_file()

    def tensors(self, averaged: bool = True) -> dict[str, Tensor]:
        """The weights by name. Raises LimnerError if they are damaged."""
        if self.in_shards:
            self.verify(INDEX, *shard_files(self.folder))
            part = "averaged" if averaged and self.has_average else "model"
            return read_shards(self.folder, part)
        path = self._weights(averaged)
        self.verify(path.name)
        return load_safetensors(path) if path.name == AVERAGED else load_tensors(path)

    def _weights(self, averaged: bool) -> Path:
        if self.in_shards:
            return self.folder / INDEX
        path = self.folder / AVERAGED
        return path if averaged and path.is_file() else self.folder / "model.pt"

    def verify(self, *names: str) -> None:
        """Raises LimnerError if these files are not as they were written."""
        if not self.folder.is_dir():
            raise LimnerError(
                f"{self.folder} no longer exists. A run deletes its older checkpoints "
                "(training.checkpoints_total_limit sets how many are kept); use a newer one"
            )
        if problem := damage(self.folder, names=names):
            raise LimnerError(f"the checkpoint is damaged: {self.folder / problem}")

    def load_optimizers(self, optimizers: dict[str, Any]) -> None:
        """Restore the state of each optimizer, and of whatever else keeps state between updates."""
        path = self.folder / (INDEX if self.in_shards else "optimizer.pt")
        if self.in_shards:
            self.verify(INDEX, *shard_files(self.folder))
            saved = read_shards(self.folder, "optimizers")
        else:
            self.verify(path.name)
            saved = load_tensors(path)
        for name, optimizer in optimizers.items():
            if name in ("scaler", "balance") and name not in saved:
                continue  # saved without it; its state is rebuilt in a few updates
            groups = getattr(optimizer, "param_groups", [])
            settings = [{k: v for k, v in g.items() if k != "params"} for g in groups]
            try:
                check_optimizer(saved[name], groups)
                state = sharded_state(saved[name], optimizer) if groups else saved[name]
                optimizer.load_state_dict(state)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError):
                raise LimnerError(
                    f"{path} does not fit the {name} optimizer of this configuration, or is "
                    f"damaged; optimizer.type is {self.config.optimizer.type!r} in the checkpoint"
                ) from None
            # torch also takes betas, weight decay, ... from the file; the current settings win.
            for group, asked in zip(getattr(optimizer, "param_groups", []), settings, strict=True):
                group.update(asked)


@dataclass(frozen=True)
class Adapters:
    """The adapters of a run with `lora.rank`, whose model is saved with them merged."""

    kept: dict[str, Tensor]
    """The adapted weights without their adapters, and the adapters as trained."""
    shown: dict[str, Tensor]
    """The (averaged) adapters, with peft's names."""
    description: dict[str, Any]
    """peft's configuration."""


@dataclass(frozen=True)
class Contents:
    """The contents of a checkpoint: live state dicts, or copies that training does not change."""

    model: dict[str, Tensor]
    averaged: dict[str, Tensor] | None
    optimizers: dict[str, Any]
    tokenizer: CaptionTokenizer | None
    config: Config
    state: TrainingState
    copied_already: bool = False
    adapters: Adapters | None = None
    rows: np.ndarray | None = None
    """Fingerprints of the training rows (`limner.data.row_fingerprints`)."""
    lineage: Lineage | None = None
    words: KnownWords | None = None

    @classmethod
    def of(
        cls,
        model: Weighted,
        averaged: Weighted | None,
        optimizers: dict[str, Any],
        tokenizer: CaptionTokenizer | None,
        config: Config,
        state: TrainingState,
    ) -> Contents:
        return cls(
            model.state_dict(),
            averaged.state_dict() if averaged is not None else None,
            {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
            tokenizer,
            config,
            replace(state),
        )

    def bytes(self) -> int:
        """Approximate size on disk."""
        adapters = self.adapters
        tensors = [self.model, self.averaged, self.optimizers]
        return _bytes(tensors + ([adapters.kept, adapters.shown] if adapters else []))

    def copied(self) -> Contents:
        """A copy in host memory."""
        if self.copied_already:
            return self
        tensors = {"model": self.model, "averaged": self.averaged, "optimizers": self.optimizers}
        adapters = self.adapters and replace(
            self.adapters, kept=_copied(self.adapters.kept), shown=_copied(self.adapters.shown)
        )
        copies = {name: _copied(value) for name, value in tensors.items()}
        return replace(self, **copies, adapters=adapters)

    def whole(self, keep: bool) -> Contents:
        """The contents of a sharded run, gathered in host memory. Every process must call this.

        Args:
            keep: whether this process gets the result; the others only send their shards.
        """
        tensors = {"model": self.model, "averaged": self.averaged, "optimizers": self.optimizers}
        whole = {name: gathered(value, keep) for name, value in tensors.items()}
        return replace(self, copied_already=True, **whole)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list) else 0


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def save_checkpoint(folder: Path, contents: Contents) -> Path:
    """Write a checkpoint atomically and durably; if that fails, an existing one stays.

    Raises:
        LimnerError: the folder exists and is not a checkpoint.
        OSError, RuntimeError: it could not be written.
    """
    folder = folder.resolve()
    replaceable(folder, frozenset((*PLAIN_FILES, LORA, ADAPTER)))
    with written_whole(folder, needed=contents.bytes()) as staging:
        torch.save(contents.model, staging / "model.pt")
        if contents.averaged is not None:
            weights = {name: t.contiguous() for name, t in contents.averaged.items()}
            save_file(weights, staging / AVERAGED)
        torch.save(contents.optimizers, staging / "optimizer.pt")
        write_texts(staging, contents)
        if contents.adapters is not None:
            _save_adapters(staging, contents.adapters)
    return folder


def write_texts(staging: Path, contents: Contents) -> None:
    """Write the text files of a checkpoint."""
    (staging / "config.yaml").write_text(contents.config.to_yaml(), encoding="utf-8")
    if contents.rows is not None:
        (staging / ROWS).write_bytes(as_bytes(contents.rows))
    if contents.tokenizer is not None:
        contents.tokenizer.save(staging / TOKENIZER)
    if contents.words is not None:
        (staging / WORDS).write_text(contents.words.to_json(), encoding="utf-8")
    if contents.lineage is not None:
        write_lineage(staging, contents.lineage)
    (staging / "training_state.json").write_text(
        json.dumps(asdict(contents.state), indent=2), encoding="utf-8"
    )


def _save_adapters(staging: Path, adapters: Adapters) -> None:
    save_file({name: t.contiguous() for name, t in adapters.kept.items()}, staging / LORA)
    (staging / ADAPTER).mkdir()
    shown = {name: t.contiguous() for name, t in adapters.shown.items()}
    save_file(shown, staging / ADAPTER / "adapter_model.safetensors", {"format": "pt"})
    text = json.dumps(adapters.description, indent=2, sort_keys=True, default=sorted)  # of sets
    (staging / ADAPTER / "adapter_config.json").write_text(text, encoding="utf-8")
