"""Prompts that show what a model draws, from its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from limner.config import Config
from limner.data.order import evenly_spaced
from limner.reports.embedded_images import UNREADABLE
from limner.reports.read_results import part
from limner.reports.run_folder import Run, read_run

MOST = 8


def run_folder(checkpoint: str | Path) -> Path | None:
    """The run folder, if a model was given as one."""
    folder = Path(checkpoint)
    return folder if folder.is_dir() and any(folder.glob("checkpoint-*")) else None


def example_prompts(checkpoint: str | Path, config: Config) -> list[str]:
    """At most `MOST` prompts: of the run's previews, else some of its samples.

    Args:
        checkpoint: as the model was given; only a run folder has samples and previews.
    """
    if config.training.preview_prompts:
        return _distinct(config.training.preview_prompts)
    folder = run_folder(checkpoint)
    return prompts_of(read_run(folder)) if folder is not None else []


def prompts_of(run: Run) -> list[str]:
    """The same of a run that was read; without samples, the captions of its newest preview."""
    drawn = [str(one["prompt"]) for one in run.samples if "prompt" in one]
    return _distinct(
        part(run.config, "training").get("preview_prompts")
        or [drawn[i] for i in evenly_spaced(len(drawn), MOST)]
        or _in_preview(run)
    )


def _in_preview(run: Run) -> list[str]:
    for _, path in run.previews[-1:]:
        try:
            with Image.open(path) as image:
                found = json.loads(image.info.get("prompts", "[]"))
        except UNREADABLE:
            continue
        return [str(prompt) for prompt in found] if isinstance(found, list) else []
    return []


def _distinct(prompts: Any) -> list[str]:
    known = prompts if isinstance(prompts, list | tuple) else []
    return [prompt for prompt in dict.fromkeys(map(str, known)) if prompt][:MOST]
