"""`limner train FOLDER`: look, choose, say what was chosen and why, and write it down.

The same command goes on with what it chose before, also where a measurement would differ now.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from limner.apps.own_pictures.choose import (
    FEW,
    WASTEFUL,
    Choice,
    choose,
    per_update,
    rounded_side,
)
from limner.apps.own_pictures.expected import hope
from limner.apps.own_pictures.machine import Machine, measure, training_cost
from limner.apps.own_pictures.request import Request, command_of
from limner.apps.own_pictures.settings_file import read_request, write
from limner.apps.own_pictures.survey import Survey, survey
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.inherit import load_run_config
from limner.checkpoint.locate import checkpoints, newest_good
from limner.checkpoint.open_model import open_model
from limner.config import Config
from limner.config.loading import Sections, read_sections
from limner.console import format_duration
from limner.data.own_folder import keep_out_of_the_data
from limner.errors import LimnerError
from limner.files.output_folders import is_training_run
from limner.messages import parameters_in_words, plural
from limner.training.folder import CHOSEN, CHOSEN_BEFORE, check_run_folder

log = logging.getLogger(__name__)

CROPPED = 0.05
"""Share of a picture from which it is said how much a square leaves out."""


@dataclass(frozen=True)
class Start:
    """How to begin, or to go on.

    Attributes:
        resume: for `Trainer`.
        said: sentences about what was chosen.
    """

    config: Config
    resume: str | None
    said: list[str]


def start(request: Request) -> Start:
    """The configuration to train with: what was chosen before for the same request, or else now."""
    path = request.folder / CHOSEN
    before, asked = read_request(path), request.as_kept()
    begun = bool(checkpoints(request.folder)) or is_training_run(request.folder)
    same = before is not None and before | {"minutes": 0} == asked | {"minutes": 0}
    if same and (begun or asked["minutes"] in (None, (before or {}).get("minutes"))):
        return _again(request, path)
    if path.exists() and before is None:
        raise LimnerError(
            f"{path} was not written by limner train FOLDER, which would replace it; choose "
            "another --output"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LimnerError(
            "limner train FOLDER chooses settings in one process; run it once without a launcher, "
            f"stop it, and launch limner train --config {path.as_posix()}"
        )
    if begun:
        latest = f"limner train --resume latest training.output_dir={request.folder.as_posix()}"
        way = command_of(before, request.folder) or latest
        raise LimnerError(
            f"{request.folder} holds another run; go on with it ({way}), or choose another --output"
        )
    return _anew(request, path)


def _again(request: Request, path: Path) -> Start:
    newest, _ = newest_good(request.folder)
    checkpoint = Checkpoint.open(newest) if newest else None
    before = checkpoint.config.training.max_minutes if checkpoint else None
    own = load_run_config(path).training.max_minutes
    minutes = request.minutes or max(filter(None, (before, own)), default=None)
    used = checkpoint.state.seconds / 60 if checkpoint else 0.0
    if request.minutes is not None and request.minutes < 0.95 * used:
        raise LimnerError(
            f"--minutes {request.minutes:g}: this run has trained for {used:.1f} minutes; give "
            "more to go on"
        )
    changes = [] if minutes is None else [f"training.max_minutes={minutes}"]
    config = load_run_config(path, [*changes, *request.overrides])
    longer = checkpoint is not None and config.training.max_minutes != before
    return Start(
        config, "latest" if longer else None, [f"settings as chosen before: {path.as_posix()}"]
    )


def planned(request: Request) -> Start:
    """What `start` would train with. Writes nothing."""
    path = request.folder / CHOSEN
    before, asked = read_request(path), request.as_kept()
    if before is not None and before | {"minutes": 0} == asked | {"minutes": 0}:
        return _again(request, path)
    _, _, choice, said = _chosen(request, *_data_and_origin(request))
    return Start(choice.config, None, said)


def _anew(request: Request, path: Path) -> Start:
    config, origin = _data_and_origin(request)
    keep_out_of_the_data(request.folder, config, "--output")
    check_run_folder(request.folder)
    sized, machine, choice, said = _chosen(request, config, origin)
    _, whole = read_sections(copy.deepcopy(choice.sections), _settings(sized))
    about = [f"{request.command}  ({machine.name})", *said, "", "To use changed settings:"]
    about.append(f"  limner train --config {path.as_posix()} training.output_dir=outputs/another")
    if path.exists():  # chosen for something else, and perhaps changed since
        os.replace(path, path.with_name(CHOSEN_BEFORE))
    write(path, whole, about, request.as_kept(), choice.rate)
    folder = request.folder.as_posix()
    ways = [f"settings: {path.as_posix()}", f"to watch it in the browser: limner watch {folder}"]
    return Start(load_run_config(path), None, [*said, *ways])


def _data_and_origin(request: Request) -> tuple[Config, Config | None]:
    """What the data are looked at with, and the configuration of the model that it begins with."""
    given = read_sections(None, _settings(request))[1]
    config = load_run_config(_of_the_data(given))
    begin_with = given["training"].get("init_from")
    if config.vae.pretrained_model_name is not None and begin_with is None:
        raise LimnerError(
            "settings for an autoencoder's latents are not chosen; begin with "
            "configs/latents.yaml: limner train --config FILE"
        )
    origin = open_model(begin_with).config if begin_with else None
    if origin is not None and origin.model.flow_map:
        raise LimnerError(
            f"{begin_with} is a distilled model, which cannot be trained further; begin with the "
            "model it was made from, and distill the result"
        )
    return config, origin


def _chosen(
    request: Request, config: Config, origin: Config | None
) -> tuple[Request, Machine, Choice, list[str]]:
    """The request with the size that is trained, the machine, what was chosen, and why."""
    found = survey(config)
    log.info("measuring this machine, for about a second")
    machine = measure(config)
    sized, choice = _choose(request, found, machine, origin)
    said = in_words(found, machine, choice)
    if sized.size != request.size:
        said.append(
            f"size: {sized.size} pixels, as {request.size} can only be cut into patches that are "
            f"far too many; data.image_size={request.size} keeps it all the same"
        )
    return sized, machine, choice, said


def _settings(request: Request) -> list[str]:
    folder = json.dumps(str(request.folder), ensure_ascii=False)
    return [f"training.output_dir={folder}", *request.settings()]


def _choose(
    request: Request, found: Survey, machine: Machine, origin: Config | None
) -> tuple[Request, Choice]:
    """The request with the size of the pictures that is trained, and what was chosen for it.

    A `--size` that training would be far slower with than with a near one is replaced by that; one
    that is set by its key stays.
    """

    def chosen(request: Request) -> Choice:
        settings = _settings(request)

        def build(sections: Sections) -> Config:
            # `read_sections` changes what it is given.
            return load_run_config(copy.deepcopy(sections), settings)

        given = read_sections(None, settings)[1]
        return choose(found, machine, build, request.minutes, origin, given)

    size = request.size
    own = ("data.image_size", "model.patch_size")
    if size is None or origin is not None or any(request.said(key) for key in own):
        return request, chosen(request)
    request = replace(request, size=rounded_side(size))
    choice = chosen(request)
    if choice.faster is not None and choice.faster[1] > WASTEFUL:
        request = replace(request, size=choice.faster[0])
        choice = chosen(request)
    return request, choice


def _of_the_data(given: Sections) -> Sections:
    """What the data are looked at with: no size, no model, nothing that would have to fit one."""
    kept = {
        "data": {
            k: v for k, v in given.get("data", {}).items() if k not in ("image_size", "buckets")
        },
        "training": {k: v for k, v in given.get("training", {}).items() if k != "init_from"},
    }
    parts = ("vae", "text_encoder")
    return kept | {section: given[section] for section in parts if section in given}


def in_words(found: Survey, machine: Machine, choice: Choice) -> list[str]:
    """Three to five sentences: the data, the model, what to expect, what would help."""
    config = choice.config
    sizes = f", mostly of {found.side} pixels or more" if found.side else ""
    tokens = f"; captions of up to {found.tokens} tokens" if found.tokens else ""
    refused = (
        f"; {found.refused:,} {plural(found.refused, 'row')} cannot be used (limner check-data)"
        if found.refused
        else ""
    )
    count = parameters_in_words(training_cost(config, found.vocabulary).parameters)
    side, patch = config.data.image_size, config.model.patch_size
    batch, minutes = per_update(config), choice.images / choice.rate / 60
    passes = choice.images / max(1, found.trained)
    share = choice.images / choice.wanted
    enough = choice.wanted / choice.rate
    said = [
        f"data: {found.trained:,} pictures to learn from and {found.held_out:,} held out{sizes}"
        f"{tokens}{refused}",
        f"model: {count} parameters, {side} x {side} pixels in patches of "
        f"{patch}, {batch} images a step; about {choice.rate:,.0f} images/s on {machine.name}",
        f"{format_duration(60 * minutes)}: about {passes:,.0f} passes over the pictures; expect "
        f"{hope(share)}"
        + ("" if share >= 0.8 else f" ({format_duration(enough)} would be enough for most)"),
    ]
    if choice.faster is not None:
        near, times = choice.faster
        said.append(
            f"size: {side} pixels are cut into {side // (patch or 1)} x {side // (patch or 1)} "
            f"patches; data.image_size={near} would be about {times:.1f} times as fast"
        )
    if found.cropped >= CROPPED and config.data.buckets is None:
        said.append(
            f"shapes: {found.cropped:.0%} of a picture is cropped on average, to a centred square; "
            "data.buckets=auto keeps the shapes"
        )
    if found.trained < FEW and config.training.init_from is None:
        said.append(
            f"{found.trained} pictures are few: begin with another model, --from outputs/demo "
            "(limner demo makes it), and it learns yours sooner and better"
        )
    return said
