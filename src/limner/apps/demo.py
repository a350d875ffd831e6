"""`limner demo`: from nothing to a model that draws, in ten minutes, with everything to look at."""

from __future__ import annotations

import math
import re
import shutil
import time
from pathlib import Path

import torch

from limner.apps.own_pictures.choose import SAMPLING
from limner.checkpoint.locate import PLAIN_FILES, checkpoints
from limner.checkpoint.manifest import own_files
from limner.config import Config, load_config
from limner.console import say
from limner.device import choose_device
from limner.errors import LimnerError
from limner.evaluation.end_of_run import evaluate_run
from limner.evaluation.summary import how_to_measure_all, sentences_of_run
from limner.files.folder_lock import TRAINING, FolderLock
from limner.files.output_folders import visible_names
from limner.reports.run_folder import read_json, read_lines
from limner.reports.run_report import write_report
from limner.training.stopping import Stopped
from limner.training.trainer import Trainer

FREE_PROMPTS = (
    "a red apple",
    "红苹果",
    "thumbs up",
    "拇指向上，较深肤色",
    "a penguin",
    "a yellow heart",
    "rocket",
    "",
)
ENOUGH_STEPS = 500
"""From which most trained prompts have their picture (benchmarks/README.md). Where fewer were made,
and most have not, that is said."""
PREVIEW_PROMPTS = (
    "red apple",
    "thumbs up, dark skin tone",
    "panda",
    "victory hand, light skin tone",
    "astronaut, medium skin tone",
    "sunflower",
    "a red apple",
    "红苹果",
)
DRAWING_SHARE, MOST_DRAWING = 0.12, 75.0
"""Kept for drawing and measuring at the end: a share of the time, at most so many seconds."""


def demo_config(minutes: float, output_dir: str, device: torch.device) -> Config:
    """Small enough for a laptop's CPU; on a GPU, the same minutes allow a larger model."""
    train_minutes = minutes - min(minutes * DRAWING_SHARE, MOST_DRAWING / 60)
    gpu = device.type == "cuda"
    return load_config(
        {
            "data": {
                "dataset_name": "emoji",
                "subset": "demo",
                "image_size": 64,
            },
            "model": {
                "patch_size": 4 if gpu else 8,
                "hidden_size": 384 if gpu else 256,
                "num_layers": 8 if gpu else 6,
                "num_heads": 6 if gpu else 4,
            },
            "text_encoder": {"max_length": 16},
            "training": {
                "output_dir": output_dir,
                "device": device.type,
                "max_minutes": round(train_minutes, 3),
                "batch_size": 64 if gpu else 32,
                "num_workers": 4 if gpu else 0,
                "save_steps": 100_000,
                "heldout_steps": 250,
                "heldout_pictures": 32,
                "preview_steps": 250,
                "preview_prompts": PREVIEW_PROMPTS,
            },
            "sampling": dict(SAMPLING),
        }
    )


WRITTEN = frozenset(
    {
        *("config.yaml", "log.jsonl", "refused.jsonl", "previews", "tensorboard", "samples"),
        *(
            "samples.json",
            "samples.png",
            "results.json",
            "report.html",
            "film.webp",
            "evaluation",
            "check",
        ),
        *("trackers.json", "lineage.json"),
    }
)
"""What a run, its report, and its evaluations leave in its folder, checkpoints apart."""


SWEPT = ("sweep.json", "sweep.png")
"""What limner sweep leaves in a checkpoint."""


