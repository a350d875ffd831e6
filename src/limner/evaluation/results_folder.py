"""What `limner evaluate` leaves: evaluation.json and pictures/, whole or not at all, and a page.

Written beside the folder and moved into its place when all is there, so that an interrupted
evaluation leaves the one before it.
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
"""Of evaluation.json."""
RESULTS, PAGE, IMAGES = "evaluation.json", "evaluation.html", "pictures"
OURS = re.compile(r"\d{4,}(-truth)?\.png|near-\d{4,}\.png")
"""What pictures are called in PICTURES."""


def places(opened: Checkpoint | WeightsFile) -> list[Path]:
    """Where an evaluation of these weights may be: beside them by their name, so that two
    checkpoints of a run do not replace each other's, or `evaluation` in a checkpoint's run."""
    if isinstance(opened, WeightsFile):
        return [opened.path.with_name(f"{opened.path.stem}-evaluation")]
    folder = opened.folder
    return [folder.with_name(f"evaluation-{folder.name}"), folder.parent / "evaluation"]


def place_of(given: Path, opened: Checkpoint | WeightsFile) -> Path:
    """Where it goes: in the run folder if that was named, else beside what was; of a model from
    the Hub, whose copy lies in a cache, here."""
    if not given.exists():
        return Path(f"{given.name.partition('@')[0]}-evaluation")
    if isinstance(opened, Checkpoint) and given.resolve() == opened.folder.resolve().parent:
        return given / "evaluation"
    return places(opened)[0]


def check_replaceable(folder: Path) -> None:
    """Raises LimnerError if the folder holds anything that an evaluation does not write: it is
    replaced as a whole."""
    refuse_mounted(folder)
    # Pictures without results are somebody's own in a folder of that name.
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
    """Write the pictures, and the results with their names filled in.

    Args:
        shown: drawings to show, the cases' among them or not.
        cases: the worst of `look_for_copies`; they become `memorisation.worst`.
        trained: whose pictures the cases name.
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
        # The data may lie in a folder whose name is no UTF-8.
        (staging / RESULTS).write_text(text, encoding="utf-8", errors="backslashreplace")


def save_drawing(drawing: Drawing, folder: Path, name: str, under: str) -> dict[str, Any]:
    """Write NAME.png into a folder, and NAME-truth.png where the real picture is known.

    Args:
        under: what the folder is called in the files' names.

    Returns:
        What samples.json and evaluation.json tell of a drawing.
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
    """Lists and dictionaries of plain values; JSON has no NaN and no infinity: these are null."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read(path: Path) -> dict[str, Any]:
    """An evaluation by its file, its folder, or the run folder that it is in.

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
