"""The command line: words to calls, nothing else. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from limner.errors import LimnerError

if TYPE_CHECKING:
    from limner.config import Config

SOLVER_NAMES = ("ddpm", "ddim", "euler", "heun", "dpmsolver++")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. What people did wrong is said without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Prompts may hold letters that the code page of a Windows console does not have.
            stream.reconfigure(errors="replace")
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(levelname)s %(name)s: %(message)s"
    )
    # `limner` alone decides what is told at debug level; libraries would drown it.
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("limner").setLevel(options.log_level.upper())
    try:
        # argparse ends a list of words at the first flag; those after it are the same list's.
        flags = [word for word in rest if word.startswith("-")]
        if options.run in (_train, _precompute, _estimate, _train_autoencoder, _doctor):
            options.overrides = _as_overrides(rest)
        elif options.run is _generate and not flags:
            options.what += rest
        elif rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return options.run(options) or 0
    except LimnerError as error:
        print(f"limner: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a disk that is full, a folder that may not be written, ...
        reason = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        print(f"limner: {reason}; check the path, the space, and your permissions", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("limner: interrupted; what was saved is kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="limner",
        description="Train your own text-to-image Diffusion Transformer, and draw with it.",
    )
    parser.set_defaults(log_level="info")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info",
        help="debug shows shapes and ranges all the way through the model",
    )  # fmt: skip
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo", parents=[common], help="learn from built-in pictures and draw, in ten minutes"
    )
    demo.add_argument("--minutes", type=_positive, default=10.0, help="for all of it (default 10)")
    demo.add_argument("--output", default="outputs/demo", help="folder (default outputs/demo)")
    demo.set_defaults(run=_demo)

    train = commands.add_parser(
        "train",
        parents=[common],
        help="train a model from a configuration",
        usage="limner train [--config FILE] [--resume CHECKPOINT] [section.key=value ...]",
        epilog="Any key of the configuration can be set here: training.batch_size=16, or "
        "--training.batch_size 16. Ctrl-C or SIGTERM: the step is finished, all is saved, exit "
        "code 75; the same command goes on. A second one ends at once.",
    )
    train.add_argument("--config", type=Path, help="YAML file (default: every key's default)")
    train.add_argument(
        "--resume",
        metavar="CHECKPOINT",
        help="a checkpoint folder, `latest` in the output_dir, "
        "or `no`; by default a run of the same settings goes on by itself",
    )
    train.set_defaults(run=_train)

    generate = commands.add_parser(
        "generate", parents=[common], help="draw a picture from a prompt"
    )
    generate.add_argument("where", nargs="?", metavar="CHECKPOINT", help="run or checkpoint folder")
    generate.add_argument("what", nargs="*", metavar="PROMPT", help="one picture each, in quotes")
    generate.add_argument("--checkpoint", help="the same, as a flag")
    generate.add_argument("--prompt", help="the same, as a flag")
    generate.add_argument("--config", type=Path, help="not needed: a checkpoint carries its own")
    generate.add_argument("--output", type=Path, default=Path("output.png"), help="PNG to write")
    generate.add_argument("--num_inference_steps", type=int, help="network calls, about")
    generate.add_argument("--guidance_scale", type=float, help="1: none; 2 to 5: closer to words")
    generate.add_argument("--scheduler_type", choices=SOLVER_NAMES, help="the solver")
    generate.add_argument("--height", type=int, help="pixels (default: as trained)")
    generate.add_argument("--width", type=int, help="pixels (default: as trained)")
    generate.add_argument(
        "--seed", type=_seed, default=0, help="same seed, same picture (default 0)"
    )
    generate.add_argument("--vae", help="where the autoencoder is now, if it was moved")
    generate.add_argument("--text_encoder", help="where the text encoder is now, if it was moved")
    generate.add_argument("--device", choices=("cuda", "mps", "cpu"), help="default: the best")
    generate.set_defaults(run=_generate)

    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument("where", nargs="?", type=Path, metavar="CONFIG", help="YAML file")
    configured.add_argument("--config", type=Path, help="the same, as a flag")
    usage = "[CONFIG] [section.key=value ...]"
    precompute = commands.add_parser(
        "precompute",
        parents=[common, configured],
        help="compute latents and text embeddings now; training would do it at its start",
        usage=f"limner precompute {usage}",
        epilog="Start it several times, on several GPUs, and the work is shared.",
    )
    precompute.set_defaults(run=_precompute)

    estimate = commands.add_parser(
        "estimate",
        parents=[common, configured],
        help="parameters, memory, disk, and time of a run, before it",
        usage=f"limner estimate {usage} [--json]",
    )
    estimate.add_argument("--json", action="store_true", help="the same for programs")
    estimate.set_defaults(run=_estimate)

    autoencoder = commands.add_parser(
        "train-autoencoder",
        parents=[common, configured],
        help="fit a small autoencoder to your own pictures, for training in its latents",
        usage=f"limner train-autoencoder {usage} --output FOLDER",
        epilog="Its keys are autoencoder.*; then train with vae.pretrained_model_name=FOLDER.",
    )
    autoencoder.add_argument("--output", type=Path, required=True, help="folder to write")
    autoencoder.set_defaults(run=_train_autoencoder)

    doctor = commands.add_parser(
        "doctor",
        parents=[common, configured],
        help="what is wrong with this machine for a run, and the command that mends it",
        usage=f"limner doctor {usage} [--json]",
        epilog="Exit code 1 if something is to be mended.",
    )
    doctor.add_argument("--json", action="store_true", help="the same for programs")
    doctor.set_defaults(run=_doctor)

    prepare = commands.add_parser(
        "prepare", parents=[common], help="turn a COCO folder or any of ours into metadata.json"
    )
    prepare.add_argument(
        "--type", choices=("coco", "custom"), default="custom", help="what the input is"
    )
    prepare.add_argument("--input", type=Path, required=True, help="folder to read")
    prepare.add_argument("--output", type=Path, required=True, help="folder to write")
    prepare.add_argument("--num_samples", type=int, help="at most so many pictures")
    prepare.set_defaults(run=_prepare)

    report = commands.add_parser(
        "report", parents=[common], help="draw, measure, and write report.html for a run"
    )
    report.add_argument("run_folder", type=Path)
    report.set_defaults(run=_report)
    return parser


def _demo(options: argparse.Namespace) -> None:
    from limner.demo import run_demo

    run_demo(options.minutes, options.output)


def _train(options: argparse.Namespace) -> None:
    from limner.config import load_config
    from limner.evaluation.exam import examine, sentences
    from limner.training.resume import resume_config
    from limner.training.trainer import Trainer

    config = resume_config(options.resume, options.config, options.overrides) or load_config(
        options.config, options.overrides
    )
    trainer = Trainer(config, resume=options.resume)
    trainer.train()
    if trainer.accelerator.is_main_process:
        for sentence in sentences(examine(trainer.folder, config, trainer.data)):
            print(sentence)
        print(f"see {trainer.folder / 'report.html'}")


def _generate(options: argparse.Namespace) -> None:
    from PIL import Image

    from limner.config import load_config
    from limner.debug import log_shapes
    from limner.inference.generator import ImageGenerator

    checkpoint = options.checkpoint or options.where
    prompts = [*options.what, *([options.prompt] if options.prompt is not None else [])]
    if options.checkpoint and options.where is not None:
        prompts.insert(0, options.where)  # the only words without a flag are the prompt's
    if checkpoint is None or not prompts:
        raise LimnerError('a checkpoint and a prompt, please: limner generate outputs/demo "a cat"')
    path: Path = options.output
    if path.is_dir() or path.suffix.lower() not in Image.registered_extensions():
        raise LimnerError(f"--output {path} is no name of a picture file, such as apple.png")
    generator = ImageGenerator(
        checkpoint,
        options.scheduler_type,
        options.device,
        config=load_config(options.config) if options.config else None,
        vae=options.vae,
        text_encoder=options.text_encoder,
    )
    if options.log_level == "debug":
        log_shapes(generator.model)
    pictures = generator.generate_batch(
        prompts,
        options.num_inference_steps,
        options.guidance_scale,
        options.seed,
        options.height,
        options.width,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        numbered = path.with_stem(f"{path.stem}-{number}") if len(pictures) > 1 else path
        picture.save(numbered)
        print(numbered)


def _configured(options: argparse.Namespace) -> Config:
    from limner.config import load_config

    path: Path | None = options.config or options.where
    overrides = list(options.overrides)
    if path is not None and "=" in str(path) and not path.exists():
        overrides.insert(0, str(path))  # `limner estimate section.key=value` without a file
        path = None
    return load_config(path, overrides)


def _precompute(options: argparse.Namespace) -> None:
    from limner.training.inputs import precompute

    precompute(_configured(options), print)


def _estimate(options: argparse.Namespace) -> None:
    from limner.training.estimate import estimate

    found = estimate(_configured(options))
    if options.json:
        print(json.dumps(found.as_dict(), indent=1))
        return
    for line in found.lines():
        print(line)


def _doctor(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from limner.doctor import examine, lines

    findings = examine(_configured(options))
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for line in lines(findings):
            print(line)
    return 1 if any(finding.verdict == "fail" for finding in findings) else 0


def _train_autoencoder(options: argparse.Namespace) -> None:
    from limner.training.autoencoder import sentences, train_autoencoder

    results = train_autoencoder(_configured(options), options.output)
    for sentence in sentences(results, options.output):
        print(sentence)


def _prepare(options: argparse.Namespace) -> None:
    from limner.data.prepare import prepare

    prepared = prepare(options.type, options.input, options.output, options.num_samples)
    print(f"{prepared.count} pictures in {options.output}")
    if prepared.refused:
        first = prepared.refused[0]
        print(
            f"{len(prepared.refused)} rows could not be used, all listed in "
            f"{options.output / 'refused.json'}; the first: {first.key}: {first.reason}"
        )


def _report(options: argparse.Namespace) -> None:
    from limner.config import load_config
    from limner.data.sources import open_data
    from limner.evaluation.exam import examine, sentences
    from limner.evaluation.run_folder import read_run

    config = load_config(options.run_folder / "config.yaml")
    earlier = read_run(options.run_folder)
    free = [sample["prompt"] for sample in earlier.samples if sample["split"] == "free"]
    results = examine(
        options.run_folder, config, open_data(config), free, command=earlier.results.get("command")
    )
    for sentence in sentences(results):
        print(sentence)
    print(options.run_folder / "report.html")


def _as_overrides(rest: list[str]) -> list[str]:
    """`--section.key value`, `--section.key=value`, and `section.key=value` as the last."""
    overrides: list[str] = []
    words = iter(rest)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if "." not in name or not (equals or word.startswith("--")):
            raise LimnerError(
                f"'{word}' is not understood; settings are section.key=value, flags are in "
                "limner train --help"
            )
        if not equals:
            following = next(words, None)
            if following is None:
                raise LimnerError(f"'{word}' needs a value: {word} VALUE")
            value = following
        overrides.append(f"{name}={value}")
    return overrides


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 2^63 - 1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
