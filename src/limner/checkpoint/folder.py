"""A checkpoint is a folder that says everything about itself.

    checkpoint-1000/
      model.pt              weights as trained, {"text_encoder.*", "denoiser.*"}
      ema.safetensors       averaged weights, the ones to draw with
      optimizer.pt          state of each optimizer
      training_state.json   step, images, seconds, and the schedule's fixed points
      config.yaml           the resolved configuration
      tokenizer.json        the words the built-in text encoder knows
      rows.npy              which rows it learned from, to notice others (data/row_fingerprints.py)
      lineage.json          what the model began from and learned from (see lineage.py)
      lora.safetensors      of a run with `lora.rank`: what it needs to go on
      adapter/              and its adapters in peft's format (see training/lora.py)
      manifest.json         size and checksum of each of these, written last

A model in shards may be saved in shards instead of the first three (`limner.checkpoint.sharded`).
How it reaches the disk is in `limner.checkpoint.manifest`; what does not verify is not opened.
Everything is read with `weights_only=True`, safetensors, or as plain text: nothing in it can run.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from limner.checkpoint.lineage import FILE as LINEAGE
from limner.checkpoint.lineage import Lineage, lineage_of_config, read_lineage, write_lineage
from limner.checkpoint.manifest import MANIFEST, NAME, damage, replaceable, written_whole
from limner.checkpoint.sharded import INDEX, read_index, read_shards, shard_files
from limner.config import Config, load_config
from limner.data.row_fingerprints import as_bytes, from_bytes
from limner.distributed.dtensors import gathered, shard_like, sharded_state
from limner.errors import LimnerError
from limner.files.small_files import read_json
from limner.files.tensor_files import load_safetensors, load_tensors, why_not_weights
from limner.messages import shorten, shorten_name
from limner.models.size import check_stored
from limner.text.tokenizer import CaptionTokenizer

FILES = ("model.pt", "optimizer.pt", "training_state.json", "config.yaml", MANIFEST)
TOKENIZER = "tokenizer.json"
AVERAGED = "ema.safetensors"
ROWS = "rows.npy"
LORA, ADAPTER = "lora.safetensors", "adapter"

log = logging.getLogger("limner")


class Weighted(Protocol):
    """A module, or what keeps weights by name as one does."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, weights: dict[str, Tensor], /) -> Any: ...


