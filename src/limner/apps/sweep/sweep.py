"""`limner sweep`: find the best sampling settings at each cost for a trained model."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limner.apps.sweep import sheet
from limner.apps.sweep.measurement import Measurement
from limner.apps.sweep.prompts import Part, gallery_of, parts_of
from limner.apps.sweep.record import Record
from limner.apps.sweep.score import Follow, Quality, checked, nearest_is_its_own
from limner.apps.sweep.search import TimeIsUp, few_steps, search
from limner.apps.sweep.store_settings import store_sampling
from limner.apps.sweep.table import Row, Sweep, as_line, choose, label_of
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.manifest import MANIFEST
from limner.config import SamplingConfig
from limner.data.open import Data, open_data, squares
from limner.device import describe, name_of
from limner.errors import LimnerError
from limner.evaluation.networks.networks import EfficientNet, FeatureNetwork
from limner.evaluation.samples import open_generator
from limner.evaluation.swept import FILE
from limner.files.fingerprints import digest
from limner.files.folder_lock import FolderLock
from limner.inference.generator import ImageGenerator
from limner.version import __version__

COSTS = (4, 8, 16, 32, 64)
IMAGES = 64
MINUTES = 30.0
SHEET = "sweep.png"
SEARCH_SHARE = 0.7
"""Fraction of the time for the search; the rest is for the comparison."""

log = logging.getLogger(__name__)


class Measuring:
    """Measures on both parts, records in sweep.json, logs progress, and enforces the time limit."""

    def __init__(
        self, record: Record, qualities: dict[str, Quality], protocol: dict[str, Any]
    ) -> None:
        self.record, self.qualities, self.protocol = record, qualities, protocol
        self.until = float("inf")

    def __call__(self, sampling: SamplingConfig, count: int, part: str = "chosen") -> Measurement:
        found = self.record.find(self.protocol, part, sampling, count)
        if found is not None:
            return found
        start = time.monotonic()
        if start > self.until:
            raise TimeIsUp
        found = self.qualities[part].measure(sampling, count)
        self.record.add(self.protocol, part, found)
        log.info(sheet.progress(found, time.monotonic() - start))
        return found


def sweep(
    checkpoint: str | Path,
    costs: Sequence[int] | None = None,
    images: int = IMAGES,
    minutes: float = MINUTES,
    store: bool = True,
    store_cost: int | None = None,
    guide: str | Path | None = None,
    device: str | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
) -> Sweep:
    """Search for the best settings, compare them, and store the best one.

    Args:
        checkpoint: a checkpoint folder, or a run folder (its newest checkpoint).
        costs: function evaluations per image; a guided step counts twice. None: `COSTS`, or of a
            distilled model, of which only the number of steps is left to choose (and the guidance
            scale, if that is a setting), all of those.
        images: number of images per setting in the last round of a parameter.
        minutes: approximate time limit. Measurements are kept, so another call continues.
        store: make the best setting the default of the checkpoint. Ignored with a guide, which a
            configuration cannot record.
        store_cost: store the best at this cost; None: the cheapest within noise of the best.
        guide: a weaker checkpoint to guide away from (autoguidance).

    Raises:
        LimnerError: the checkpoint or sweep.json is invalid, there are too few images, or no metric
            is available.
    """
    began = time.monotonic()
    opened = Checkpoint.open(checkpoint)
    if costs is None:
        student = opened.config.model.flow_map
        costs = opened.config.distill.numbers_of_steps if student else COSTS
    with FolderLock(opened.folder, "sweep another checkpoint", ".limner-sweep.lock"):
        return _sweep(
            opened, costs, images, minutes, store, store_cost, guide, device, vae, text_encoder,
            began,
        )  # fmt: skip


def _sweep(
    opened: Checkpoint,
    costs: Sequence[int],
    images: int,
    minutes: float,
    store: bool,
    store_cost: int | None,
    guide: str | Path | None,
    device: str | None,
    vae: str | Path | None,
    text_encoder: str | Path | None,
    began: float,
) -> Sweep:
    if store_cost is not None and store_cost not in costs:
        raise LimnerError(
            f"--store {store_cost} must be one of the costs {', '.join(map(str, costs))}"
        )
    if guide is not None and store_cost is not None:
        raise LimnerError(
            "--store cannot be used with --guide, since a checkpoint cannot record its guide; "
            "remove one of them"
        )
    record = Record(opened.folder / FILE)
    generator = open_generator(opened.folder, opened.config, device, vae, text_encoder, guide)
    data = open_data(squares(opened.config))
    network, missing = feature_network(generator)
    chosen, reported = parts_of(data, images)
    qualities = {
        part.name: Quality(generator, part, network, follow_of(data, part))
        for part in (chosen, reported)
    }
    said = check_measures(qualities["chosen"], missing)
    protocol = protocol_of(opened, generator, data, (chosen, reported), network, guide)
    measure = Measuring(record, qualities, protocol)

    config = opened.config
    before = record.setting("before")
    if before is None or record.setting("stored") != config.sampling:
        before = config.sampling  # nothing was stored yet, or it was changed since
    record.values["before"] = before.model_dump(mode="json")
    for sentence in said:
        log.info(sentence)
    log.info(about(chosen, reported))

    measure.until = began + 60 * minutes * SEARCH_SHARE
    path = generator.objective.noise_schedule
    if config.model.flow_map:
        found, finished = few_steps(config.distill, before, costs, images, measure)
    else:
        found, finished = search(config, path, before, costs, images, measure)
    if not found:
        raise LimnerError(
            f"every setting requires more than {max(costs)} evaluations; use higher --costs"
        )
    measure.until = float("inf")  # all must be measured on the same number of images
    named = [("before", before), *((str(cost), found[cost]) for cost in sorted(found))]
    for_all = [(name, sampling, measure(sampling, images)) for name, sampling in named]
    measure.until = began + 60 * minutes
    rows = []
    for name, sampling, on_chosen in for_all:
        on_reported = None
        try:
            on_reported = measure(sampling, images, "reported")
        except TimeIsUp:
            finished = False
        rows.append(Row(name, sampling, on_chosen, on_reported))

    best = choose(rows, store_cost)
    storing = store and guide is None
    result = Sweep(rows, best, storing, finished, opened.folder, said)
    record.values["table"] = [as_line(row) for row in rows]
    if storing:
        record.values["stored"] = {
            "sampling": best.sampling.model_dump(mode="json"),
            "cost": best.chosen.cost,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "limner": __version__,
            "about": about(chosen, reported),
        }
    record.write()  # before storing, so that a stored setting always has a record
    if storing and (kept := store_sampling(opened.folder, best.sampling)):
        log.info(kept)
    title = f"{opened.folder.name}: the same prompts and noise at each cost"
    settings = [(label_of(row), row.sampling) for row in rows]
    sheet.save_sheet(opened.folder / SHEET, qualities["reported"], settings, title)
    return result


def feature_network(generator: ImageGenerator) -> tuple[FeatureNetwork | None, str]:
    """The feature extractor for kernel distances, or the reason why there is none."""
    try:
        return EfficientNet(generator.device), ""
    except LimnerError as error:
        return None, str(error)


def follow_of(data: Data, part: Part) -> Follow | None:
    """The measure of prompt following for this data set, if there is one."""
    if data.set.name == "shapes":
        return checked
    gallery = gallery_of(data, part)
    return None if gallery is None else nearest_is_its_own(gallery)


def check_measures(quality: Quality, missing: str) -> list[str]:
    """Notes about metrics that are not available. Raises LimnerError if none is."""
    if quality.network is None and quality.follow is None:
        raise LimnerError(
            f"no metric to select settings with: {missing}; and several images have the same "
            "caption, so recall has no single true image"
        )
    if quality.network is None:
        return [f"selecting by recall only: {missing}"]
    if quality.follow is None:
        return [
            "selecting by kernel distance only, which ignores captions: several images have the "
            "same caption, so recall has no single true image"
        ]
    return []


def protocol_of(
    opened: Checkpoint,
    generator: ImageGenerator,
    data: Data,
    parts: Sequence[Part],
    network: FeatureNetwork | None,
    guide: str | Path | None,
) -> dict[str, Any]:
    """What must be equal for two measurements to be comparable, apart from the setting."""
    return {
        "checkpoint": weights_of(opened.folder),
        "guide": None if guide is None else weights_of(Checkpoint.open(guide).folder),
        "dataset": data.set.name,
        "image_size": opened.config.data.image_size,
        **{
            f"{part.name}_{key}": value
            for part in parts
            for key, value in {
                "captions": digest(*part.keys, *part.captions).hex(),
                "count": len(part.asked),
                "held_out": part.held_out,
                "first_seed": part.first_seed,
                "pictures": digest(part.images.numpy().tobytes()).hex(),
            }.items()
        },
        "dtype": name_of(generator.dtype),
        "device": describe(generator.device),
        "network": None if network is None else network.identity(),
        "follow": "shapes checker" if data.set.name == "shapes" else "1 / rank of the true picture",
    }


def weights_of(folder: Path) -> str:
    """A hash of the weights of a checkpoint, from its manifest."""
    lines = (folder / MANIFEST).read_text(encoding="utf-8")
    return digest(lines).hex()


def about(chosen: Part, reported: Part) -> str:
    """A sentence about the captions that settings are selected and reported on."""
    own = len(chosen.asked) - chosen.held_out
    more = f" and {own} training captions" if own else ""
    theirs = len(reported.asked) - reported.held_out
    fill = f" and {theirs} other training captions" if theirs else ""
    return (
        f"settings are selected on {chosen.held_out} held-out captions{more}, and reported on "
        f"{reported.held_out} other held-out captions{fill}, with other seeds"
    )
