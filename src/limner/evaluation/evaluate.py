"""`limner evaluate`: metrics of a model, with confidence intervals and how they were measured.

RUN/evaluation/
  evaluation.json     metrics with confidence intervals, baselines, notes, and the protocol
  evaluation.html     the same as a page
  pictures/           generated images, real images of their captions, and nearest training images
"""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.open_model import open_model
from limner.checkpoint.single_file import WeightsFile
from limner.config import Config
from limner.console import progress_lines, progress_shown
from limner.data.dataset import shown_set
from limner.data.open import Data, open_data, squares
from limner.data.own_folder import cache_may_begin, keep_out_of_the_data
from limner.data.row_fingerprints import compare, fingerprints_of
from limner.device import choose_device, describe
from limner.errors import LimnerError
from limner.evaluation import heldout_loss, results_folder
from limner.evaluation.about import about_checkpoint, versions
from limner.evaluation.memorisation import Case, look_for_copies
from limner.evaluation.metrics import NamedNetwork, measure, open_networks
from limner.evaluation.prompt_following import (
    check_shapes,
    rank_drawings,
    ranks_by_split,
    shapes_by_split,
    why_no_recall,
)
from limner.evaluation.prompts import Plan, plan_of
from limner.evaluation.protocol import protocol
from limner.evaluation.reference.reference import Reference, open_reference
from limner.evaluation.reference.sources import DataImages
from limner.evaluation.reference.statistics import Statistics, statistics_of
from limner.evaluation.samples import as_tensor, draw, show_truth, some_of_each
from limner.evaluation.settings import evaluation_config
from limner.evaluation.speckle import in_words as speckle_in_words
from limner.evaluation.speckle import measure_speckle
from limner.evaluation.splits import Split, adjective
from limner.evaluation.swept import swept_note
from limner.files.folder_lock import FolderLock
from limner.inference.generator import ImageGenerator
from limner.inference.sampling_settings import in_words
from limner.messages import plural
from limner.metrics import retrieval
from limner.metrics.interval import share
from limner.redaction import places_of, redacted

log = logging.getLogger(__name__)

