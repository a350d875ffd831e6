"""Generate class-conditional samples with the published DiT weights (Peebles & Xie 2022).

    python benchmarks/class_dit/generate_classes.py DiT-XL-2-256x256.pt 207 360 387 --seed 0
    python benchmarks/class_dit/generate_classes.py facebook/DiT-XL-2-256 207 --scheduler_type ddim

This uses Limner's own network and solvers; tests/unit/models/test_import_dit.py compares them with
the published formulas.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from class_generator import SOLVERS, ClassImageGenerator
from PIL import Image

from limner.errors import LimnerError
from limner.inference.saving import check_not_foreign, remember, save_image


def build_parser() -> argparse.ArgumentParser:
    classes = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    classes.add_argument("weights", metavar="WEIGHTS", help="file, folder, or Hub id")
    classes.add_argument("labels", nargs="+", type=int, metavar="LABEL", help="207: a retriever")
    classes.add_argument("--vae", help="default: that of the folder, or stabilityai/sd-vae-ft-mse")
    classes.add_argument("--output", type=Path, default=Path("output.png"), help="PNG to write")
    classes.add_argument("--num_inference_steps", type=int, default=250, help="default 250")
    classes.add_argument("--guidance_scale", type=float, default=4.0, help="1: none; default 4")
    classes.add_argument("--scheduler_type", choices=SOLVERS, default="ddpm")
    classes.add_argument(
        "--guidance_channels", type=int, default=3,
        help="channels of the latents that are guided (default 3, as published)",
    )  # fmt: skip
    classes.add_argument("--seed", type=int, default=0, help="of the first; then one more each")
    classes.add_argument("--num_heads", type=int, help="of sizes that were not published")
    classes.add_argument("--device", choices=("cuda", "mps", "cpu"), help="default: the best")
    return classes


def main(arguments: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    path: Path = options.output
    if path.is_dir() or path.suffix.lower() not in Image.registered_extensions():
        raise LimnerError(f"--output {path} is no name of a picture file, such as dog.png")
    count = len(options.labels)
    paths = [path.with_stem(f"{path.stem}-{i}") if count > 1 else path for i in range(count)]
    check_not_foreign(paths)
    generator = ClassImageGenerator(options.weights, options.vae, options.device, options.num_heads)
    images = generator.generate(
        options.labels,
        [options.seed + place for place in range(len(options.labels))],
        options.num_inference_steps,
        options.guidance_scale,
        options.scheduler_type,
        options.guidance_channels,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, (image, numbered) in enumerate(zip(images, paths, strict=True)):
        how = {"label": options.labels[number], "seed": options.seed + number}
        save_image(remember(image, how), numbered)
        print(numbered)


if __name__ == "__main__":
    main()
