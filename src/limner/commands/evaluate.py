"""`limner evaluate`: how good a model is, in numbers that can be compared."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from limner.choices import DTYPES, SOLVERS
from limner.commands.common import A_MODEL, Commands, Parent, flag, parts_flags, seed
from limner.console import say
from limner.errors import LimnerError
from limner.redaction import shown_command

AS_OVERRIDES = {
    "num_images": "evaluation.num_images",
    "seed": "evaluation.seed",
    "dtype": "evaluation.dtype",
    "reference": "evaluation.reference",
    "inception": "evaluation.inception",
    "dinov2": "evaluation.dinov2",
    "clip": "evaluation.clip",
    "num_inference_steps": "sampling.num_inference_steps",
    "guidance_scale": "sampling.guidance_scale",
    "scheduler_type": "sampling.scheduler_type",
    "shift": "sampling.shift",
    "vae": "vae.pretrained_model_name",
    "text_encoder": "text_encoder.pretrained_model_name",
}
"""Flags that are short for a key."""


def add(commands: Commands, common: Parent) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        parents=[common],
        help="evaluate a model (loss, recall, distances, memorisation), or compare two evaluations",
        usage="limner evaluate CHECKPOINT [--output FOLDER] [section.key=value ...]\n"
        "       limner evaluate --compare A B [--varying KEY ...]",
        epilog="Keys of evaluation and sampling can be set as in limner train: "
        "evaluation.num_images=2000, or --evaluation.num_images 2000. By default, "
        "distances use EfficientNet-Lite0, whose weights come as a package.",
    )
    evaluate.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help=A_MODEL)
    evaluate.add_argument("--output", type=Path, help="output folder (default: RUN/evaluation)")
    evaluate.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"),
        help="compare two evaluations (folders or evaluation.json): which is better, and is the "
            "difference significant?",
    )  # fmt: skip
    evaluate.add_argument(
        "--varying", action="append", default=[], metavar="KEY",
        help="compare even though this key differs, such as sampling.num_inference_steps",
    )  # fmt: skip
    flag(
        evaluate,
        "--num_images",
        type=int,
        metavar="N",
        help="number of pictures to generate for the distances",
    )
    evaluate.add_argument("--seed", type=seed, help="seed of the first picture (default 0)")
    evaluate.add_argument("--dtype", choices=DTYPES, help="precision of sampling (default float32)")
    evaluate.add_argument(
        "--reference", metavar="PATH", help="reference pictures: a folder, or an .npz file"
    )
    networks = evaluate.add_argument_group("networks, by file, folder, or Hub id")
    networks.add_argument(
        "--inception", help="weights of Inception-v3, for FID, KID, and Inception score"
    )
    networks.add_argument("--dinov2", help="DINOv2 model, for FD-DINOv2")
    networks.add_argument("--clip", help="CLIP model, for CMMD and CLIP score")
    sampling = evaluate.add_argument_group("sampling (default: as the checkpoint has it)")
    flag(sampling, "--num_inference_steps", type=int, help="number of denoising steps")
    flag(sampling, "--guidance_scale", type=float, help="guidance scale; 1: no guidance")
    flag(sampling, "--scheduler_type", choices=SOLVERS, help="sampler (solver)")
    sampling.add_argument(
        "--shift", type=float, help="timestep shift; above 1: more steps at high noise"
    )
    where = evaluate.add_argument_group("where and how")
    where.add_argument(
        "--device", choices=("cuda", "mps", "cpu"), help="default: the best available"
    )
    parts_flags(where)
    evaluate.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace) -> None:
    if options.compare is not None:
        if options.checkpoint is not None or options.overrides:
            raise LimnerError("--compare cannot be combined with measuring a checkpoint")
        a, b = options.compare
        return print_comparison(a, b, options.varying)
    if options.checkpoint is None:
        raise LimnerError("missing checkpoint, for example: limner evaluate outputs/demo")
    if options.varying:
        raise LimnerError("--varying requires --compare A B")

    from limner.evaluation.evaluate import evaluate
    from limner.evaluation.summary import sentences
    from limner.reports.evaluation_report import write_page

    overrides = list(options.overrides)
    for name, key in AS_OVERRIDES.items():
        if (value := getattr(options, name)) is not None:
            overrides.append(f"{key}={json.dumps(value, ensure_ascii=False)}")  # as YAML
    command = shlex.join(["limner", *shown_command(sys.argv[1:])])
    found = evaluate(options.checkpoint, overrides, options.output, options.device, command)
    page = write_page(found.folder)
    for sentence in sentences(found.results):
        say(sentence)
    say(f"full results, with pictures: {page}")


def print_comparison(a: Path, b: Path, varying: list[str]) -> None:
    """Print what can be compared; what cannot is an error."""
    from limner.evaluation.compare import compare, table, why_refused
    from limner.evaluation.results_folder import read

    found = compare(read(a), read(b), varying)
    if found.pairs or found.only or found.said:
        say(f"A: {a}\nB: {b}\n")
        for line in table(found):
            say(line)
    if found.refused:
        raise LimnerError(why_refused(found))
