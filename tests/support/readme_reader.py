"""Somebody who has installed Limner and types every command of README.md and docs/tour.md.

A program, `python readme_reader.py FOLDER`, for which the installed package is on PYTHONPATH. What
is shown is typed in its order, as it is, with settings after it that make it quick; NOT_HERE says
what cannot be run here and where it is run instead. The folder holds pictures and two trained runs,
and no configurations: those that are named come with the package. told.json, beside the folder,
says what came of it.
"""

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pretrained import tiny_autoencoder, tiny_clip, tiny_dinov2
from recording_hub import recording_hub
from runs import measure_here
from shown import OF_FOUR_STEPS, ROOT, SMALLEST, Runner, as_the_hub, blocks_of, workplace
from visitor import visit_pages

import limner
from limner import console
from limner import device as devices
from limner.config import load_config
from limner.training.monitor import throughput

PAGES = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/tour.md")]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
NOT_HERE = {
    "limner demo": "takes minutes; tests/runs/test_demo.py runs it on few pictures",
    "pytest": "runs this; the tests of a clean checkout type the line itself",
}
CHOSEN = [
    *("data.image_size=16", "model.patch_size=4", "model.hidden_size=64", "model.num_layers=1"),
    *("training.max_steps=2", "training.trackers=[none]"),
]
"""What is chosen for people's own pictures takes minutes."""
IN_LATENTS = [
    *SMALLEST,
    *("vae.pretrained_model_name=tiny-vae", "text_encoder.pretrained_model_name=tiny-clip"),
    *("model.in_channels=4", "model.patch_size=2", "training.max_steps=2"),
    *("data.train_split=0.6", "training.preview_prompts=null"),
]
SMALL = {"configs/train_config.yaml": OF_FOUR_STEPS, "configs/latents.yaml": IN_LATENTS}
"""What makes them small; what a command says itself stays."""
AUTOENCODER = ("autoencoder.max_steps=2", "autoencoder.crop=8", "autoencoder.base_channels=8")
QUICK = {
    "train": ("training.compile_model=false", "training.num_workers=0"),
    "train-autoencoder": AUTOENCODER,
    "play": ("--port", "0"),
    "watch": ("--port", "0"),
    "evaluate": ("--num_images", "4", "evaluation.other_images=2"),
}


class Reader(Runner):
    """Types what is shown."""

    def run_command(self, words: list[str]) -> None:
        line = " ".join(words)
        if line in NOT_HERE:
            self.told.commands.append(words)
        elif words[:2] == ["pip", "install"] and words[3] == "requirements-dev.txt":
            assert words == ["pip", "install", "-r", "requirements-dev.txt"]
            self.told.commands.append(words)
        else:
            super().run_command(words)

    def run_python(self, content: str) -> None:
        super().run_python(textwrap.dedent(content))

    def after(self, command: str, words: Sequence[str]) -> Sequence[str]:
        quick = [] if "--compare" in words else [*super().after(command, words)]
        said = {word.partition("=")[0] for word in words}
        for configuration, small in SMALL.items():
            if configuration in words:
                quick += [setting for setting in small if setting.partition("=")[0] not in said]
        if command == "train" and words[:1] == ["photos"]:
            quick += CHOSEN
        if words in (["outputs"], ["outputs/tuned"]):
            quick += ["evaluation.efficientnet=false"]  # seen with outputs/demo, and slow
        if any("dinov2" in word for word in words):
            quick += ["evaluation.dinov2=dinov2"]  # the Hub's, which is not here
        return quick


def read(folder: Path) -> dict[str, object]:
    """Run all blocks; returns what came of it."""
    console._voice.commanded = True
    torch.set_num_threads(1)  # as in conftest.py
    with pytest.MonkeyPatch.context() as patch, recording_hub("me") as hub:
        as_the_hub(hub, patch, folder.parent / "hub")
        patch.setattr(throughput, "matmul_peak", lambda device, dtype: 1e12)
        measure_here(patch)
        visit_pages(patch, folder / "played.html")
        patch.setattr(devices, "why_not_compile", lambda device: None)
        workplace(folder)
        patch.chdir(folder)
        shutil.rmtree("configs")
        shutil.copytree("outputs", "outputs/demo")
        shutil.copytree("data", "photos")
        latents = load_config("latents")
        assert latents.vae.pretrained_model_name
        assert latents.text_encoder.pretrained_model_name
        tiny_autoencoder(Path("tiny-vae"))
        tiny_clip(Path("tiny-clip"))
        tiny_dinov2(Path("dinov2"))
        told = Reader(folder, QUICK).run([block for block in BLOCKS if block.language])
    return {"package": limner.__file__, "commands": told.commands, "printed": told.printed}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    found = json.dumps(read(place))
    (place.parent / "told.json").write_text(found, encoding="utf-8")
