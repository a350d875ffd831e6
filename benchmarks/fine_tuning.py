"""Which learning rate is best for fine-tuning, and what does the model forget?

    python benchmarks/fine_tuning.py                         # an hour on two cores
    python benchmarks/fine_tuning.py --only tones --ways adapters --rates 3e-3 1e-2

The demo's model is trained once on the demo's emoji, and then fine-tuned at several learning rates
on pictures that it has never seen: all weights; adapters of rank 16 (and two other ranks), with and
without training the text encoder; and, for comparison, a model of the same shape from scratch.

    tones   240 pictures like those it knows: 40 other subjects in six tones, 15 % held out
    plain   60 things without tones, all different: a small collection, learned by heart

Measured by recall (src/limner/metrics/retrieval.py) of what is trained and held out, and of the
demo's pictures: what it could draw before. Appends a line for each run to
results/fine_tuning.jsonl, and prints all lines as a table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from limner import ImageGenerator
from limner.apps.demo import demo_config
from limner.checkpoint.locate import newest_checkpoint
from limner.config import Config, load_config
from limner.data.builtin.emoji import EmojiImages, split_tones
from limner.data.dataset import Row
from limner.data.open import Data, open_data
from limner.device import choose_device, choose_precision, describe, name_of
from limner.evaluation.about import versions
from limner.evaluation.prompt_following import rank_drawings
from limner.evaluation.samples import draw, of_captions
from limner.evaluation.splits import OF_DATA, Split
from limner.metrics import retrieval
from limner.training.monitor.run_log import read_log
from limner.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "fine_tuning.jsonl"
BASE_STEPS = 1000
STEPS = {"tones": 300, "plain": 150}
REMEMBERED = 100
"""Of the demo's captions, drawn again afterwards."""
TEXT = {"train_text_encoder": True}
WAYS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "all weights": ({}, (1.2e-4, 4e-4, 1.2e-3, 4e-3, 1.2e-2)),
    "adapters": ({"rank": 16, "train_text_encoder": False}, (1e-3, 3e-3, 1e-2, 3e-2)),
    "adapters and text": ({"rank": 16, **TEXT}, (1e-3, 3e-3, 1e-2, 3e-2)),
    "rank 4 and text": ({"rank": 4, **TEXT}, (1e-2,)),
    "rank 64 and text": ({"rank": 64, **TEXT}, (5e-3, 1e-2)),
    "from nothing": ({}, (4e-3,)),
}
"""What learns: the section `lora`, and each training.learning_rate (with Muon; adapters: AdamW)."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=tuple(STEPS), help="one of the two sets")
    parser.add_argument("--ways", choices=tuple(WAYS), nargs="+", default=list(WAYS))
    parser.add_argument("--rates", type=float, nargs="+", help="instead of those of each way")
    parser.add_argument("--base", type=Path, help="the demo's model, trained by this before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        base = options.base or folder / "base"
        if options.base is None:
            Trainer(demo(base)).train()
        shape = load_config(newest_checkpoint(base) / "config.yaml")
        known = open_data(shape)
        if options.base is None:
            note(measured("demo", "base", base, known, known))
        for name in [options.only] if options.only else list(STEPS):
            write(SETS[name](), folder / name)
            for way in options.ways:
                for rate in options.rates or WAYS[way][1]:
                    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
                    config = tuned(shape, base, folder / name, run, STEPS[name], way)
                    config["training"]["learning_rate"] = rate
                    trainer = Trainer(load_config(config))
                    trainer.train()
                    note(measured(name, way, run, trainer.data, known))
    print(table([json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()]))


def demo(folder: Path) -> Config:
    config = demo_config(10.0, str(folder), torch.device("cpu")).model_dump(mode="json")
    config["training"] |= {"max_minutes": None, "max_steps": BASE_STEPS} | QUIET
    return load_config(config)


QUIET = {"trackers": ["none"], "heldout_steps": 10**6, "preview_steps": 10**6}


def tuned(
    shape: Config, base: Path, images: Path, run: Path, steps: int, way: str
) -> dict[str, Any]:
    """A run with other pictures: from the base, with nothing said about the model; or from
    nothing, with a model of the same shape."""
    sections = {
        "data": {"dataset_path": str(images), "image_size": 64, "train_split": 0.85},
        "sampling": shape.sampling.model_dump(mode="json"),
        "training": {
            "output_dir": str(run),
            "device": "cpu",
            "max_steps": steps,
            "batch_size": 32,
            "num_workers": 0,
        }
        | QUIET
        | {"heldout_steps": steps},
    }
    if way == "from nothing":
        return sections | {
            section: getattr(shape, section).model_dump(mode="json")
            for section in ("model", "text_encoder")
        }
    sections["training"]["init_from"] = str(base)
    return sections | {"lora": WAYS[way][0]}


def tones() -> list[Row]:
    every, shown = EmojiImages(languages=["en"]), EmojiImages("demo", ["en"])
    familiar = {split_tones(row.key)[0] for row in shown.rows}
    subjects: dict[str, list[Row]] = {}
    for row in every.rows:
        subject, worn = split_tones(row.key)
        if subject not in familiar and len(worn) <= 1:
            subjects.setdefault(subject, []).append(row)
    complete = [rows for rows in subjects.values() if len(rows) == 6]
    return [row for rows in complete[:: len(complete) // 40][:40] for row in rows]


def plain() -> list[Row]:
    every, shown = EmojiImages(languages=["en"]), EmojiImages("demo", ["en"])
    familiar = {row.key for row in shown.rows}
    # Single characters without tones: no flags, no families.
    found = [r for r in every.rows if "-" not in r.key and r.key not in familiar]
    toned = {split_tones(row.key)[0] for row in every.rows if split_tones(row.key)[1]}
    found = [r for r in found if r.key not in toned]
    return found[:: len(found) // 60][:60]


SETS: dict[str, Callable[[], list[Row]]] = {"tones": tones, "plain": plain}


def write(rows: list[Row], folder: Path) -> None:
    """Pictures with their names beside them, as people have theirs."""
    folder.mkdir()
    every = EmojiImages(languages=["en"])
    for row in rows:
        (folder / f"{row.key}.png").write_bytes(every.image(row))
        (folder / f"{row.key}.txt").write_text(row.captions[0], encoding="utf-8")


def measured(name: str, way: str, run: Path, data: Data, known: Data) -> dict[str, Any]:
    """Draw what was trained, what was held out, and what was known before."""
    device = choose_device("cpu")
    precision = choose_precision("auto", device)
    generator = ImageGenerator(run, device=device, dtype=name_of(precision))
    line: dict[str, Any] = {"set": name, "way": way}
    line["learning_rate"] = generator.config.training.learning_rate
    for what, images, most in (
        ("trained", data.trained, 400),
        ("held out", data.held_out, 400),
        ("known before", known.trained, REMEMBERED),
    ):
        drawings = of_captions(images, Split(what) if what in OF_DATA else Split.TRAINED, most)
        draw(generator, drawings)
        rank_drawings(drawings, known if what == "known before" else data)
        line[what] = retrieval.summary([d.rank for d in drawings if d.rank])
    losses = [event for event in read_log(run / "log.jsonl") if event["kind"] == "heldout"]
    line["heldout_loss"] = losses[-1]["loss"] if losses else None
    return line


def note(line: dict[str, Any]) -> None:
    line |= {
        "date": datetime.date.today().isoformat(),
        "machine": f"{describe(choose_device('cpu'))}, {torch.get_num_threads()} threads",
        "versions": versions(),
        "steps": BASE_STEPS if line["set"] == "demo" else STEPS[line["set"]],
    }
    text = json.dumps(line)
    print(text, flush=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def table(lines: list[dict[str, Any]]) -> str:
    rows = ["| set | what learns | rate | trained @1 | held out @1 | known before @1 |"]
    rows.append("|---|---|---|---|---|---|")
    for line in sorted(lines, key=lambda line: (line["set"], line["way"], line["learning_rate"])):
        shares = [line[key]["at_1"] for key in ("trained", "held out", "known before")]
        cells = [line["set"], line["way"], f"{line['learning_rate']:g}"]
        rows.append("| " + " | ".join([*cells, *(f"{share:.2f}" for share in shares)]) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