def remove_earlier(folder: Path) -> None:
    """Remove an earlier demo: what it drew would mix with this one. Hidden files stay.

    Raises:
        LimnerError: something there is somebody's own.
    """
    found = visible_names(folder)
    try:
        config = load_config(folder / "config.yaml") if found else None
        demo = config is None or config.training.preview_prompts == PREVIEW_PROMPTS
    except LimnerError:
        demo = False
    if not demo:
        raise LimnerError(
            f"{folder} is not empty and is not an earlier demo; choose another --output"
        )
    numbered = re.compile(r"(evaluation-)?checkpoint-\d+|short-of-memory-\d+\.json")
    if own := [n for n in found if n not in WRITTEN and not numbered.fullmatch(n)]:
        raise LimnerError(
            f"{folder} contains {own[0]}, which no demo wrote, and an earlier demo is removed as a "
            "whole; move it away, or choose another --output"
        )
    if why := _more_than_a_demo(folder, config):
        raise LimnerError(
            f"{folder} began as a demo and {why}, so it is not removed for a new one; choose "
            "another --output, or delete it yourself"
        )
    # By its configuration a demo is known, also if a kill comes in between.
    for name in sorted(found, key="config.yaml".__eq__):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _more_than_a_demo(folder: Path, config: Config | None) -> str | None:
    """What somebody did with a demo that would be missed; None: nothing."""
    if config and (config.data.dataset_name != "emoji" or config.training.init_from):
        return "learned something else"
    results = read_json(folder / "results.json")
    by_demo = not isinstance(results, dict) or str(results.get("command")).startswith("limner demo")
    events = [e for e in read_lines(folder / "log.jsonl") if e.get("kind") == "event"]
    resumed = any(str(e.get("message")).startswith("resumed at step ") for e in events)
    if resumed or not by_demo:  # a demo itself begins anew, also if it was interrupted
        return "was trained further"
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            names = own_files(checkpoint)
        except OSError:  # a kill came while it was being removed
            names = sorted({path.name for path in checkpoint.iterdir()} - {*PLAIN_FILES})
        if own := [name for name in names if name not in SWEPT]:
            return f"holds {checkpoint.name}/{own[0]}"
    return None


def run_demo(minutes: float = 10.0, output_dir: str = "outputs/demo") -> Path:
    """Train on the built-in emoji for `minutes` in all, draw, measure, report."""
    begin = time.perf_counter()
    folder = Path(output_dir)
    with FolderLock(folder, "choose another --output", TRAINING):
        remove_earlier(folder)
        return _run_demo(minutes, output_dir, begin)


def _run_demo(minutes: float, output_dir: str, begin: float) -> Path:
    folder = Path(output_dir)
    trainer = Trainer(demo_config(minutes, output_dir, choose_device("auto")))
    say(f"Limner demo: {trainer.data.set.description}")
    try:
        trainer.train()
    except Stopped as stopped:
        made = f"; its model is in {folder} and can draw" if checkpoints(folder) else ""
        raise Stopped(f"the demo was stopped{made}. limner demo starts over") from stopped
    command = f"limner demo --minutes {minutes:g}"
    say("Drawing every prompt once, trained and held out, and measuring ...")
    left = 0.9 * (60 * minutes - (time.perf_counter() - begin))  # the rest is for measuring
    results = evaluate_run(
        folder, trainer.config, trainer.data, FREE_PROMPTS, command=command, seconds=left
    )
    write_report(folder)
    say()
    for sentence in [*sentences_of_run(results), *how_to_measure_all(results, folder)]:
        say(sentence)
    say(f"(nearest by {results['distance']}, among {results['range']})")
    steps, recall = trainer.state.step, results["recall"].get("trained")
    if steps < ENOUGH_STEPS and (not recall or recall["at_1"] < 0.5):
        needed = ENOUGH_STEPS / max(1, steps) * trainer.state.seconds / 60
        say(
            f"\n{steps:,} steps are too few to learn this: "
            f"{ENOUGH_STEPS} steps take about {needed:.0f} minutes of training here (limner demo "
            f"--minutes {math.ceil(1.25 * needed)})"
        )
    say(f"\n{(time.perf_counter() - begin) / 60:.1f} minutes in all. Look at")
    for name in ("samples.png", "report.html"):
        say(f"  {folder / name}")
    say("and try")
    say(f'  limner generate {output_dir} "a red apple" --seed 42')
    say(f'  limner generate {output_dir} "红苹果" --seed 7 --output apple.png')
    say(f"  limner play {output_dir}   # on a page in the browser")
    say(f"  limner distill {output_dir} --output {output_dir}-fast   # to draw in one or two steps")
    say("  limner train my_pictures --minutes 10   # your own: cat.jpg, cat.txt, ...")
    return folder
