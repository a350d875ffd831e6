"""`limner train-autoencoder`: an autoencoder of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from limner.commands.common import CONFIGURED, Commands, Parent, configured_by
from limner.console import say


def add(commands: Commands, common: Parent, configured: Parent) -> None:
    autoencoder = commands.add_parser(
        "train-autoencoder",
        parents=[common, configured],
        help="train a small autoencoder on your pictures, for training in its latent space",
        usage=f"limner train-autoencoder {CONFIGURED} --output FOLDER",
        epilog="Configure it with the keys autoencoder.*, then train with "
        "vae.pretrained_model_name=FOLDER. On Ctrl-C, SIGTERM, or a closed terminal, "
        "progress is saved in FOLDER-unfinished, with exit code 75; the same command "
        "resumes it.",
    )
    autoencoder.add_argument("--output", type=Path, required=True, help="output folder")
    autoencoder.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace) -> None:
    from limner.apps.autoencoder.train import sentences, train_autoencoder

    results = train_autoencoder(configured_by(options), options.output)
    for sentence in sentences(results, options.output):
        say(sentence)
