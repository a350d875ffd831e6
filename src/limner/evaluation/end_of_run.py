"""The evaluation at the end of a run: sample its prompts, measure, write samples and results.

Writes samples/, samples.json, samples.png, and results.json. Prompt following is measured, too: by
recall (is the true image the nearest to the generated one?), of shapes by a checker that parses the
image.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from limner.config import Config
from limner.console import progress_shown
from limner.data.dataset import Streamed, shown_set
from limner.data.open import Data
from limner.evaluation.about import about_run
from limner.evaluation.prompt_following import (
    check_shapes,
    rank_drawings,
    ranks_by_split,
    shapes_by_split,
    why_no_recall,
)
from limner.evaluation.prompts import prompts_of_run
from limner.evaluation.results_folder import save_drawing
from limner.evaluation.samples import (
    FEW,
    Drawing,
    draw,
    in_any_number,
    open_generator,
    show_truth,
    some_of_each,
)
from limner.evaluation.speckle import measure_speckle
from limner.evaluation.splits import Split
from limner.files.atomic import replacing, write_text_whole
from limner.files.folder_lock import FolderLock
from limner.files.output_folders import foreign_names
from limner.inference.contact_sheet import contact_sheet, save_contact_sheet
from limner.metrics import retrieval
from limner.redaction import places_of, redacted

log = logging.getLogger(__name__)

SAMPLES = "samples"
MOST_COMPARED = 4000
"""Real images, at most, among which the true one is sought; all emoji are fewer."""
READING = 30.0
"""Seconds, at least, for reading them where time is limited."""
OURS = re.compile(r"\d{3,}(-truth)?\.png")
"""Names of images in SAMPLES."""


def evaluate_run(
    run_folder: Path,
    config: Config,
    data: Data,
    free_prompts: Sequence[str] = (),
    most: int | None = 400,
    shown: int = 48,
    command: str | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Generate images, measure, and write the results.

    Args:
        run_folder: its newest checkpoint is used, with its own sampling settings.
        free_prompts: prompts to sample in addition to captions.
        most: captions of each split, at most; None: all.
        shown: images of each split to save, evenly spaced.
        command: the command line, to be recorded.
        seconds: time limit of the sampling, and by a quarter of it (at least `READING`) of reading
            the images among which the true one is sought. If not all prompts fit, an even selection
            is sampled, and the results record it (`drawn`).

    Returns:
        The contents of results.json.
    """
    with FolderLock(run_folder, "write its report afterwards", ".limner-report.lock"):
        generator = open_generator(run_folder, config)
        asked = prompts_of_run(data, free_prompts, most)
        with progress_shown(log, "images generated") as progress:
            draw(generator, asked if seconds is None else _in_turn(asked), progress, seconds)
        drawings = [d for d in asked if d.image is not None]

        results = about_run(run_folder, data, generator)
        whole = Counter(d.split for d in asked)
        whole |= {Split.TRAINED: len(data.trained.rows), Split.HELD_OUT: len(data.held_out.rows)}
        if len(drawings) < whole.total():
            drawn = Counter(d.split for d in drawings)
            results["drawn"] = {split: [drawn[split], n] for split, n in whole.items() if n}
        results |= _answers(drawings, data, None if seconds is None else max(READING, seconds / 4))
        results["flat_region_std"] = measure_speckle(drawings, data)
        results["command"] = command
        results = redacted(results, places_of(config.model_dump()))
        chosen = some_of_each(Split, drawings, shown)
        show_truth(chosen, data)
        _write(run_folder, results, chosen)
        return results


def drawing_time(training_seconds: float) -> float:
    """The time limit of sampling after a run: an eighth of its time, at least a minute."""
    return max(60.0, training_seconds / 8)


def _in_turn(drawings: Sequence[Drawing]) -> list[Drawing]:
    """The order of sampling under a time limit."""
    free = [d for d in drawings if d.split is Split.FREE]
    known = in_any_number([d for d in drawings if d.split is not Split.FREE])
    return [*known[:FEW], *free, *known[FEW:]]


def _answers(drawings: Sequence[Drawing], data: Data, seconds: float | None) -> dict[str, Any]:
    """Prompt following: the checker of shapes, or recall if each caption has one image.

    Args:
        seconds: time limit of reading the images among which the true one is sought.
    """
    if data.set.name == "shapes":
        check_shapes(drawings)
        return {"checker": shapes_by_split(drawings)}
    if data.set.name != "emoji" and (reason := _why_no_recall(data)):
        log.info(reason)
        return {}
    rows = len(data.trained.rows) + len(data.held_out.rows)
    most = None if rows <= MOST_COMPARED else MOST_COMPARED
    with progress_shown(log, "real images read") as progress:
        count = rank_drawings(drawings, data, most, progress, seconds)
    among = f"all {count:,}" if count >= rows else f"{count:,} of {rows:,}"
    return {
        "range": f"{among} images: {shown_set(data.set)['description']}",
        "distance": retrieval.DISTANCE,
        "recall": {
            split: retrieval.summary(ranks) for split, ranks in ranks_by_split(drawings).items()
        },
    }


def _why_no_recall(data: Data) -> str | None:
    if isinstance(data.set, Streamed) and data.set.windowed:
        return "skipped recall: it would read images from all over a streamed data set"
    return why_no_recall(data)


def _write(run_folder: Path, results: dict[str, Any], drawings: Sequence[Drawing]) -> None:
    before = run_folder / SAMPLES
    others = foreign_names(before, like=OURS)
    with replacing(before, folder=True, durable=bool(others)) as folder:
        for name in others:  # keep files of the user
            if (before / name).is_dir():
                shutil.copytree(before / name, folder / name, symlinks=True)
            else:
                shutil.copy2(before / name, folder / name, follow_symlinks=False)
        lines = [
            save_drawing(drawing, folder, f"{number:03d}", SAMPLES)
            for number, drawing in enumerate(drawings)
        ]
    for line in lines:
        if line["right"] is None:
            del line["right"]
    _write_json(run_folder / "samples.json", lines)
    _write_json(run_folder / "results.json", results)
    prompts = [d.prompt for d in drawings]
    sheet = contact_sheet(
        [d.image for d in drawings if d.image],
        prompts,
        truths=[
            Image.fromarray(d.truth) if d.truth is not None and d.split is Split.HELD_OUT else None
            for d in drawings
        ],
        groups=[f"{d.split.heading}: {d.split.meaning}" for d in drawings],
    )
    save_contact_sheet(sheet, run_folder / "samples.png", prompts)


def _write_json(path: Path, value: Any) -> None:
    write_text_whole(path, json.dumps(value, ensure_ascii=False, indent=1))
