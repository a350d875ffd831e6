"""The few-step settings that `limner sweep` finds, against 100 guided steps of DDIM.

    limner sweep CHECKPOINT
    python benchmarks/sampling_quality.py CHECKPOINT

DDIM (Song et al. 2020) with guidance at every step, at evenly spaced times, is what people draw
with where they have changed nothing: 100 steps are 200 evaluations of the network. On the flow path
it is Euler's method. Its guidance scale is its best of several, chosen as the sweep chose its
settings: on the same captions, noise, and numbers of pictures. (Without guidance, at 100
evaluations, it is measured, too.) Then all draw captions that none of them was chosen by, the other
half of the held-out ones, each from several noise seeds.

Kernel distance (EfficientNet-Lite0) to the real pictures of these captions, and recall at 1: the
share of drawings whose true picture is the nearest of all. Each is the mean over noise seeds, with
the lowest and the highest; "better" counts the noise seeds in which a setting is at least as good
as DDIM. All measurements are kept in the checkpoint's sweep.json, so that a run that was stopped
goes on.

Results: benchmarks/results/sampling_quality.jsonl, sampling_quality.md, sampling_quality.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from limner.apps.sweep import sheet
from limner.apps.sweep.measurement import Measurement
from limner.apps.sweep.prompts import REPORTED_SEEDS, parts_of
from limner.apps.sweep.record import Record
from limner.apps.sweep.score import Quality
from limner.apps.sweep.search import halving, rounds_of
from limner.apps.sweep.sweep import Measuring, feature_network, follow_of, protocol_of
from limner.checkpoint.folder import Checkpoint
from limner.config import SamplingConfig
from limner.data.open import open_data
from limner.device import describe
from limner.errors import LimnerError
from limner.evaluation.samples import open_generator
from limner.evaluation.swept import FILE
from limner.inference.sampling_settings import in_words

RESULTS = Path(__file__).parent / "results"
NAME = "sampling_quality"
SCALES = (1.25, 1.5, 2.0, 3.0, 4.5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--steps", type=int, default=100, help="of DDIM (default 100)")
    parser.add_argument(
        "--pictures", type=int, default=64, help="as in the sweep, to choose DDIM's scale by"
    )
    parser.add_argument("--seeds", type=int, default=3, help="noise seeds of each caption")
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()

    opened = Checkpoint.open(options.checkpoint)
    record = Record(opened.folder / FILE)
    best = settings_of_the_sweep(record)
    generator = open_generator(opened.folder, opened.config, options.device)
    data = open_data(opened.config)
    network, missing = feature_network(generator)
    if missing:
        raise LimnerError(missing)
    chosen, reported = parts_of(data, options.images)
    parts = [chosen] + [
        dataclasses.replace(
            reported,
            name=f"reported from seed {REPORTED_SEEDS + 1000 * i}",
            first_seed=REPORTED_SEEDS + 1000 * i,
        )
        for i in range(1, options.seeds + 1)
    ]
    follow = {part.name: follow_of(data, part) for part in (chosen, reported)}
    qualities = {
        part.name: Quality(generator, part, network, follow[part.name.split()[0]]) for part in parts
    }
    protocol = protocol_of(opened, generator, data, (chosen, reported), network, None)
    measure = Measuring(record, qualities, protocol)

    ddim = [ddim_at(scale, options.steps) for scale in SCALES]
    at_its_best = halving(ddim, rounds_of(options.images), measure)
    print(f"DDIM is at its best with guidance {at_its_best.guidance_scale:g}", flush=True)
    named = {"DDIM": at_its_best, "DDIM, not guided": ddim_at(1.0, options.steps)} | best
    count = len(reported.asked)
    found: dict[str, list[Measurement]] = {name: [] for name in named}
    for part in parts[1:]:
        for name, sampling in named.items():
            found[name].append(measure(sampling, count, part.name))

    about = {
        "date": datetime.date.today().isoformat(),
        "machine": describe(generator.device),
        "command": " ".join(["python", "benchmarks/sampling_quality.py", *sys.argv[1:]]),
        "commit": commit(),
        "versions": {name: version(name) for name in ("limner", "torch", "numpy")},
        "step": opened.state.step,
        "protocol": protocol,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    with (options.results / f"{NAME}.jsonl").open("a", encoding="utf-8") as file:
        for name, measured in found.items():
            for part, m in zip(parts[1:], measured, strict=True):
                line = {"setting": name, "part": part.name, **dataclasses.asdict(m)}
                line["sampling"] = m.sampling.model_dump(mode="json")
                file.write(json.dumps(about | line, ensure_ascii=False) + "\n")
    text = table(named, found, count, len(data.trained.rows) + len(data.held_out.rows), about)
    (options.results / f"{NAME}.md").write_text(text, encoding="utf-8")
    print(text)
    sheet.save_sheet(
        options.results / f"{NAME}.png",
        qualities[parts[1].name],
        [(f"{name}, {found[name][0].cost} evaluations", named[name]) for name in named],
        "The same prompts and noise",
    )


def ddim_at(scale: float, steps: int) -> SamplingConfig:
    """Everything as DDIM has it, whatever the checkpoint's settings are."""
    return SamplingConfig(
        scheduler_type="ddim",
        num_inference_steps=steps,
        guidance_scale=scale,
        guidance_interval=(0.0, 1.0),
        guidance_type="cfg",
        guidance_rescale=0.0,
        zero_init_steps=0,
        shift=1.0,
        timestep_power=1.0,
    )


def settings_of_the_sweep(record: Record) -> dict[str, SamplingConfig]:
    """What was there before it, and its best at each cost."""
    lines = record.values["table"]
    if not lines:
        raise LimnerError(f"{record.path} has no result of a sweep: run limner sweep CHECKPOINT")
    names = {line["name"]: SamplingConfig.model_validate(line["sampling"]) for line in lines}
    return {
        name if name == "before" else f"swept, at most {name}": setting
        for name, setting in names.items()
    }


def table(
    named: dict[str, SamplingConfig],
    found: dict[str, list[Measurement]],
    count: int,
    among: int,
    about: dict[str, Any],
) -> str:
    """Markdown: each setting's mean, lowest, and highest over noise seeds."""
    ddim = found["DDIM"]
    head = (
        "| setting | evaluations | kernel distance | recall at 1 | better: distance, recall |"
        "\n|---|---|---|---|---|"
    )
    lines = [head]
    for name, measured in found.items():
        distances = [m.distance or 0.0 for m in measured]
        right = [m.right or 0.0 for m in measured]
        closer = sum(a <= (b.distance or 0.0) for a, b in zip(distances, ddim, strict=True))
        righter = sum(a >= (b.right or 0.0) for a, b in zip(right, ddim, strict=True))
        better = "" if name == "DDIM" else f"{closer} and {righter} of {len(ddim)}"
        lines.append(
            f"| {name}: {in_words(named[name])} | {measured[0].cost} | "
            f"{spread(distances, '.4f')} | {spread(right, '.1%')} | {better} |"
        )
    return (
        "\n".join(lines)
        + f"\n\n{count} held-out captions that no setting was chosen by, {len(ddim)} noise seeds "
        f"each, nearest of {among}; mean (lowest to highest seed). {about['date']}, "
        f"{about['machine']}, {about['protocol']['dtype']}, step {about['step']}; commit "
        f"{about['commit']}; `{about['command']}`\n"
    )


def spread(values: Sequence[float], how: str) -> str:
    mean = sum(values) / len(values)
    return f"{mean:{how}} ({min(values):{how}} to {max(values):{how}})"


def commit() -> str:
    command = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
