"""A checkpoint is a folder that says everything about itself.

    checkpoint-1000/
      model.pt              weights as trained, {"text_encoder.*", "denoiser.*"}
      ema.safetensors       averaged weights, the ones to draw with
      optimizer.pt          state of each optimizer
      training_state.json   step, images, seconds, and the schedule's fixed points
      config.yaml           the resolved configuration
      tokenizer.json        the words the built-in text encoder knows

It is written to a staging folder and renamed, so that a folder of that name is complete.
Everything is read with `weights_only=True`, safetensors, or as plain text: nothing in it can run.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limner.config import Config, load_config
from limner.errors import LimnerError
from limner.text.tokenizer import CaptionTokenizer

FILES = ("model.pt", "optimizer.pt", "training_state.json", "config.yaml")
TOKENIZER = "tokenizer.json"
AVERAGED = "ema.safetensors"
NAME = re.compile(r"checkpoint-(\d+)")


@dataclass
class TrainingState:
    """How far a run is. What can be computed from these is not stored."""

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    total_steps: int | None = None
    """None while a run bounded by minutes has not fixed it yet."""
    decay_start: int | None = None


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
        try:
            state = TrainingState(**_read_json(folder / "training_state.json"))
        except TypeError as error:
            raise LimnerError(f"{folder / 'training_state.json'}: {error}") from None
        tokenizer = None
        if config.text_encoder.pretrained_model_name is None:
            assert config.text_encoder.max_length
            length = config.text_encoder.max_length
            tokenizer = CaptionTokenizer.load(folder / TOKENIZER, length)
        return cls(folder, config, tokenizer, state)

    def load_weights(self, model: nn.Module, averaged: bool) -> None:
        """Put the weights into the model; the averaged ones if asked and there."""
        path = self.folder / AVERAGED
        if averaged and path.is_file():
            try:
                weights = load_file(path)
            except SafetensorError as error:
                raise LimnerError(f"{path} is damaged: {error}") from None
        else:
            path = self.folder / "model.pt"
            weights = load_tensors(path)
        _fit(model, weights, path)

    def load_optimizers(self, optimizers: dict[str, Any]) -> None:
        """Put the state of each optimizer (and of fp16's loss scaler) back where it came from."""
        path = self.folder / "optimizer.pt"
        saved = load_tensors(path)
        for name, optimizer in optimizers.items():
            if name == "scaler" and name not in saved:
                continue  # of a run in another precision; the scale finds its size in a few updates
            groups = getattr(optimizer, "param_groups", [])
            settings = [{k: v for k, v in g.items() if k != "params"} for g in groups]
            try:
                optimizer.load_state_dict(saved[name])
            except (KeyError, TypeError, ValueError, AttributeError):
                raise LimnerError(
                    f"{path} does not fit the {name} optimizer of this configuration; "
                    f"optimizer.type is {self.config.optimizer.type!r} in the checkpoint"
                ) from None
            # torch takes betas, weight decay, ... from the file too; what is asked for now counts.
            for group, asked in zip(getattr(optimizer, "param_groups", []), settings, strict=True):
                group.update(asked)


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    averaged: nn.Module | None,
    optimizers: dict[str, Any],
    tokenizer: CaptionTokenizer | None,
    config: Config,
    state: TrainingState,
) -> Path:
    """Write a checkpoint beside its place, then rename it there; an older one gives way last.

    Raises:
        LimnerError: the folder is there and is something else than a checkpoint.
    """
    folder = folder.resolve()
    if folder.exists() and not _can_be_replaced(folder):
        raise LimnerError(
            f"{folder} is there already and is no checkpoint, so it is not replaced by one: name a "
            "folder that does not exist yet"
        )
    staging = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    torch.save(model.state_dict(), staging / "model.pt")
    if averaged is not None:
        weights = {name: t.contiguous() for name, t in averaged.state_dict().items()}
        save_file(weights, staging / AVERAGED)
    torch.save({k: o.state_dict() for k, o in optimizers.items()}, staging / "optimizer.pt")
    (staging / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(staging / TOKENIZER)
    (staging / "training_state.json").write_text(
        json.dumps(asdict(state), indent=2), encoding="utf-8"
    )
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(staging, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _can_be_replaced(folder: Path) -> bool:
    """Whether it holds a checkpoint, or what is left of one, and nothing else of value."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return "training_state.json" in names or names <= {*FILES, AVERAGED, TOKENIZER}


def checkpoints(run_folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    if not run_folder.is_dir():
        return []
    numbered = [(NAME.fullmatch(p.name), p) for p in run_folder.iterdir() if p.is_dir()]
    complete = [
        (int(match[1]), path)
        for match, path in numbered
        if match and all((path / name).is_file() for name in FILES)
    ]
    return [path for _, path in sorted(complete)]


def newest_checkpoint(run_folder: Path) -> Path:
    """What `--resume latest` means. Raises LimnerError."""
    if not (found := checkpoints(run_folder)):
        raise LimnerError(
            f"--resume latest: no checkpoint in {run_folder.absolute()}; start without --resume, "
            "or set training.output_dir to the run's folder"
        )
    return found[-1]


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint folder as given, or the newest of a run folder. Raises LimnerError."""
    folder = Path(path)
    if folder.is_file() and folder.name in (*FILES, AVERAGED):
        folder = folder.parent
    if not folder.is_dir():
        raise LimnerError(
            f"no checkpoint at {folder.absolute()}: give a run folder (outputs/demo) or one of its "
            "checkpoint-<step> folders"
        )
    if not (folder / "training_state.json").is_file() and (found := checkpoints(folder)):
        return found[-1]
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise LimnerError(f"{folder} is not a complete checkpoint: {', '.join(missing)} missing")
    return folder


def load_tensors(path: Path) -> dict[str, Any]:
    """A .pt file, tensors and plain values only: a pickle that would run anything is refused."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise LimnerError(f"{path} is missing: the checkpoint is not complete") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LimnerError(
            f"{path} is damaged, or holds more than weights and was refused: {reason}"
        ) from None
    if not isinstance(loaded, dict):
        raise LimnerError(f"{path} holds a {type(loaded).__name__}, and no weights by name")
    return loaded


def resume_config(
    resume: str | Path | None, config_file: Path | None, overrides: Sequence[str]
) -> Config | None:
    """The configuration to go on with when none was named: the checkpoint's own, overridden."""
    if resume is None or config_file is not None:
        return None
    if str(resume) == "latest":
        resume = newest_checkpoint(Path(load_config(None, overrides).training.output_dir))
    return load_config(find_checkpoint(resume) / "config.yaml", overrides)


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
        for section in ("model", "text_encoder", "vae")
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


def _fit(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    wanted = model.state_dict()
    problems = [
        f"{name}: {tuple(weights[name].shape)} in the file, {tuple(tensor.shape)} in the model"
        if name in weights
        else f"{name}: not in the file"
        for name, tensor in wanted.items()
        if name not in weights or weights[name].shape != tensor.shape
    ] + [f"{name}: not in the model" for name in weights if name not in wanted]
    if problems:
        more = f"\n  ... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise LimnerError(
            f"{path} does not fit the model its config.yaml describes:\n"
            + "\n".join(f"  - {p}" for p in problems[:5])
            + more
        )
    model.load_state_dict(weights)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LimnerError(f"{path} is damaged: {error}") from None
