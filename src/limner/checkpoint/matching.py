"""Check that the weights, optimizers, and configuration of a checkpoint fit a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from limner.config import Config
from limner.distributed.dtensors import shard_like
from limner.errors import LimnerError
from limner.files.tensor_files import why_not_weights
from limner.messages import shorten_name


class Weighted(Protocol):
    """A module, or something else with a state dict of weights."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, weights: dict[str, Tensor], /) -> Any: ...


MAY_DIFFER = ("dropout", "use_slicing", "use_tiling")
"""Keys that do not change what a weight means."""


OPEN = ("fingerprint", "patch_size", "in_channels", "out_channels", "max_length")
"""Keys that a configuration may leave to the pretrained parts."""


def _differs(key: str, there: Any, here: Any) -> bool:
    if key == "pretrained_model_name":  # a part may move, but not come or go
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
            "the checkpoint belongs to another model:\n"
            + "\n".join(f"  - {d}" for d in differences)
            + "\nuse the checkpoint's values, or start a new run in another folder"
        )


def fit_weights(model: Weighted, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights into a model. Raises LimnerError naming what does not fit."""
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


def check_optimizer(saved: Any, groups: list[dict[str, Any]]) -> None:
    """Raises ValueError if a state has the wrong shape or is not finite, which torch would notice
    at the next update or never."""
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
