"""Draw pictures from prompts with the ONNX files in this folder.

    pip install numpy onnxruntime pillow
    python draw.py "a red apple" --seed 1 --num_images 4 --output apple.png

A model with a pretrained text encoder needs the package tokenizers, too. From Python:

    from draw import Drawer
    pictures = Drawer()("a red apple", seed=1)      # uint8, [1, height, width, 3]

The same prompt and seed give the picture that `limner generate` gives. Everything but the networks
is in this file: prompts to tokens, noise, times, solvers, guidance. The settings are in
config.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limner.apps.onnx_folder.runner.drawer import SEEDS, SETTINGS, Drawer
from limner.apps.onnx_folder.runner.guidance import GUIDANCE
from limner.apps.onnx_folder.runner.solvers import SOLVERS, Array


def command() -> argparse.ArgumentParser:
    described = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=described)
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="prompts, in quotes")
    parser.add_argument("--output", type=Path, default=Path("output.png"), help="output file (PNG)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")

    def flag(name: str, **how: Any) -> None:
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", dest=name, **how)

    flag("num_images", type=int, default=1, help="pictures per prompt, seeds counting up")
    parser.add_argument("--num_inference_steps", "--num-inference-steps", "--steps", type=int,
                        dest="num_inference_steps", help="number of denoising steps")  # fmt: skip
    flag("scheduler_type", choices=tuple(SOLVERS), help="sampler (solver)")
    flag("shift", type=float, help="timestep shift; above 1: more steps at high noise")
    flag("guidance_scale", type=float, help="guidance scale; 1: no guidance")
    flag("guidance_interval", type=float, nargs=2, metavar=("LOW", "HIGH"),
         help="noise levels at which guidance applies, from 0 (clean) to 1 (noise)")  # fmt: skip
    flag("guidance_type", choices=tuple(GUIDANCE), help="guidance formula")
    flag("negative_prompt", help="what the pictures should not contain")
    flag("batch_size", type=int, default=4, help="pictures drawn at once (default 4)")
    parser.add_argument("--threads", type=int, help="of the processor (default: one for each core)")
    parser.add_argument("--folder", type=Path, help="of the model (default: where this file is)")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    options = vars(command().parse_args(words))
    output, folder, threads = (options.pop(name) for name in ("output", "folder", "threads"))
    prompts, seed, count = options.pop("prompts"), options["seed"], options["num_images"]
    warnings.showwarning = lambda said, *_: print(f"warning: {said}", file=sys.stderr)
    try:
        paths = names(output, len(prompts) * max(1, count))
        drawer = Drawer(folder, threads)
        pictures = drawer(prompts, **options)
        sampling = drawer.settings(**{name: options.get(name) for name in SETTINGS})
        for i, (path, picture) in enumerate(zip(paths, pictures, strict=True)):
            how = {"prompt": prompts[i // count], "seed": (seed + i % count) % SEEDS}
            how |= {"negative_prompt": options["negative_prompt"]}
            save(path, picture, drawer.config, how | {"sampling": sampling})
            print(path)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def names(output: Path, count: int) -> list[Path]:
    """apple.png, or of several pictures apple-0.png, apple-1.png, ...

    Raises:
        ValueError: one is another kind of file, or somebody else's.
    """
    from PIL import Image

    if output.suffix.lower() != ".png":
        raise ValueError(f"--output {output} does not end in .png")
    paths = [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(count)]
    paths = [output] if count == 1 else paths
    for path in filter(Path.exists, paths):
        try:
            with Image.open(path) as image:
                is_ours = "limner" in image.info
        except OSError:
            is_ours = False
        if not is_ours:
            raise ValueError(f"{path} already exists and was not drawn by this; use another file")
    return paths


def save(path: Path, picture: Array, config: dict[str, Any], how: dict[str, Any]) -> None:
    """A PNG that says how it was drawn, as those of `limner generate` do."""
    from PIL import Image, PngImagePlugin

    about = {"limner_version": config["limner_version"], "model_step": config["step"]}
    said = {
        k: v for k, v in {**about, **how, "weights": config["weights"]}.items() if v is not None
    }
    info = PngImagePlugin.PngInfo()
    info.add_itxt("limner", json.dumps(said, ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, pnginfo=info)
