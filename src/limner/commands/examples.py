"""The end of each command's help: commands to copy. A test parses every one of them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from limner.console import say

EXAMPLES = {
    "demo": ["limner demo", "limner demo --minutes 3 --output outputs/quick"],
    "train": [
        "limner train my_pictures --minutes 10",
        "limner train my_pictures --from outputs/demo --output outputs/tuned",
        "limner train --config shapes",
        "limner train --config my.yaml training.max_minutes=60",
        "limner train --config my.yaml --resume latest",
    ],
    "generate": [
        'limner generate outputs/demo "a red apple"',
        'limner generate outputs/demo "a red apple" --num_images 8 --sheet --output apples.png',
        'limner generate outputs/demo "an apple" "a pear" --interpolate 6',
    ],
    "play": ["limner play outputs/demo", "limner play outputs/demo --output drawn --port 0"],
    "watch": ["limner watch outputs/demo", "limner watch outputs --no-browser"],
    "distill": [
        "limner distill outputs/demo --output outputs/demo-fast",
        "limner distill outputs/demo --output outputs/demo-fast --minutes 10",
    ],
    "precompute": [
        "limner precompute my.yaml",
        "limner precompute data.dataset_path=my_pictures",
    ],
    "estimate": ["limner estimate my.yaml", "limner estimate model.num_layers=24 --json"],
    "train-autoencoder": [
        "limner train-autoencoder my.yaml --output outputs/autoencoder",
        "limner train-autoencoder data.dataset_path=my_pictures --output outputs/autoencoder",
    ],
    "doctor": ["limner doctor", "limner doctor my.yaml --json"],
    "check-data": ["limner check-data my_pictures", "limner check-data my.yaml --strict --json"],
    "caption": [
        "limner caption my_pictures --model Salesforce/blip-image-captioning-base",
        "limner caption my_pictures --model my_model --num_samples 10 --overwrite",
    ],
    "prepare": [
        "limner prepare --input my_pictures --output prepared",
        "limner prepare --input my_pictures --output shards --to webdataset --shard_size 1000",
    ],
    "report": ["limner report outputs/demo"],
    "evaluate": [
        "limner evaluate outputs/demo",
        "limner evaluate outputs/demo --num_images 2000 --output measured",
        "limner evaluate --compare first/evaluation second/evaluation",
    ],
    "sweep": ["limner sweep outputs/demo", "limner sweep outputs/demo --costs 8 16 --dry-run"],
    "export": [
        "limner export outputs/demo --output apple.safetensors",
        "limner export outputs/demo --output for_diffusers --format diffusers",
        "limner export outputs/demo --output demo.html --format web",
    ],
    "publish": [
        "limner publish outputs/demo --repo me/fruit --dry-run",
        'limner publish outputs/demo --repo me/fruit --license apache-2.0 --prompt "a red apple"',
    ],
    "serve": [
        "limner serve outputs/demo",
        "limner serve fruit=outputs/demo fast=outputs/demo-fast --port 8000",
        "limner serve outputs/demo --host 0.0.0.0 --api-key-file key.txt",
    ],
    "completion": [
        "limner completion bash > ~/.local/share/bash-completion/completions/limner",
        "limner completion zsh > ~/.zfunc/_limner",
        "limner completion fish > ~/.config/fish/completions/limner.fish",
    ],
}


class Parser(argparse.ArgumentParser):
    """Prints its help and its errors, which quote what was typed, as everything is printed."""

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self.color = False  # of Python 3.14, whose colours would be shown as what they are

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            say(message, err=file is not sys.stdout, end="")


class HelpWithExamples(Parser):
    """A command's parser, whose help ends with its examples, one a line and not wrapped."""

    def format_help(self) -> str:
        lines = EXAMPLES.get(self.prog.split()[-1], [])
        shown = "\nexamples:\n" + "".join(f"  {line}\n" for line in lines)
        return super().format_help() + (shown if lines else "")