@dataclass
class TrainingState:
    """How far a run is, changed by its own methods alone. What can be computed from these is not
    stored."""

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    total_steps: int | None = None
    """None while a run bounded by minutes has not fixed it yet."""
    decay_start: int | None = None
    """Where the line on which the rate falls begins; before the run (below 0) for one that slowed
    down."""
    pieces: int = 1
    """Parts that each micro-batch is cut into since memory ran out (see training/train_step.py)."""
    skipped: int = 0
    """Updates left out because their loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    rolled_back_at: int | None = None
    """Step at which the weights last went back to a checkpoint, too many being skipped in a row."""

    def advance(self, images: int, seconds: float) -> None:
        """Count an update of so many pictures, at so many seconds of the run."""
        self.step += 1
        self.images += images
        self.seconds = seconds

    def count_skipped(self, skipped: bool) -> None:
        """Whether the update that is under way leaves the weights as they are."""
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def split_micro_batches(self) -> None:
        """From here on each goes through the model in twice as many parts."""
        self.pieces *= 2

    def end_at(self, total_steps: int, decay_start: int) -> None:
        self.total_steps, self.decay_start = total_steps, decay_start

    def rewind(self, before: TrainingState) -> None:
        """Back to an earlier step, whose updates are done again. The time that passed has passed,
        and memory is as short as it is."""
        for name in ("step", "images", "skipped", "skipped_in_a_row", "rolled_back_at"):
            setattr(self, name, getattr(before, name))

    def note_roll_back(self) -> None:
        """The weights are older ones; the count of pictures goes on."""
        self.rolled_back_at, self.skipped_in_a_row = self.step, 0

    @classmethod
    def read(cls, path: Path) -> TrainingState:
        """Raises LimnerError if it is anything else than such a state."""
        return cls.of(read_json(path), path)

    @classmethod
    def of(cls, values: Any, path: Path) -> TrainingState:
        """Of what was read from a file. Raises LimnerError if it is anything else."""
        if not isinstance(values, dict):
            raise LimnerError(f"{path}: {shorten(values)} is no training state")
        whole = {f.name for f in fields(cls)} - {"seconds"}
        for name, value in values.items():
            optional = value is None and name in ("total_steps", "decay_start", "rolled_back_at")
            kinds = int if name in whole else (int, float)
            good = isinstance(value, kinds) and not isinstance(value, bool)
            lowest = -(2**63) if name == "decay_start" else 0
            if not (optional or (good and lowest <= value < 2**63)):
                raise LimnerError(
                    f"{path}: {shorten_name(name)} is {shorten(value)}, not a number from "
                    f"{lowest} on"
                )
        try:
            return cls(**values)
        except TypeError:
            unknown = [shorten_name(name) for name in values if name not in whole | {"seconds"}]
            raise LimnerError(f"{path}: {', '.join(unknown)} is not known") from None


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint folder; weights are read when asked for."""

    folder: Path
    config: Config
    tokenizer: CaptionTokenizer | None
    """None: captions are read by a pretrained text encoder."""
    state: TrainingState

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Open a checkpoint folder, or the newest one of a run folder."""
        folder = find_checkpoint(path)
        config = load_config(folder / "config.yaml")
        if problem := damage(folder, names=()):
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
        """Which rows it learned from (`limner.data.row_fingerprints`); None: an earlier version did
        not write that down. Raises LimnerError if the file is damaged."""
        path = self.folder / ROWS
        if not path.is_file():
            return None
        self.verify(ROWS)
        try:
            return from_bytes(path.read_bytes())
        except (OSError, ValueError, EOFError) as error:
            raise LimnerError(f"{path} is damaged: {error}") from None

    @property
    def lineage(self) -> Lineage:
        """What it began from. Raises LimnerError if its lineage.json is damaged."""
        return read_lineage(self.folder) or lineage_of_config(self.config)

    def pictures_per_update(self) -> int:
        """As the run was when it was saved (0 before its first step)."""
        return self.state.images // max(1, self.state.step)

    def load_weights(self, model: Weighted, averaged: bool) -> None:
        """Put the weights into the model, or this process's part of them if it is sharded; the
        averaged ones if asked and there."""
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
        """Raises LimnerError if these files are not what was written."""
        if problem := damage(self.folder, names=names):
            raise LimnerError(f"the checkpoint is damaged: {self.folder / problem}")

    def load_optimizers(self, optimizers: dict[str, Any]) -> None:
        """Put the state of each optimizer (and of what else remembers something from update to
        update) back where it came from."""
        path = self.folder / (INDEX if self.in_shards else "optimizer.pt")
        if self.in_shards:
            self.verify(INDEX, *shard_files(self.folder))
            saved = read_shards(self.folder, "optimizers")
        else:
            self.verify(path.name)
            saved = load_tensors(path)
        for name, optimizer in optimizers.items():
            if name in ("scaler", "balance") and name not in saved:
                continue  # of a run without it; it finds its numbers in a few updates
            groups = getattr(optimizer, "param_groups", [])
            settings = [{k: v for k, v in g.items() if k != "params"} for g in groups]
            try:
                _check_optimizer(saved[name], groups)
                state = sharded_state(saved[name], optimizer) if groups else saved[name]
                optimizer.load_state_dict(state)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError):
                raise LimnerError(
                    f"{path} does not fit the {name} optimizer of this configuration, or is "
                    f"damaged; optimizer.type is {self.config.optimizer.type!r} in the checkpoint"
                ) from None
            # torch takes betas, weight decay, ... from the file too; what is asked for now counts.
            for group, asked in zip(getattr(optimizer, "param_groups", []), settings, strict=True):
                group.update(asked)


@dataclass(frozen=True)
class Adapters:
    """Of a run with `lora.rank`, whose model is saved with them merged."""

    kept: dict[str, Tensor]
    """Adapted weights without adapters, and the adapters as trained."""
    shown: dict[str, Tensor]
    """The (averaged) adapters, named as peft does."""
    description: dict[str, Any]
    """peft's configuration."""


