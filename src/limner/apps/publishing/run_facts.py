"""Results of a run and of an evaluation that belong to the published weights."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from limner.apps.publishing.card import BUILT_IN, Sample
from limner.apps.publishing.public import public_evaluation
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.locate import newest_good
from limner.checkpoint.single_file import WeightsFile, sha256_of
from limner.data.order import evenly_spaced
from limner.evaluation.results_folder import IMAGES, PAGE, RESULTS, places
from limner.evaluation.splits import Split
from limner.reports.evaluation_report import write_page
from limner.reports.run_folder import Run, read_json, read_run

MOST_OF_EACH = 8
"""Maximum number of images for each of training, held-out, and free prompts."""
log = logging.getLogger("limner")


def run_of(opened: Checkpoint | WeightsFile) -> Run | None:
    """The run of these weights, if its samples and results belong to them."""
    if isinstance(opened, WeightsFile):
        return None
    run = read_run(opened.folder.parent)
    if not run.results:
        return None
    newest, _ = newest_good(run.folder, names=())
    since = opened.state.step - int(run.results.get("steps", 0))
    if newest == opened.folder and 0 <= since < opened.config.training.logging_steps:
        return run
    log.warning(
        "the results and samples in %s do not belong to %s and are left out of the card (run "
        "limner report %s to update them for the newest checkpoint)",
        *(run.folder, opened.folder.name, run.folder),
    )
    return None


def kept_samples(folder: Path, run: Run | None) -> list[Sample]:
    """Samples from the end of the run, some of each split."""
    if run is None:
        return []
    (folder / "samples").mkdir(exist_ok=True)
    samples = []
    for split in (Split.HELD_OUT, Split.TRAINED, Split.FREE):
        own = [s for s in run.samples if s.get("split") == split]
        for place in evenly_spaced(len(own), MOST_OF_EACH):
            found = own[place]
            name = Path(str(found["file"])).name
            shutil.copyfile(run.folder / "samples" / name, folder / "samples" / name)
            sample = Sample(
                f"samples/{name}", found["prompt"], found["seed"], split, run.results["sampling"]
            )
            samples.append(sample)
    return samples


def evaluation_of(
    folder: Path, opened: Checkpoint | WeightsFile, name: str, repo: str, with_page: bool
) -> tuple[dict[str, Any], str | None]:
    """The public results of `limner evaluate` for these weights.

    Writes evaluation.json to `folder`. The page is also written if requested or if the data set is
    built in: it shows training images, which may be private.

    Args:
        name: public name of the data set.
        repo: id of the repository.
        with_page: write the page.

    Returns:
        evaluation.json, or {} if there is none, and the path of the page in `folder`.
    """
    for place in places(opened):
        found = read_json(place / RESULTS)
        if not isinstance(found, dict) or not {"checkpoint", "protocol"} <= found.keys():
            continue
        if found["checkpoint"].get("weights_sha256") == sha256_of(opened.tensors()):
            break
        log.warning("%s belongs to other weights and is left out of the card", place)
    else:
        return {}, None
    found = public_evaluation(found, opened.config, name, repo)
    (folder / "evaluation").mkdir()
    text = json.dumps(found, ensure_ascii=False, indent=1)
    data = text.encode("utf-8", errors="backslashreplace")  # see results_folder
    (folder / "evaluation" / RESULTS).write_bytes(data)
    if not (place / PAGE).is_file():
        return found, None
    if not with_page and opened.config.data.dataset_name not in BUILT_IN:
        log.warning(
            "%s shows training images and is not uploaded; use --page to upload it", place / PAGE
        )
        return found, None
    # Written again from the public results, with the images of the original.
    images = folder / "evaluation" / IMAGES
    if (place / IMAGES).is_dir():
        shutil.copytree(place / IMAGES, images)
    write_page(folder / "evaluation")
    shutil.rmtree(images, ignore_errors=True)
    return found, f"evaluation/{PAGE}"
