"""Sampling throughput against the same network in a diffusers pipeline, in one run.

    python benchmarks/sampling_speed.py               # CPU: 384 x 8, 256 tokens
    python benchmarks/sampling_speed.py --device cuda

Two baselines, all in pixels (no autoencoder on any side), eager, at equal steps ("compiled" is ours
with `--compile`):

"diffusers": diffusers' own code, DiTPipeline with DiTTransformer2DModel and
DPMSolverMultistepScheduler. Ours is ImageGenerator with `model.architecture: dit` and dpmsolver++:
the published DiT of the same width, depth, heads, and patches, from words (theirs: class numbers)
to Pillow's pictures. Ours also runs a text encoder, which theirs does not have, and the random
weights differ.

"exported": the very same weights in a folder that `limner export --format diffusers` wrote and
DiffusionPipeline.from_pretrained loaded. It must draw the same pictures (at most 1/255 apart), or
this program ends.

`modern` is what Limner trains by default. The weights are random, none of them zero.

Each variant is a process of its own; turns alternate and the best of each counts. `ratio` is
against diffusers' own in float32, which is what from_pretrained gives, `same_dtype` against it in
the same type, `same_weights` against the export. Results: benchmarks/results/sampling_speed.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "sampling_speed.json"
WIDTH, LAYERS, HEADS, SIDE, PATCH = 384, 8, 6, 64, 4
CASES = {  # pictures at once, guidance scale
    "1, not guided": (1, 1.0),
    "1, guided": (1, 3.0),
    "16, guided": (16, 3.0),
}
PROMPTS = [f"a large red circle and {n} small blue squares" for n in range(16)]
VARIANTS = (
    "diffusers float32",
    "diffusers bfloat16",
    "exported dit float32",
    "exported modern float32",
    "Limner dit float32",
    "Limner dit bfloat16",
    "Limner dit float32 compiled",
    "Limner dit bfloat16 compiled",
    "Limner modern float32",
    "Limner modern bfloat16",
)

Drawing = Callable[[int, float], object]
"""(pictures, guidance scale) -> the pictures."""


def painted(folder: Path, architecture: str, device: str, steps: int) -> Path:
    """A checkpoint of random weights, none of them zero: as a new model has them, its last layer
    is, and whatever came before would be drawn the same."""
    import torch

    from limner.config import load_config
    from limner.training.trainer import Trainer

    config = {
        "data": {"dataset_name": "shapes", "image_size": SIDE, "num_samples": 64},
        "model": {
            "architecture": architecture,
            "patch_size": PATCH,
            "hidden_size": WIDTH,
            "num_layers": LAYERS,
            "num_heads": HEADS,
        },
        "training": {"device": device, "trackers": ["none"], "output_dir": str(folder)},
        "sampling": {"num_inference_steps": steps, "scheduler_type": "dpmsolver++"},
    }
    trainer = Trainer(load_config(config))
    generator = torch.Generator().manual_seed(0)
    for weight in trainer.averaged.parameters():
        weight.data += 0.02 * torch.randn(weight.shape, generator=generator).to(weight.device)
    trainer.save_checkpoint(folder / "drawn")
    return folder / "drawn"


def limner(variant: str, device: str, steps: int) -> Drawing:
    from limner.inference.generator import ImageGenerator

    _, architecture, dtype, *compiled = variant.split()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = painted(Path(folder), architecture, device, steps)
        generator = ImageGenerator(checkpoint, device=device, dtype=dtype)
    if compiled:
        generator.compile()
    return lambda count, scale: generator.generate_batch(
        PROMPTS[:count], guidance_scale=scale, seeds=range(count)
    )


def exported(variant: str, device: str, steps: int) -> Drawing:
    import numpy as np
    import torch
    from diffusers import DiffusionPipeline

    from limner.apps.publishing.export import export
    from limner.inference.generator import ImageGenerator

    _, architecture, dtype = variant.split()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = painted(Path(folder), architecture, device, steps)
        export(checkpoint, Path(folder) / "exported", "diffusers", dtype)
        pipeline = DiffusionPipeline.from_pretrained(
            Path(folder) / "exported", trust_remote_code=True
        ).to(device, getattr(torch, dtype))
        ours = ImageGenerator(checkpoint, device=device, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)

    def draw(count: int, scale: float) -> Any:
        seeds = [torch.Generator().manual_seed(i) for i in range(count)]
        return pipeline(
            PROMPTS[:count], guidance_scale=scale, num_inference_steps=steps, generator=seeds
        ).images

    if dtype == "float32":
        pair = draw(2, 3.0), ours.generate_batch(PROMPTS[:2], None, 3.0, seeds=range(2))
        theirs, own = (np.stack([np.asarray(p) for p in some]).astype(int) for some in pair)
        if own.std() < 10 or abs(theirs - own).max() > 1:
            sys.exit(f"{variant} draws other pictures: {abs(theirs - own).max()} of 255 apart")
    return draw


def diffusers(variant: str, device: str, steps: int) -> Drawing:
    import torch
    from diffusers import DiTPipeline, DiTTransformer2DModel, DPMSolverMultistepScheduler
    from torch import nn

    place = device

    class NoAutoencoder(nn.Module):
        """Pixels as latents: what stands where the pipeline wants an autoencoder."""

        config = argparse.Namespace(scaling_factor=1.0)
        device, dtype = torch.device(place), torch.float32  # a pipeline asks any of its parts

        def decode(self, latents: torch.Tensor) -> argparse.Namespace:
            return argparse.Namespace(sample=latents)

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=3,
        out_channels=3,
        num_layers=LAYERS,
        sample_size=SIDE,
        patch_size=PATCH,
        num_embeds_ada_norm=1000,
    )
    transformer = transformer.to(device, getattr(torch, variant.split()[1])).eval()
    pipeline = DiTPipeline(transformer, NoAutoencoder(), DPMSolverMultistepScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return lambda count, scale: (
        pipeline(
            class_labels=list(range(count)),
            guidance_scale=scale,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
        ).images
    )


def measure(variant: str, device: str, steps: int, repeats: int) -> dict[str, float]:
    """Pictures per second of each case, in this process."""
    import torch

    from limner.training.monitor.throughput import synchronised

    kinds = {"Limner": limner, "exported": exported, "diffusers": diffusers}
    draw = kinds[variant.split()[0]](variant, device, steps)
    place, found = torch.device(device), {}
    for case, (count, scale) in CASES.items():
        draw(count, scale)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            with synchronised(place):
                draw(count, scale)
            seconds.append(time.perf_counter() - start)
        found[case] = count / statistics.median(seconds)
    return found


def asked(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """What a process of its own finds."""
    task = {
        "variant": variant,
        "device": options.device,
        "steps": options.steps,
        "repeats": options.repeats,
    }
    command = [sys.executable, __file__, "--one", json.dumps(task)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def with_ratios(best: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """A line for each case and variant, with its ratios to theirs where that was measured."""
    lines = []
    for case in CASES:
        for variant, found in best.items():
            plain = variant.removesuffix(" compiled")
            theirs = {
                "ratio": best.get("diffusers float32"),
                "same_dtype": best.get(f"diffusers {plain.split()[-1]}"),
                "same_weights": best.get(plain.replace("Limner", "exported")),
            }
            ratios = {
                name: round(found[case] / other[case], 2) for name, other in theirs.items() if other
            }
            speed = {"pictures_per_second": round(found[case], 3)}
            lines.append({"case": case, "variant": variant, **speed, **ratios})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="of each case; the median counts")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=VARIANTS, help="variants")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    best: dict[str, dict[str, float]] = {}
    for _ in range(options.turns):
        for variant in options.only:
            found = asked(variant, options)
            before = best.get(variant, found)
            best[variant] = {case: max(found[case], before[case]) for case in CASES}
    lines = with_ratios(best)
    for line in lines:
        print(line)
    import torch

    from limner.device import describe

    about = {
        "date": datetime.date.today().isoformat(),
        "machine": describe(torch.device(options.device)),
        "versions": {name: version(name) for name in ("torch", "diffusers")},
        "model": f"{WIDTH} x {LAYERS}, {HEADS} heads, {(SIDE // PATCH) ** 2} tokens",
        "num_inference_steps": options.steps,
        "turns": options.turns,
        "repeats": options.repeats,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(about | {"lines": lines}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