@dataclass(frozen=True)
class Contents:
    """What is to be saved: state dicts as they are, or copies that training no longer changes."""

    model: dict[str, Tensor]
    averaged: dict[str, Tensor] | None
    optimizers: dict[str, Any]
    tokenizer: CaptionTokenizer | None
    config: Config
    state: TrainingState
    copied_already: bool = False
    adapters: Adapters | None = None
    rows: np.ndarray | None = None
    """`limner.data.row_fingerprints` of the rows that it learns from."""
    lineage: Lineage | None = None

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
        """About as much as it takes on a disk."""
        adapters = self.adapters
        tensors = [self.model, self.averaged, self.optimizers]
        return _bytes(tensors + ([adapters.kept, adapters.shown] if adapters else []))

    def copied(self) -> Contents:
        """The same in memory of its own, on the host."""
        if self.copied_already:
            return self
        tensors = {"model": self.model, "averaged": self.averaged, "optimizers": self.optimizers}
        adapters = self.adapters and replace(
            self.adapters, kept=_copied(self.adapters.kept), shown=_copied(self.adapters.shown)
        )
        copies = {name: _copied(value) for name, value in tensors.items()}
        return replace(self, **copies, adapters=adapters)

    def whole(self, keep: bool) -> Contents:
        """The same of a sharded run, made whole in the host's memory. Every process calls it.

        Args:
            keep: whether to have it, or only to give one's parts.
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
    """Write a checkpoint, whole and durable, or leave what was there.

    Raises:
        LimnerError: the folder is there and is something else than a checkpoint.
        OSError, RuntimeError: it could not be written.
    """
    folder = folder.resolve()
    ours = (*FILES, AVERAGED, TOKENIZER, LINEAGE, LORA, ADAPTER, ROWS)
    replaceable(folder, frozenset(ours))
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
    """What a checkpoint says in words."""
    (staging / "config.yaml").write_text(contents.config.to_yaml(), encoding="utf-8")
    if contents.rows is not None:
        (staging / ROWS).write_bytes(as_bytes(contents.rows))
    if contents.tokenizer is not None:
        contents.tokenizer.save(staging / TOKENIZER)
    if contents.lineage is not None:
        write_lineage(staging, contents.lineage)
    (staging / "training_state.json").write_text(
        json.dumps(asdict(contents.state), indent=2), encoding="utf-8"
    )


def needed(folder: Path) -> tuple[str, ...]:
    """The files without which a folder is no finished checkpoint."""
    if not (folder / INDEX).is_file():
        return FILES
    return (*FILES[2:], INDEX)


def _save_adapters(staging: Path, adapters: Adapters) -> None:
    save_file({name: t.contiguous() for name, t in adapters.kept.items()}, staging / LORA)
    (staging / ADAPTER).mkdir()
    shown = {name: t.contiguous() for name, t in adapters.shown.items()}
    save_file(shown, staging / ADAPTER / "adapter_model.safetensors", {"format": "pt"})
    text = json.dumps(adapters.description, indent=2, sort_keys=True, default=sorted)  # of sets
    (staging / ADAPTER / "adapter_config.json").write_text(text, encoding="utf-8")


def checkpoints(run_folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return [p for p in _numbered(run_folder) if all((p / n).is_file() for n in needed(p))]


def _numbered(run_folder: Path) -> list[Path]:
    if not run_folder.is_dir():
        return []
    named = [(NAME.fullmatch(p.name), p) for p in run_folder.iterdir() if p.is_dir()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def newest_good(
    run_folder: Path, names: tuple[str, ...] | None = None, before: int | None = None
) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that verifies and can be opened, and why newer ones were
    passed over.

    Args:
        names: files whose checksums are compared; None: all. (See `damage`.)
        before: only of earlier steps than this one.
    """
    passed_over: list[str] = []
    for path in reversed(_numbered(run_folder)):
        if before is not None and step_of(path) >= before:
            continue
        missing = [name for name in needed(path) if not (path / name).is_file()]
        problem = f"{', '.join(missing)} missing" if missing else damage(path, names)
        problem = problem or _why_not_opened(path)
        if problem is None:
            return path, passed_over
        passed_over.append(f"{path.name} was passed over: {problem}")
    return None, passed_over


def step_of(checkpoint: Path) -> int:
    """The step in the name of a run's checkpoint."""
    return int(checkpoint.name.partition("-")[2])


def _why_not_opened(path: Path) -> str | None:
    """What cannot be read of a checkpoint whose checksums are right, but for its tensors."""
    try:
        load_config(path / "config.yaml")
        TrainingState.read(path / "training_state.json")
        if (path / TOKENIZER).is_file():
            CaptionTokenizer.load(path / TOKENIZER, 1)
    except LimnerError as error:
        return " ".join(str(error).split())[:300]
    return None


