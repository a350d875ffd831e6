"""What programs that manage models show of a file, by the keys of ModelSpec 1.0.1.

https://github.com/Stability-AI/ModelSpec: a title, a description, a licence, a small picture. They
say nothing that the rest of the file does not: no path, no name of a private data set.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from limner.apps.publishing.card import BUILT_IN, license_that_fits
from limner.apps.publishing.public import is_public_set
from limner.checkpoint.find_model import WEIGHTS_FILE
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.lineage import Lineage, before_in_words, sets_in_words
from limner.checkpoint.single_file import WeightsFile
from limner.config import Config
from limner.data.dataset import ImageError
from limner.data.images import open_rgb
from limner.evaluation.splits import Split
from limner.inference.sampling_settings import in_words
from limner.reports.gauges import is_number
from limner.reports.run_folder import own_files, read_run
from limner.version import __version__

VERSION = "1.0.1"
SIDE = 256
"""The longer side of the thumbnail, in pixels."""
MOST_CHARACTERS = 40_000
"""Of the thumbnail as text."""
QUALITIES = (90, 80, 65, 50, 35, 20, 10)
OF_PEOPLE = frozenset(
    (
        *("title", "author", "date", "description", "license", "usage_hint"),
        *("thumbnail", "tags", "trigger_phrase", "merged_from"),
    )
)
"""What an exported file may have been given by its owner, with other programs: it is kept."""


def model_spec(
    opened: Checkpoint | WeightsFile,
    config: Config,
    lineage: Lineage,
    parameters: int,
    **said: str | None,
) -> dict[str, str]:
    """The texts for `write_weights_file`.

    Args:
        config, lineage: as they are in the file, without private names.
        said: texts by key, which go before those found here; None: not said.
    """
    made = _made(opened, config, lineage, parameters)
    kept = opened.model_spec if isinstance(opened, WeightsFile) else {}
    kept = {key: text for key, text in kept.items() if key in OF_PEOPLE}
    return made | kept | {key: text for key, text in said.items() if text}


def title_of(file: Path) -> str | None:
    """The name that its owner gave a file; None: it is called as all are."""
    return None if file.name == WEIGHTS_FILE else file.stem


def _made(
    opened: Checkpoint | WeightsFile, config: Config, lineage: Lineage, parameters: int
) -> dict[str, str]:
    side, step = config.data.image_size, opened.state.step
    kind = "-flow-map" if config.model.flow_map else ""
    found = {
        "sai_model_spec": VERSION,
        "architecture": f"limner-{config.model.architecture}{kind}",
        "implementation": "limner",
        "implementation_version": __version__,
        "title": f"Limner {side} x {side}, step {step:,}",
        "description": _description(config, lineage, parameters),
        "date": datetime.now(UTC).date().isoformat(),
        "license": lineage.license or license_that_fits(lineage),
        "resolution": f"{side}x{side}",
        "prediction_type": (config.scheduler.prediction_type or "").replace("v_prediction", "v"),
        "usage_hint": _usage_hint(config),
        "tags": "text-to-image,diffusion-transformer,limner",
        "thumbnail": thumbnail(opened) if isinstance(opened, Checkpoint) else None,
    }
    return {key: text for key, text in found.items() if text}


def _description(config: Config, lineage: Lineage, parameters: int) -> str:
    """In Markdown: what the model is, what it and those before it learned from, and the attribution
    that this needs."""
    side = config.data.image_size
    how = "distilled" if lineage.method == "distilled" else "trained"
    sets = sets_in_words(map(str, lineage.data))
    sentences = [
        f"A text-to-image Diffusion Transformer with {parameters:,} parameters for images of "
        f"{side} x {side} pixels, {how} with Limner{sets and f' on {sets}'}.",
        *before_in_words(lineage),
    ]
    models = (lineage, *lineage.models_before())
    names = dict.fromkeys(data.name for one in models for data in one.data)
    credits = [str(BUILT_IN[name]) for name in names if name in BUILT_IN]
    return "\n\n".join([" ".join(sentences), *credits])


def _usage_hint(config: Config) -> str:
    if not config.model.flow_map:
        return in_words(config.sampling)
    steps = ", ".join(map(str, config.distill.numbers_of_steps))
    return f"distilled: one of {steps} steps; guidance is fixed"


def thumbnail(opened: Checkpoint) -> str | None:
    """A picture that these weights drew at the end of their run, as a data URL; None: there is
    none, or all of a private set are of prompts that it was trained on."""
    run = read_run(opened.folder.parent)
    steps: Any = run.results.get("steps")
    tolerance = opened.config.training.logging_steps
    if not is_number(steps) or not 0 <= opened.state.step - steps < tolerance:
        return None  # they are of other weights
    splits = [Split.FREE, Split.HELD_OUT]
    if is_public_set(opened.config):
        splits.append(Split.TRAINED)
    files = {path.name: path for path in own_files(run.folder, "samples", "*.png")}
    for split in splits:
        for sample in run.samples:
            path = files.get(Path(str(sample.get("file"))).name)
            if path is None or sample.get("split") != split:
                continue
            try:
                return data_url(open_rgb(path))
            except ImageError:
                continue
    return None


def data_url(image: Image.Image) -> str | None:
    """An RGB picture as a JPEG of at most `SIDE` pixels and `MOST_CHARACTERS`."""
    small = Image.new("RGB", image.size)  # without texts in the file, which hold the prompt
    small.paste(image)
    small.thumbnail((SIDE, SIDE))
    for quality in QUALITIES:
        content = BytesIO()
        small.save(content, "JPEG", quality=quality, optimize=True)
        url = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
        if len(url) <= MOST_CHARACTERS:
            return url
    return None
