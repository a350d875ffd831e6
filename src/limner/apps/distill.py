"""`limner distill`: from a finished model to one that draws in one or two steps.

A run of `Trainer` with `model.flow_map`, whose configuration follows from the teacher's (see
`limner.training.distillation`), and at its end teacher and student side by side.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.inherit import load_run_config
from limner.checkpoint.locate import newest_good
from limner.checkpoint.open_model import open_model
from limner.config import Config, TrainingConfig
from limner.console import progress_shown, say
from limner.data.open import Data
from limner.errors import LimnerError
from limner.evaluation.end_of_run import drawing_time, evaluate_run
from limner.evaluation.prompt_following import (
    check_shapes,
    rank_drawings,
    ranks_by_split,
    shapes_by_split,
)
from limner.evaluation.prompts import prompts_of_run
from limner.evaluation.samples import Drawing, draw, in_any_number, open_generator
from limner.evaluation.splits import Split, adjective
from limner.files.atomic import write_text_whole
from limner.files.full_disk import in_units, size_of
from limner.inference.contact_sheet import contact_sheet, save_contact_sheet
from limner.inference.generator import ImageGenerator
from limner.inference.sampling_settings import function_evaluations, in_words
from limner.messages import plain_words, plural
from limner.metrics import retrieval
from limner.redaction import is_same_place
from limner.reports.run_report import write_report
from limner.training.trainer import Trainer

log = logging.getLogger(__name__)

SHARE_OF_TEACHER, MOST_MINUTES, LEAST_MINUTES = 1 / 3, 60.0, 1.0
"""Of the minutes that the teacher trained, by default."""
COMPARED, SHOWN = 128, 8
"""Prompts that each way of drawing is measured with, and shown with."""
NOTICED = 0.03
"""Share of prompts by which a student may fall short without a word."""
COMPARISON = "comparison.json", "comparison.png"


@dataclass
class Way:
    """A way of drawing, and what was measured of it."""

    name: str
    evaluations: int
    images_per_second: float
    drawings: list[Drawing]
    right: dict[str, float]
    """Of each split, the share of prompts that got what they name; empty where nobody knows."""


def distill_config(
    teacher: str, output: str, minutes: float | None, overrides: Sequence[str]
) -> Config:
    """The configuration of a student: its teacher's, but for what drawing in few steps needs.

    If `output` has a run of this teacher, it goes on from the same checkpoint of the teacher, and
    for the same minutes, or for others if these are given.
    """
    place = teacher
    if (earlier := _earlier(output, teacher)) is not None:
        place, minutes = str(earlier.init_from), minutes or earlier.max_minutes
    opened = open_model(place)
    if place == teacher and isinstance(opened, Checkpoint) and Path(teacher).is_dir():
        place = str(opened.folder)  # the teacher's run may have a newer one later
    own = opened.config.model_dump(mode="json")
    if minutes is None:
        minutes = opened.state.seconds / 60 * SHARE_OF_TEACHER
        minutes = round(min(MOST_MINUTES, max(LEAST_MINUTES, minutes)), 3)
    left_open = (
        *("learning_rate", "max_steps", "num_epochs", "save_every_n_epochs", "run_name"),
        *("device", "sharding", "checkpoint_shards"),  # the machine may be another one
    )
    training = {key: value for key, value in own["training"].items() if key not in left_open}
    training |= {
        "init_from": place,
        "output_dir": output,
        "max_minutes": minutes,
        "resume": "auto",
    }
    times = {key: own["sampling"][key] for key in ("shift", "timestep_power")}
    meaning = {k: v for k, v in own["scheduler"].items() if k != "level_balance"}
    sections = own | {
        "model": own["model"] | {"flow_map": True},
        "data": own["data"] | {"horizontal_flip": 0.0},
        "training": training,
        "scheduler": meaning,
        "optimizer": {},
        "lr_scheduler": {},
        "lora": {},
        "distill": {},
        "sampling": times,
    }
    config = load_run_config(sections, overrides)
    scale, known = own["sampling"]["guidance_scale"], config.distill.guidance_range
    if known is not None and known[0] <= scale <= known[1]:
        sections["sampling"] = times | {"guidance_scale": scale}
        config = load_run_config(sections, overrides)
    return config


def _earlier(output: str, teacher: str) -> TrainingConfig | None:
    """The settings of the run in `output`, if it is one of this teacher and has a checkpoint."""
    newest, _ = newest_good(Path(output))
    if newest is None:
        return None
    config = Checkpoint.open(newest).config
    begun = config.training.init_from
    if not config.model.flow_map or begun is None:
        return None
    places = (begun, str(Path(begun).parent))
    return config.training if any(is_same_place(place, teacher) for place in places) else None


def distill(
    teacher: str, output: str, minutes: float | None = None, overrides: Sequence[str] = ()
) -> Path:
    """Distill a model into `output`, or go on; then draw, measure, and compare."""
    config = distill_config(teacher, output, minutes, overrides)
    if Path(output).resolve() == Path(teacher).resolve():
        raise LimnerError(f"--output {output} is the teacher's own folder; choose another one")
    earlier = _earlier(output, teacher)
    longer = earlier is not None and earlier.max_minutes != config.training.max_minutes
    trainer = Trainer(config, resume="latest" if longer else None)
    trainer.train()
    folder = trainer.folder
    if not trainer.run.is_main:
        return folder
    evaluate_run(folder, config, trainer.data, seconds=drawing_time(trainer.state.seconds))
    write_report(folder)
    log.info("\ncomparing the student with its teacher:")
    ways = []
    for way in compare(str(config.training.init_from), folder, trainer.config, trainer.data):
        say(_in_words(way))
        ways.append(way)
    _write(folder, ways)
    compared = [(ways[0], ways[2:5])]
    compared += [(ways[i], ways[i + 1 : i + 2]) for i in range(5, len(ways), 2)]
    for there, here in compared:
        for sentence in shortfalls(there, here):
            say(sentence)
    say(f"\nLook at {folder / COMPARISON[1]} and {folder / 'report.html'}, and try")
    prompt = plain_words(trainer.data.trained.rows[0].captions[0])
    say(f'  limner generate {output} "{prompt}"   # in 2 steps; --num_inference_steps 1 or 4')
    if trainer.run.inputs.trajectories is not None:
        say(what_stays(trainer.run.inputs.trajectories[0].store.folder))
    return folder


def what_stays(store: Path) -> str:
    """What the teacher drew, on the disk: how much it is, and whether it is still of use."""
    return (
        f"\n{store} ({in_units(size_of(store))}) has what the teacher drew: the same command with "
        "more --minutes uses it again; otherwise it may be deleted"
    )


def compare(teacher: str, student: Path, config: Config, data: Data) -> Iterator[Way]:
    """The same prompts and seeds drawn by the teacher as it usually does and in 4 steps, and by
    the student in 1, 2, and 4; if the guidance scale is a setting of the student, then by both at
    each end of its range. Each when it is drawn."""
    parts = (config.vae.pretrained_model_name, config.text_encoder.pretrained_model_name)
    there = open_generator(teacher, config, None, *parts)
    yield _drawn("teacher", there, data, {})
    few = {"num_inference_steps": 4, "zero_init_steps": min(3, there.sampling.zero_init_steps)}
    yield _drawn("teacher", there, data, few)
    here = open_generator(student, config, None, *parts)
    for steps in (1, 2, 4):
        yield _drawn("student", here, data, {"num_inference_steps": steps})
    for scale in config.distill.guidance_range or ():
        if scale != here.sampling.guidance_scale:
            yield _drawn("teacher", there, data, {"guidance_scale": scale})
            changes = {"num_inference_steps": 2, "guidance_scale": scale}
            yield _drawn("student", here, data, changes)


def shortfalls(teacher: Way, students: Sequence[Way]) -> list[str]:
    """Where a student follows fewer prompts than its teacher, and what would help."""
    found = []
    for student in students:
        lost = {
            split: share - student.right[split]
            for split, share in teacher.right.items()
            if share - student.right.get(split, 0.0) > NOTICED
        }
        if lost:
            by = ", ".join(
                f"{share:.0%} of the {adjective(split)} prompts" for split, share in lost.items()
            )
            found.append(
                f"{student.name}: {by} are right with the teacher and not here; more --minutes or "
                "a larger distill.num_trajectories would help"
            )
    return found


def _drawn(who: str, generator: ImageGenerator, data: Data, changes: dict[str, Any]) -> Way:
    drawings = in_any_number(prompts_of_run(data, (), COMPARED // 2))
    sampling = generator.sampling.model_copy(update=changes)
    generator.generate_batch([drawings[0].prompt], seeds=[0], **sampling.model_dump())
    with progress_shown(log, "images drawn to compare") as progress:
        began = time.perf_counter()
        draw(generator, drawings, progress, sampling=sampling)
        seconds = time.perf_counter() - began
    right: dict[str, float] = {}
    if data.set.name == "shapes":
        check_shapes(drawings)
        right = {split: about["all_right"] for split, about in shapes_by_split(drawings).items()}
    elif data.set.name == "emoji":
        with progress_shown(log, "real images read to compare") as progress:
            rank_drawings(drawings, data, progress=progress)
        found = ranks_by_split(drawings).items()
        right = {split: retrieval.summary(ranks)["at_1"] for split, ranks in found}
    student = generator.model.is_flow_map
    evaluations = function_evaluations(
        sampling, generator.objective.noise_schedule, distilled=student
    )
    name = f"{who}, {in_words(sampling)}"
    if student:
        steps = sampling.num_inference_steps
        name = f"student, {steps} {plural(steps, 'step')}"
        if generator.model.takes_guidance:
            name += f", guidance {sampling.guidance_scale:g}"
    return Way(name, evaluations, len(drawings) / seconds, drawings, right)


def _in_words(way: Way) -> str:
    right = ", ".join(f"{share:.0%} of {adjective(s)} prompts" for s, share in way.right.items())
    network = f"{(n := way.evaluations)} {plural(n, 'evaluation')} of the network"
    return f"{way.name}: {network}, {way.images_per_second:.1f} images/s" + (
        f"; right: {right}" if right else ""
    )


def _write(folder: Path, ways: Sequence[Way]) -> None:
    written = [
        {
            "name": way.name,
            "evaluations": way.evaluations,
            "images_per_second": round(way.images_per_second, 2),
            "right": way.right,
        }
        for way in ways
    ]
    write_text_whole(folder / COMPARISON[0], json.dumps(written, ensure_ascii=False, indent=1))
    chosen = [
        [d for d in way.drawings if d.split is split][: SHOWN // 2]
        for way in ways
        for split in (Split.TRAINED, Split.HELD_OUT)
    ]
    shown = [d for some in chosen for d in some]
    groups = [
        way.name
        for number, way in enumerate(ways)
        for some in chosen[2 * number : 2 * number + 2]
        for _ in some
    ]
    prompts = [d.prompt for d in shown]
    sheet = contact_sheet(
        [d.image for d in shown if d.image], prompts, columns=SHOWN, groups=groups
    )
    save_contact_sheet(sheet, folder / COMPARISON[1], prompts)
