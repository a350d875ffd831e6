"""The output folder of `limner evaluate`: evaluation.json, pictures/, and a page.

Written to a temporary folder and moved into place at the end, so that an interrupted evaluation
leaves the previous one intact.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.manifest import written_whole
from limner.checkpoint.single_file import WeightsFile
from limner.data.examples import DecodedImages
from limner.errors import LimnerError
from limner.evaluation.memorisation import Case
from limner.evaluation.samples import Drawing
from limner.files.atomic import refuse_mounted
from limner.files.output_folders import foreign_names
from limner.files.small_files import read_json

FORMAT = 1
"""Format version of evaluation.json."""
RESULTS, PAGE, IMAGES = "evaluation.json", "evaluation.html", "pictures"
OURS = re.compile(r"\d{4,}(-truth)?\.png|near-\d{4,}\.png")
"""Names of images in IMAGES."""


def places(opened: Checkpoint | WeightsFile) -> list[Path]:
    """Where an evaluation of these weights may be: next to them under their name, so that
    checkpoints of one run do not overwrite each other, or `evaluation` in the run folder."""
    if isinstance(opened, WeightsFile):
        return [opened.path.with_name(f"{opened.path.stem}-evaluation")]
    folder = opened.folder
    return [folder.with_name(f"evaluation-{folder.name}"), folder.parent / "evaluation"]


def place_of(given: Path, opened: Checkpoint | WeightsFile) -> Path:
    """The default output folder: inside a run folder, next to a checkpoint or file, or in the
    current folder for a model from the Hub."""
    if not given.exists():
        return Path(f"{given.name.partition('@')[0]}-evaluation")
    if isinstance(opened, Checkpoint) and given.resolve() == opened.folder.resolve().parent:
        return given / "evaluation"
    return places(opened)[0]


def check_replaceable(folder: Path) -> None:
    """Raises LimnerError if the folder contains other files: it is replaced as a whole."""
    refuse_mounted(folder)
    # Without results, a folder of that name with images is the user's.
    ours = (RESULTS, PAGE, IMAGES) if (folder / RESULTS).is_file() else ()
    others = foreign_names(folder, ours)
    if not others and ours:
        others = [f"{IMAGES}/{name}" for name in foreign_names(folder / IMAGES, like=OURS)]
    if others:
        raise LimnerError(
            f"--output {folder} already exists and is not an earlier evaluation (it contains "
            f"{others[0]}), so it is not overwritten; use a new folder"
        )


def write(
    folder: Path,
    results: dict[str, Any],
    shown: Sequence[Drawing],
    cases: Sequence[Case],
    trained: DecodedImages,
) -> None:
    """Write the images, and the results with the names of their files.

    Args:
        shown: generated images to save; those of the cases are saved too.
        cases: the worst cases of `look_for_copies`; they become `memorisation.worst`.
        trained: the training images that the cases refer to.
    """
    every = {id(d): d for d in (*shown, *(case.drawing for case in cases))}
    names = {key: f"{number:04d}" for number, key in enumerate(every)}
    with written_whole(folder, sealed=False, check=check_replaceable) as staging:
        (staging / IMAGES).mkdir()
        lines = []
        for key, drawing in every.items():
            lines.append(save_drawing(drawing, staging / IMAGES, names[key], IMAGES))
        results = results | {"pictures": lines[: len(shown)]}
        if results["memorisation"] is not None:
            worst = []
            for case in cases:
                number = names[id(case.drawing)]
                near = f"{IMAGES}/near-{number}.png"
                Image.fromarray(trained.load(case.trained).numpy()).save(staging / near)
                worst.append(
                    {
                        "prompt": case.drawing.prompt,
                        "seed": case.drawing.seed,
                        "drawn": f"{IMAGES}/{number}.png",
                        "trained": near,
                        "caption": trained.rows[case.trained].captions[0],
                        "distance": case.distance,
                        "usual": case.usual,
                        "ratio": case.ratio,
                        "own": case.own,
                        "own_ratio": case.own_ratio,
                    }
                )
            results["memorisation"] = results["memorisation"] | {"worst": worst}
        text = json.dumps(plain(results), ensure_ascii=False, indent=1, allow_nan=False)
        # The name of the data folder may not be valid UTF-8.
        (staging / RESULTS).write_text(text, encoding="utf-8", errors="backslashreplace")


def save_drawing(drawing: Drawing, folder: Path, name: str, under: str) -> dict[str, Any]:
    """Write NAME.png to a folder, and NAME-truth.png if the real image is known.

    Args:
        under: the folder's name in the recorded paths.

    Returns:
        The record for samples.json and evaluation.json.
    """
    assert drawing.image is not None
    drawing.image.save(folder / f"{name}.png")
    if drawing.truth is not None:
        Image.fromarray(drawing.truth).save(folder / f"{name}-truth.png")
    return {
        "prompt": drawing.prompt,
        "seed": drawing.seed,
        "split": drawing.split,
        "file": f"{under}/{name}.png",
        "truth": None if drawing.truth is None else f"{under}/{name}-truth.png",
        "rank": drawing.rank,
        "right": drawing.right,
    }


def plain(value: Any) -> Any:
    """Convert to plain JSON values; NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read(path: Path) -> dict[str, Any]:
    """Read an evaluation from its file, its folder, or its run folder.

    Raises:
        LimnerError: there is none, or it cannot be read.
    """
    places = [path, path / RESULTS, path / "evaluation" / RESULTS]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise LimnerError(
            f"no evaluation at {path.absolute()}; use a folder written by limner evaluate, its "
            f"{RESULTS}, or a run folder"
        )
    try:
        found = read_json(file, most=2**28)
    except OSError as error:
        raise LimnerError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("protocol"), dict):
        raise LimnerError(
            f"{file} is not an evaluation: it does not record how its numbers were made"
        )
    if found.get("format") != FORMAT:
        raise LimnerError(
            f"{file} has format {found.get('format')}, but this version reads {FORMAT}; evaluate "
            "again"
        )
    return found
