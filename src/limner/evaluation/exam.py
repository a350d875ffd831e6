"""The evaluation at the end of a run: sample its prompts, measure, write samples and results.

Writes samples/, samples.json, samples.png, and results.json. The built-in data sets
are measured too: emoji by recall (is the picture that the prompt names the nearest to what was
drawn?), shapes by a checker that reads the picture back.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from limner.config import Config
from limner.console import progress_lines
from limner.data.dataset import shown_set
from limner.data.open import Data
from limner.data.order import evenly_spaced
from limner.device import choose_device, choose_precision, describe, name_of
from limner.evaluation.prompt_following import check_drawings, rank_drawings
from limner.evaluation.samples import FEW, Drawing, draw, in_any_number, of_captions, show_truth
from limner.evaluation.speckle import in_words, measure_speckle
from limner.evaluation.splits import OF_DATA, Split
from limner.files.atomic import replacing, write_text_whole
from limner.files.folder_lock import FolderLock
from limner.files.output_folders import foreign_names
from limner.inference.contact_sheet import contact_sheet, save_contact_sheet
from limner.inference.generator import ImageGenerator
from limner.metrics import retrieval
from limner.redaction import places_of, redacted
from limner.training.monitor.run_log import read_log
from limner.version import __version__

OURS = re.compile(r"\d{3,}(-truth)?\.png")
"""What pictures are called in samples/."""
PACKAGES = ("torch", "accelerate", "tokenizers", "numpy", "pillow")


def examine(
    run_folder: Path,
    config: Config,
    data: Data,
    free_prompts: Sequence[str] = (),
    most: int = 400,
    shown: int = 48,
    command: str | None = None,
    seconds: float | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Draw up to `most` trained and `most` held-out captions and the free prompts; measure; report.

    Args:
        run_folder: whose newest checkpoint draws, with its own sampling settings.
        shown: how many of each split are kept as pictures (spread evenly).
        seconds: that drawing may take: of more prompts than fit an even choice is drawn, and the
            results say so.
        say: takes lines for people, while it takes long.

    Returns:
        What results.json holds.
    """
    with FolderLock(run_folder, "write its report afterwards", ".limner-report.lock"):
        return _examine(run_folder, config, data, free_prompts, most, shown, command, seconds, say)


def _examine(
    run_folder: Path,
    config: Config,
    data: Data,
    free_prompts: Sequence[str],
    most: int,
    shown: int,
    command: str | None,
    seconds: float | None,
    say: Callable[[str], None] | None,
) -> dict[str, Any]:
    # Hundreds of pictures: in training's precision, as the previews are.
    device = choose_device("auto")
    dtype = choose_precision(config.training.mixed_precision, device)
    generator = ImageGenerator(run_folder, device=device, dtype=name_of(dtype))
    drawings = [
        *of_captions(data.trained, Split.TRAINED, most),
        *of_captions(data.held_out, Split.HELD_OUT, most),
        *(Drawing(prompt, seed, Split.FREE) for seed, prompt in enumerate(free_prompts)),
    ]
    progress = progress_lines(say, "pictures drawn") if say else None
    if seconds is None:
        draw(generator, drawings, progress)
    else:
        free = [d for d in drawings if d.split is Split.FREE]
        known = in_any_number([d for d in drawings if d.split is not Split.FREE])
        draw(generator, [*known[:FEW], *free, *known[FEW:]], progress, seconds)
    wanted = Counter(d.split for d in drawings)
    drawings = [d for d in drawings if d.picture is not None]

    results = _about(run_folder, config, data, generator)
    drawn = Counter(d.split for d in drawings)
    if drawn != wanted:
        results["drawn"] = {split: [drawn[split], count] for split, count in wanted.items()}
    if data.set.name == "emoji":
        results |= _measure_recall(drawings, data)
    elif data.set.name == "shapes":
        results["checker"] = check_drawings(drawings)
    results["flat_region_std"] = measure_speckle(drawings, data)
    results["command"] = command
    results = redacted(results, places_of(config.model_dump()))
    chosen = _spread_over_splits(drawings, shown)
    show_truth(chosen, data)
    _write(run_folder, results, chosen)
    return results


def drawing_time(training_seconds: float) -> float:
    """Seconds that drawing may take after a run of so many: an eighth, and a minute at least."""
    return max(60.0, training_seconds / 8)


