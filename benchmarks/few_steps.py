"""Teacher and students by quality and rate, in one run.

    limner demo
    limner distill outputs/demo --output outputs/demo-fast
    python benchmarks/few_steps.py outputs/demo outputs/demo-fast

For the teacher as it usually draws, the teacher in 4 steps, and each student in 1, 2, and 4: recall
of trained and of held-out prompts (the demo's: root mean square at 16 x 16 pixels, among all
pictures of the set), kernel distance of the drawings of trained captions from the real pictures of
these captions (EfficientNet-Lite0, unbiased; the other half of the real pictures gives the floor),
the mean difference from the teacher's own drawings of the same noise, and pictures per second for
one prompt and for 16. Rates are taken in rounds that alternate; the median counts. Results:
benchmarks/results/few_steps.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limner.checkpoint.open_model import open_model
from limner.data.open import open_data
from limner.data.order import evenly_spaced
from limner.evaluation.networks import efficientnet
from limner.evaluation.prompt_following import Gallery
from limner.evaluation.samples import Drawing, as_tensor, draw, of_captions, open_generator
from limner.evaluation.splits import OF_DATA, Split
from limner.inference.sampling_settings import function_evaluations, in_words
from limner.metrics import retrieval
from limner.metrics.kernel_distance import measure_kernel_distance

RESULTS = Path(__file__).parent / "results" / "few_steps.json"
BATCHES = (1, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher")
    parser.add_argument("students", nargs="+")
    parser.add_argument("--rounds", type=int, default=5, help="of the rates")
    parser.add_argument(
        "--captions", type=int, default=10**6, help="of each split, at most, evenly spaced"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first drawing")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()

    config = open_model(options.teacher).config
    data = open_data(config)
    gallery = Gallery(data)
    for split in OF_DATA:
        gallery.add(split, range(len((data.trained, data.held_out)[split is Split.HELD_OUT].rows)))
    network = efficientnet.open_network()
    chosen = evenly_spaced(len(data.trained.rows), options.captions)
    real = torch.stack([data.trained.load(i) for i in chosen])
    real_features = efficientnet.features(network, real)
    halves = real_features[::2], real_features[1::2]

    teacher = open_generator(options.teacher, config)
    ways: list[tuple[str, Any, dict[str, Any]]] = [
        ("teacher", teacher, {}),
        ("teacher, 4 steps", teacher, {"num_inference_steps": 4}),
        ("teacher, 1 step", teacher, {"num_inference_steps": 1}),
    ]
    for name in options.students:
        student = open_generator(name, open_model(name).config)
        ways += [
            (f"{Path(name).name}, {n} step{'s' * (n > 1)}", student, {"num_inference_steps": n})
            for n in (1, 2, 4)
        ]
    own: torch.Tensor | None = None
    lines = []
    for name, generator, changes in ways:
        sampling = generator.sampling.model_copy(update=changes)
        drawings: list[Drawing] = [
            drawing
            for split, images in ((Split.TRAINED, data.trained), (Split.HELD_OUT, data.held_out))
            for drawing in of_captions(images, split, options.captions, options.seed)
        ]
        draw(generator, drawings, sampling=sampling)
        gallery.rank(drawings)
        drawn = as_tensor(drawings)
        features = efficientnet.features(network, drawn[: len(real)])
        distance = measure_kernel_distance(features, real_features)
        own = drawn if own is None else own
        apart = (drawn.double() - own.double()).square().mean(dim=(1, 2, 3)).sqrt().mean()
        line: dict[str, Any] = {
            "way": name,
            "sampling": in_words(sampling),
            "evaluations": function_evaluations(
                sampling,
                generator.objective.noise_schedule,
                distilled=generator.model.is_flow_map,
            ),
            "kernel_distance": round(distance.value, 4),
            "kernel_interval": [round(x, 4) for x in distance.interval or ()],
            "from_the_teachers": round(float(apart), 2),
        }
        for split in OF_DATA:
            ranks = [d.rank for d in drawings if d.split is split and d.rank is not None]
            line[str(split)] = retrieval.summary(ranks)
        lines.append(line)
        print(json.dumps(line), flush=True)
    rates: dict[tuple[str, int], list[float]] = {}
    prompts = [row.captions[0] for row in data.trained.rows[:16]]
    for _ in range(options.rounds + 1):
        for name, generator, changes in ways:
            for size in BATCHES:
                began = time.perf_counter()
                generator.generate_batch(prompts[:size], seeds=list(range(size)), **changes)
                rates.setdefault((name, size), []).append(size / (time.perf_counter() - began))
    for line in lines:
        for size in BATCHES:
            line[f"images_per_second_at_{size}"] = round(
                statistics.median(rates[line["way"], size][1:]), 2
            )
        print(line["way"], [line[f"images_per_second_at_{size}"] for size in BATCHES])
    floor = measure_kernel_distance(*halves)
    options.output.write_text(
        json.dumps(
            {
                "date": datetime.date.today().isoformat(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "pictures": len(real),
                "real_against_real": round(floor.value, 4),
                "numpy": np.__version__,
                "ways": lines,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