IN_RANGE = 20_000
"""Maximum number of images searched for the true one."""
SHOWN = 24
"""Generated images of each split that are saved."""


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation, and the folder that contains them."""

    folder: Path
    results: dict[str, Any]


def evaluate(
    checkpoint: str | Path,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    device: str | None = None,
    command: str | None = None,
) -> Evaluation:
    """Generate images, compute the metrics, and write the results.

    Args:
        checkpoint: as for `limner generate`.
        overrides: `section.key=value` for `evaluation`, `sampling`, `cache`, and paths.
        output: output folder. None: `evaluation` in the run folder, next to a checkpoint that is
            named directly, or in the current folder for a model from the Hub.
        device: "cuda", "mps", "cpu". None: the best available.
        command: the command line, to be recorded.

    Raises:
        LimnerError: a setting, the checkpoint, the data set, the reference, or a network is
            invalid. Nothing is written then.
    """
    opened = open_model(checkpoint)
    config = evaluation_config(opened.config, overrides)
    folder = output or results_folder.place_of(Path(checkpoint), opened)
    if output is not None:
        keep_out_of_the_data(folder, config, "--output", checkpoint)
    with FolderLock(folder, "choose another --output"):
        return _evaluate(checkpoint, opened, config, folder, device, command)


def _evaluate(
    checkpoint: str | Path,
    opened: Checkpoint | WeightsFile,
    config: Config,
    folder: Path,
    device: str | None,
    command: str | None,
) -> Evaluation:
    results_folder.check_replaceable(folder)
    data, cache = open_data(squares(config)), Path(config.cache.folder)
    settings, events = config.evaluation, list[str]()
    with contextlib.suppress(OSError):  # it caches hashes, so that files are read once
        if cache_may_begin(config):
            cache.mkdir(parents=True, exist_ok=True)
    if isinstance(opened, Checkpoint) and (swept := swept_note(opened.folder)) is not None:
        events.append(swept)
    if isinstance(opened, Checkpoint) and (other := changed_data(opened, data)) is not None:
        events.append(other)
    if config.data.buckets:
        events.append(
            f"the model was trained at {len(config.data.buckets)} sizes, but generated and "
            f"reference images are squares of {config.data.image_size} pixels"
        )
    plan = plan_of(config, data, events)
    reference = open_reference(config, data, plan.split, len(plan.measured))

    # Before minutes of sampling: fail early if something is missing.
    place = choose_device(device or "auto")
    eyes, missing = open_networks(settings, place)
    events += missing
    statistics = [real_images(eye, reference, cache, events) for eye in eyes]

    generator = ImageGenerator(
        opened.folder if isinstance(opened, Checkpoint) else opened.path,
        device=place,
        dtype=settings.dtype,
        vae=config.vae.pretrained_model_name,
        text_encoder=config.text_encoder.pretrained_model_name,
    )
    generator.sampling = config.sampling
    # Read now, since the run may still be training and delete this checkpoint.
    about = about_checkpoint(opened, generator)
    log.info(
        f"generating {(n := len(plan.every)):,} {plural(n, 'image')}, {len(plan.measured):,} of "
        f"them from {adjective(plan.split)} captions for the distances: "
        f"{in_words(config.sampling)}, {settings.dtype}, seed {settings.seed}, on {describe(place)}"
    )
    loss = None
    if config.model.flow_map:
        events.append(
            "skipped the held-out loss: a distilled model predicts where a step ends, not the "
            "clean image"
        )
    elif not (
        loss := heldout_loss.measure_loss(
            generator, data, settings.loss_images, progress_lines(log, "losses measured")
        )
    ):
        events.append("skipped the held-out loss: there are no readable held-out images")
    with progress_shown(log, "images generated") as progress:
        draw(generator, plan.every, progress)

    answers = ask(plan, data, events)
    speckle = measure_speckle(plan.asked, data)
    if speckle is not None and speckle["visible"]:
        events.append(speckle_in_words(speckle))
    prompts = [d.prompt for d in plan.measured]
    metrics = list[dict[str, Any]]()
    images = as_tensor(plan.measured)
    for eye, (real, others) in zip(eyes, statistics, strict=True):
        features = eye.network.features(images)
        found, said = measure(
            eye, features, prompts, real, others, reference.others_are,
            settings.floor_repeats, settings.seed,
        )  # fmt: skip
        metrics += found
        events += said
    memorisation, cases = copies(plan, data, settings.seed, events)

    chosen = some_of_each((Split.HELD_OUT, Split.TRAINED), plan.asked, SHOWN)
    show_truth([*chosen, *(case.drawing for case in cases)], data)

    refused = {row.key: row.reason for row in data.set.refused}
    for part in (data.trained, data.held_out):
        refused |= {row.key: row.reason for row in part.refused.values()}
    for real, _ in statistics:
        refused |= {} if real is None else {row.key: row.reason for row in real.refused}
    if refused:
        first, n = next(iter(refused.items())), len(refused)
        events.append(f"skipped {n:,} {plural(n, 'image')}, such as {first[0]}: {first[1]}")
    results = {
        "format": results_folder.FORMAT,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "checkpoint": about,
        "dataset": {
            **shown_set(data.set),
            "trained": len(data.trained.rows),
            "held_out": len(data.held_out.rows),
        },
        "protocol": protocol(config, data, plan, reference, eyes, generator, cache),
        "versions": versions(),
        "device": describe(place),
        "held_out_loss": loss,
        **answers,
        "flat_region_std": speckle,
        "metrics": metrics,
        "memorisation": memorisation,
        "refused": [{"key": key, "reason": reason} for key, reason in refused.items()],
        "events": events,
    }
    results = redacted(results, [str(checkpoint), *places_of(config.model_dump())])
    results_folder.write(folder, results, chosen, cases, data.trained)

    return Evaluation(folder, results_folder.read(folder))


def changed_data(opened: Checkpoint, data: Data) -> str | None:
    """A sentence if the data are not those that the checkpoint was trained on."""
    rows = opened.rows()
    if rows is None:
        return None
    changes = compare(rows, fingerprints_of(data.set, data.trained.rows))
    if changes is None:
        return None
    return (
        f"the data changed since this checkpoint was saved ({changes}), so the split into training "
        "and held-out images is not that of the training run"
    )


def real_images(
    eye: NamedNetwork, reference: Reference, cache: Path, events: list[str]
) -> tuple[Statistics | None, Tensor | None]:
    """Statistics of the reference, and features of other real images for the baseline.

    Too few held-out images for a reference are not an error; an invalid `evaluation.reference` is.
    """
    telling_of = progress_lines(log, f"real images processed by {eye.network.name}")
    try:
        found = reference.statistics(eye.network, cache, telling_of)
        others = None
        if reference.others is not None:
            others = statistics_of(reference.others, eye.network, cache, progress=telling_of)
    except LimnerError as error:
        if not isinstance(reference.source, DataImages):
            raise
        events.append(f"skipped the distances on {eye.network.name}: {error}")
        return None, None
    events += [*found.events, *(others.events if others else ())]
    return found, others.features if others else None


def ask(plan: Plan, data: Data, events: list[str]) -> dict[str, Any]:
    """`recall` and `checker`: prompt following."""
    if data.set.name == "shapes":  # many images are correct, which only a checker can tell
        check_shapes(plan.asked)
        checked = shapes_by_split(plan.asked)
        for found in checked.values():
            right = round(found["all_right"] * found["count"])
            found["all_right"] = asdict(share(right, found["count"]))
        return {"recall": None, "checker": {split.key: f for split, f in checked.items()}}
    if (reason := why_no_recall(data)) is not None:
        events.append(reason)
        return {"recall": None, "checker": None}
    with progress_shown(log, "real images read") as progress:
        count = rank_drawings(plan.asked, data, IN_RANGE, progress)
    recall = {
        split.key: {
            "count": len(ranks),
            "at_1": asdict(share(sum(rank <= 1 for rank in ranks), len(ranks))),
            "at_5": asdict(share(sum(rank <= 5 for rank in ranks), len(ranks))),
            "range": f"{count:,} training and held-out images",
            "distance": retrieval.DISTANCE,
        }
        for split, ranks in ranks_by_split(plan.asked).items()
    }
    return {"recall": recall or None, "checker": None}


def copies(
    plan: Plan, data: Data, seed: int, events: list[str]
) -> tuple[dict[str, Any] | None, list[Case]]:
    """`memorisation`, for held-out captions if there are any."""
    split = Split.HELD_OUT if data.held_out.rows else Split.TRAINED
    drawn = [d for d in plan.asked if d.split == split]
    if not drawn:
        events.append("skipped memorisation: no images were generated from held-out captions")
        return None, []
    try:
        return look_for_copies(drawn, data, seed, progress_lines(log, "training images compared"))
    except LimnerError as error:
        events.append(f"skipped memorisation: {error}")
        return None, []