def newest_checkpoint(run_folder: Path) -> Path:
    """What `--resume latest` means. Raises LimnerError."""
    found, passed_over = newest_good(run_folder)
    for sentence in passed_over:
        log.warning("%s", sentence)
    if found is None:
        reasons = "".join(f"\n  - {sentence}" for sentence in passed_over)
        raise LimnerError(
            f"--resume latest: no checkpoint in {run_folder.absolute()}; start without --resume, "
            f"or set training.output_dir to the run's folder{reasons}"
        )
    return found


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint folder as given, or the newest good one of a run folder. Raises LimnerError."""
    folder = Path(path)
    if folder.is_file() and folder.name in (*FILES, AVERAGED, INDEX):
        folder = folder.parent
    if not folder.is_dir():
        raise LimnerError(
            f"no checkpoint at {folder.absolute()}: give a run folder (outputs/demo) or one of its "
            "checkpoint-<step> folders"
        )
    if not (folder / "training_state.json").is_file():
        found, passed_over = newest_good(folder, (AVERAGED, "model.pt"))
        for sentence in passed_over:
            log.warning("%s", sentence)
        if found is not None:
            return found
        if passed_over:
            raise LimnerError(
                f"{folder} has no good checkpoint:\n  - " + "\n  - ".join(passed_over)
            )
    if missing := [name for name in needed(folder) if not (folder / name).is_file()]:
        raise LimnerError(f"{folder} is not a complete checkpoint: {', '.join(missing)} missing")
    return folder


MAY_DIFFER = ("dropout", "use_slicing", "use_tiling")
"""What changes no weight's meaning."""
OPEN = ("fingerprint", "patch_size", "in_channels", "out_channels", "max_length")
"""What a configuration may leave to the pretrained parts."""


def _differs(key: str, there: Any, here: Any) -> bool:
    if key == "pretrained_model_name":  # where a part is may change, whether there is one may not
        return (there is None) != (here is None)
    return there != here and key not in MAY_DIFFER and not (key in OPEN and here is None)


def check_same_model(saved: Config, asked: Config) -> None:
    """Refuse to continue a checkpoint as another model, naming each setting that differs."""
    differences = [
        f"{section}.{key}: {there!r} in the checkpoint, {here!r} in the configuration"
        for section in ("model", "text_encoder", "vae", "lora")
        for (key, there), (_, here) in zip(
            getattr(saved, section), getattr(asked, section), strict=True
        )
        if _differs(key, there, here)
    ]
    if differences:
        raise LimnerError(
            "the checkpoint is of another model:\n"
            + "\n".join(f"  - {d}" for d in differences)
            + "\nset these as the checkpoint has them, or start a new run in another folder"
        )


def fit_weights(model: Weighted, weights: dict[str, Tensor], path: Path) -> None:
    """Put weights into a model. Raises LimnerError naming what does not fit."""
    wanted = model.state_dict()
    problems = [
        f"{name}: {_shown(weights[name])} in the file, {tuple(tensor.shape)} in the model"
        if name in weights
        else f"{name}: not in the file"
        for name, tensor in wanted.items()
        if name not in weights or _shape(weights[name]) != tensor.shape
    ] + [f"{shorten_name(str(name))}: not in the model" for name in weights if name not in wanted]
    if problems:
        more = f"\n  ... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise LimnerError(
            f"{path} does not fit the model its configuration describes:\n"
            + "\n".join(f"  - {p}" for p in problems[:5])
            + more
        )
    for name, tensor in weights.items():
        if why := why_not_weights(tensor, wanted[name]):
            raise LimnerError(f"{path} is damaged: {name} is {why}")
    model.load_state_dict({name: shard_like(wanted[name], t) for name, t in weights.items()})


def _check_optimizer(saved: Any, groups: list[dict[str, Any]]) -> None:
    """Raises ValueError if a state is of another weight's shape, or of numbers that are none; torch
    notices that at the next update or never."""
    weights = [weight for group in groups for weight in group["params"]]
    for place, state in saved["state"].items() if groups else ():
        for value in state.values():
            if not isinstance(value, Tensor):
                continue
            if value.dim() and value.shape != weights[place].shape:
                raise ValueError("of another shape")
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ValueError("not finite")


def _shape(value: Any) -> torch.Size | None:
    return value.shape if isinstance(value, Tensor) else None


def _shown(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
