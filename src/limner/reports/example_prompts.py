"""Prompts that show what a model draws, from its run."""

from __future__ import annotations

from pathlib import Path

from limner.config import Config
from limner.data.order import evenly_spaced
from limner.reports.run_folder import read_run

MOST = 8


def run_folder(checkpoint: str | Path) -> Path | None:
    """The run folder, if a model was given as one."""
    folder = Path(checkpoint)
    return folder if folder.is_dir() and any(folder.glob("checkpoint-*")) else None


def example_prompts(checkpoint: str | Path, config: Config) -> list[str]:
    """At most `MOST` prompts: of the run's previews, else some of its samples.

    Args:
        checkpoint: as the model was given; only a run folder has samples.
    """
    prompts = list(config.training.preview_prompts or ())
    if not prompts and (folder := run_folder(checkpoint)) is not None:
        drawn = read_run(folder).samples
        drawn = [one for one in drawn if isinstance(one, dict) and "prompt" in one]
        prompts = [str(drawn[i]["prompt"]) for i in evenly_spaced(len(drawn), MOST)]
    return [prompt for prompt in dict.fromkeys(prompts) if prompt][:MOST]