def _measure_recall(drawings: list[Drawing], data: Data) -> dict[str, Any]:
    count = rank_drawings(drawings, data)
    known = [d for d in drawings if d.rank is not None]
    return {
        "range": f"all {count} pictures: {shown_set(data.set)['description']}",
        "distance": retrieval.DISTANCE,
        "recall": {
            split: retrieval.summary([d.rank for d in known if d.split == split and d.rank])
            for split in OF_DATA
            if any(d.split == split for d in known)
        },
    }


def _about(
    run_folder: Path, config: Config, data: Data, generator: ImageGenerator
) -> dict[str, Any]:
    """How the numbers were made, so that they can be compared or refused."""
    log = read_log(run_folder / "log.jsonl")
    speed = [event for event in log if event["kind"] == "speed"]
    keys = ("images_per_second", "mfu", "matmul_peak_gflops", "training_gflops_per_picture")
    return {
        "dataset": shown_set(data.set),
        "parameters": sum(p.numel() for p in generator.model.parameters()),
        # Of what drew, which is older than the last line of the log if the run was killed.
        "steps": generator.state.step,
        "images": generator.state.images,
        "minutes": round(generator.state.seconds / 60, 2),
        "speed": {key: speed[-1][key] for key in keys} if speed else {},
        "device": describe(generator.device),
        "sampling": generator.sampling.model_dump(mode="json")
        | {"dtype": name_of(generator.dtype)},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of the software that numbers depend on."""
    own = {"limner": __version__, "python": platform.python_version()}
    return own | {package: version(package) for package in PACKAGES}


def _spread_over_splits(drawings: list[Drawing], shown: int) -> list[Drawing]:
    chosen: list[Drawing] = []
    for split in Split:
        own = [d for d in drawings if d.split == split]
        chosen += [own[i] for i in evenly_spaced(len(own), shown)]
    return chosen


def _write(run_folder: Path, results: dict[str, Any], drawings: list[Drawing]) -> None:
    lines = []
    before = run_folder / "samples"
    others = foreign_names(before, like=OURS)
    with replacing(before, folder=True, durable=bool(others)) as folder:
        for name in others:  # what people draw and keep there stays
            if (before / name).is_dir():
                shutil.copytree(before / name, folder / name, symlinks=True)
            else:
                shutil.copy2(before / name, folder / name, follow_symlinks=False)
        for number, d in enumerate(drawings):
            assert d.picture is not None
            d.picture.save(folder / f"{number:03d}.png")
            line: dict[str, Any] = {"prompt": d.prompt, "seed": d.seed, "split": d.split}
            line |= {"file": f"samples/{number:03d}.png", "truth": None, "rank": d.rank}
            if d.right is not None:
                line["right"] = d.right
            if d.truth is not None:
                Image.fromarray(d.truth).save(folder / f"{number:03d}-truth.png")
                line["truth"] = f"samples/{number:03d}-truth.png"
            lines.append(line)
    _write_json(run_folder / "samples.json", lines)
    _write_json(run_folder / "results.json", results)
    sheet = contact_sheet(
        [d.picture for d in drawings if d.picture],
        [d.prompt for d in drawings],
        truths=[
            Image.fromarray(d.truth) if d.truth is not None and d.split is Split.HELD_OUT else None
            for d in drawings
        ],
        groups=[f"{d.split.heading}: {d.split.meaning}" for d in drawings],
    )
    save_contact_sheet(sheet, run_folder / "samples.png", [d.prompt for d in drawings])


def _write_json(path: Path, value: Any) -> None:
    write_text_whole(path, json.dumps(value, ensure_ascii=False, indent=1))


def sentences(results: dict[str, Any]) -> list[str]:
    """The measured figures in words, one line each."""
    said = []
    if drawn := results.get("drawn"):
        parts = ", ".join(f"{n} of {of} {split}" for split, (n, of) in drawn.items())
        said.append(f"there was time to draw {parts} prompts; limner report draws them all")
    for split, found in results.get("recall", {}).items():
        right = round(found["at_1"] * found["count"])
        said.append(
            f"{split} prompts: {found['at_1']:.1%} ({right} of {found['count']}) have their true "
            f"picture as the nearest; {found['at_5']:.1%} among the five nearest"
        )
    for split, found in results.get("checker", {}).items():
        parts = ", ".join(f"{part} {share:.0%}" for part, share in found["by_part"].items())
        said.append(
            f"{split} prompts: {found['all_right']:.1%} of {found['count']} drawn fully right "
            f"({parts})"
        )
    if speckle := results.get("flat_region_std"):
        said.append(in_words(speckle))
    return said
