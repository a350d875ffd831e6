"""Provenance of results: weights, run, machine, and software."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.single_file import WeightsFile, sha256_of
from limner.config import Config
from limner.data.dataset import shown_set
from limner.data.open import Data
from limner.device import describe, name_of
from limner.inference.generator import ImageGenerator
from limner.models.size import count_parameters
from limner.training.monitor.learning_curve import measurements
from limner.training.monitor.run_log import read_log
from limner.version import __version__

PACKAGES = ("torch", "accelerate", "tokenizers", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions of the software that results depend on."""
    own = {"limner": __version__, "python": platform.python_version()}
    return own | {package: version(package) for package in PACKAGES}


def about_checkpoint(opened: Checkpoint | WeightsFile, generator: ImageGenerator) -> dict[str, Any]:
    """Which weights were evaluated."""
    averaged = isinstance(opened, WeightsFile) or opened.has_average
    path = opened.path if isinstance(opened, WeightsFile) else opened.folder
    return {
        "path": path.as_posix(),
        "step": opened.state.step,
        "images": opened.state.images,
        "weights": "averaged" if averaged else "as trained",
        "parameters": parameters_of(generator),
        "weights_sha256": sha256_of(opened.tensors()),
    }


def about_run(run_folder: Path, data: Data, generator: ImageGenerator) -> dict[str, Any]:
    """How the numbers in results.json were made, so that runs can be compared."""
    log = read_log(run_folder / "log.jsonl")
    speed = [event for event in log if event["kind"] == "speed"]
    keys = ("images_per_second", "mfu", "matmul_peak_gflops", "training_gflops_per_picture")
    return {
        "dataset": shown_set(data.set),
        "parameters": parameters_of(generator),
        # Of the checkpoint, which is older than the last line of the log if the run was killed.
        "steps": generator.state.step,
        "images": generator.state.images,
        "minutes": round(generator.state.seconds / 60, 2),
        "speed": {key: speed[-1][key] for key in keys} if speed else {},
        "losses": last_losses(log, data, generator.config),
        "device": describe(generator.device),
        "sampling": generator.sampling.model_dump(mode="json")
        | {"dtype": name_of(generator.dtype)},
        "versions": versions(),
    }


def last_losses(
    log: Sequence[Mapping[str, Any]], data: Data, config: Config
) -> dict[str, Any] | None:
    """The loss on held-out and on trained pictures as it was measured last, and on how many of
    each; None: it was not measured on both, or is the distance of a student from its teacher."""
    measured = [one for one in measurements(log) if not math.isnan(one.trained)]
    if not measured or config.model.flow_map:
        return None
    last, most = measured[-1], config.training.heldout_pictures
    counts = (min(most, len(images.rows)) for images in (data.held_out, data.trained))
    keys = "held_out_count", "trained_count"
    return {
        "step": last.step,
        "held_out": last.heldout,
        "trained": last.trained,
        **dict(zip(keys, counts, strict=True)),
    }


def parameters_of(generator: ImageGenerator) -> int:
    return count_parameters(generator.model)
