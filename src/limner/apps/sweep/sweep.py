"""`limner sweep`: the best setting to draw with at each cost, for one trained model."""

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
from limner.apps.sweep.search import TimeIsUp, search
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
"""Of the minutes; the rest is for comparing what was found."""

log = logging.getLogger(__name__)


class Measuring:
    """Measures on two parts, remembers in sweep.json, says a line for each, keeps the time."""

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
    costs: Sequence[int] = COSTS,
    images: int = IMAGES,
    minutes: float = MINUTES,
    store: bool = True,
    store_cost: int | None = None,
    guide: str | Path | None = None,
    device: str | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
) -> Sweep:
    """Search, compare, store.

    Args:
        checkpoint: a checkpoint folder, or a run folder (its newest checkpoint).
        costs: network evaluations for one picture, guided steps counted twice.
        pictures: drawn of each setting that comes into the last round of a choice.
        minutes: of the search and the comparison, about. What was measured is kept, and the same
            call goes on from there.
        store: make the best setting the checkpoint's default. Not with a guide, which a
            configuration cannot name.
        store_cost: the best at this cost; None: the cheapest within noise of the best.
        guide: a weaker checkpoint to move away from (autoguidance).

    Raises:
        LimnerError: no such checkpoint, no pictures, nothing to measure by, a damaged sweep.json.
    """
    began = time.monotonic()
    opened = Checkpoint.open(checkpoint)
    if opened.config.model.flow_map:
        raise LimnerError(
            f"{checkpoint} is a distilled model: it draws with ddim and the guidance of its "
            "teacher, so only the number of steps is left to choose; comparison.json beside it has "
            "1, 2, and 4"
        )
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
            "--guide is only compared, since a checkpoint cannot record its guide; remove --store"
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
        before = config.sampling  # nothing was stored yet, or somebody changed it since
    record.values["before"] = before.model_dump(mode="json")
    for sentence in said:
        log.info(sentence)
    log.info(about(chosen, reported))

    measure.until = began + 60 * minutes * SEARCH_SHARE
    path = generator.objective.noise_schedule
    found, finished = search(config, path, before, costs, images, measure)
    if not found:
        raise LimnerError(
            f"no setting needs as few as {max(costs)} evaluations; use higher --costs"
        )
    measure.until = float("inf")  # what was found must be compared at one number of pictures
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
    record.write()  # first: a default whose origin is not told would be worse than the reverse
    if storing and (kept := store_sampling(opened.folder, best.sampling)):
        log.info(kept)
    title = f"{opened.folder.name}: the same prompts and noise at each cost"
    settings = [(label_of(row), row.sampling) for row in rows]
    sheet.save_sheet(opened.folder / SHEET, qualities["reported"], settings, title)
    return result


def feature_network(generator: ImageGenerator) -> tuple[FeatureNetwork | None, str]:
    """The network for kernel distances, or why there is none."""
    try:
        return EfficientNet(generator.device), ""
    except LimnerError as error:
        return None, str(error)


def follow_of(data: Data, part: Part) -> Follow | None:
    """What tells how well a picture follows its caption, if this data set has something."""
    if data.set.name == "shapes":
        return checked
    gallery = gallery_of(data, part)
    return None if gallery is None else nearest_is_its_own(gallery)


def check_measures(quality: Quality, missing: str) -> list[str]:
    """What is not measured here, in words. Raises LimnerError where that is everything."""
    if quality.network is None and quality.follow is None:
        raise LimnerError(
            f"no metric to choose settings by: {missing}; and several pictures have the same "
            "caption, so recall has no single right answer"
        )
    if quality.network is None:
        return [f"by recall alone: {missing} (pip install 'limner[evaluation]')"]
    if quality.follow is None:
        return [
            "by kernel distance alone, which sees pictures and not captions: several pictures have "
            "the same caption, so recall has no single right answer"
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
    """All that two measurements must share to be compared, the setting apart."""
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
    """A hash of a checkpoint's weights: of what its manifest has written down about them."""
    lines = (folder / MANIFEST).read_text(encoding="utf-8")
    return digest(lines).hex()


def about(chosen: Part, reported: Part) -> str:
    """One sentence: what was chosen on what."""
    own = len(chosen.asked) - chosen.held_out
    more = f" and {own} trained ones" if own else ""
    theirs = len(reported.asked) - reported.held_out
    fill = f" and {theirs} other trained ones" if theirs else ""
    return (
        f"settings are chosen on {chosen.held_out} held-out captions{more}, and reported on "
        f"{reported.held_out} other held-out captions{fill}, from other noise"
    )
