"""Every command of the README and the tour is run, in its order, in one folder, on a small model.

As shown, with settings after it that make it quick; NOT_HERE says what cannot be run here and where
it is run instead.
"""

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pretrained import tiny_autoencoder, tiny_clip, tiny_dinov2
from recording_hub import recording_hub
from runs import measure_here
from shown import ROOT, Runner, Told, as_the_hub, blocks_of, workplace
from tiny import TINY
from visitor import visit_pages

from limner import device as devices
from limner.config import load_config
from limner.training.monitor import throughput

PAGES = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/tour.md")]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
NOT_HERE = {
    "limner demo": "takes minutes; tests/runs/test_demo.py runs it on few pictures",
    "pytest": "runs this; the tests of a clean checkout type the line itself",
}
SMALL = [
    *("data.image_size=16", "model.patch_size=4", "model.hidden_size=64", "model.num_layers=1"),
    *("training.max_steps=2", "training.trackers=[none]"),
]
"""What is chosen for people's own pictures takes minutes."""
IN_LATENTS = [o for o in TINY if not o.startswith(("data.dataset_name", "data.num_samples"))]


class Reader(Runner):
    """Types what the README shows."""

    def run_command(self, words: list[str]) -> None:
        line = " ".join(words)
        if line in NOT_HERE:
            self.told.commands.append(words)
        elif words[:2] == ["pip", "install"] and words[3] == "requirements-dev.txt":
            assert words == ["pip", "install", "-r", "requirements-dev.txt"]
            self.told.commands.append(words)
        else:
            super().run_command(words)

    def after(self, command: str, words: Sequence[str]) -> Sequence[str]:
        quick = [] if "--compare" in words else [*super().after(command, words)]
        if command == "train" and words[:1] == ["photos"]:
            quick += SMALL
        if words in (["outputs"], ["outputs/tuned"]):
            quick += ["evaluation.efficientnet=false"]  # seen with outputs/demo, and slow
        if any("dinov2" in word for word in words):
            quick += ["evaluation.dinov2=dinov2"]  # the Hub's, which is not here
        return quick


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("readme") / "work"
    autoencoder = ("autoencoder.max_steps=2", "autoencoder.crop=8", "autoencoder.base_channels=8")
    quick = {
        "train": ("training.compile_model=false", "training.num_workers=0"),
        "train-autoencoder": autoencoder,
        "play": ("--port", "0"),
        "watch": ("--port", "0"),
        "evaluate": ("--num_images", "4", "evaluation.other_images=2"),
    }
    with pytest.MonkeyPatch.context() as patch, recording_hub("me") as hub:
        as_the_hub(hub, patch, folder.parent / "hub")
        patch.setattr(throughput, "matmul_peak", lambda device, dtype: 1e12)
        measure_here(patch)
        visit_pages(patch, folder / "played.html")
        patch.setattr(devices, "why_not_compile", lambda device: None)
        workplace(folder)
        patch.chdir(folder)
        shutil.copytree("outputs", "outputs/demo")
        shutil.copytree("data", "photos")
        shown = load_config(ROOT / "configs" / "latents.yaml")
        assert shown.vae.pretrained_model_name
        assert shown.text_encoder.pretrained_model_name
        parts = [
            f"vae.pretrained_model_name={tiny_autoencoder(Path('tiny-vae'))}",
            f"text_encoder.pretrained_model_name={tiny_clip(Path('tiny-clip'))}",
            *("model.in_channels=4", "model.patch_size=2", "training.max_steps=2"),
            *("data.train_split=0.6", "training.preview_prompts=null"),
        ]
        small = load_config(None, [*IN_LATENTS, *parts])
        Path("configs/latents.yaml").write_text(small.to_yaml(), "utf-8")
        tiny_dinov2(Path("dinov2"))
        reader = Reader(folder, quick)
        for block in BLOCKS:
            if block.language == "python":
                reader.run_python(textwrap.dedent(block.content))
                reader.told.blocks += 1
            elif block.language:
                reader.run([block])
        yield reader.told


def test_every_command_that_is_shown_was_run(told: Told) -> None:
    shown = [line for b in BLOCKS if b.language == "bash" for line in b.content.splitlines()]
    lines = [line.partition(" #")[0].strip() for line in shown]
    commands = [part for line in lines if line[:1] not in ("", "#") for part in line.split(" && ")]
    ran = [" ".join(words) for words in told.commands]
    assert [command.replace('"', "") for command in commands] == ran
    assert len(ran) > 20
    assert set(NOT_HERE) <= set(ran)


def test_the_commands_leave_what_they_say(told: Told) -> None:
    for name in (
        *("outputs/photos/train.yaml", "outputs/photos/samples.png", "outputs/photos/report.html"),
        *("apple.png", "output-0.png", "output-sheet.png", "a.png", "played.html"),
        *("outputs/report.html", "outputs/demo/evaluation/evaluation.html"),
        *("vae/config.json", "painter.safetensors", "painter/model_index.json"),
        *("outputs/latents/report.html", "outputs/own-latents/report.html"),
        *("outputs/demo/checkpoint-1000/sweep.json", "prepared/metadata.json"),
    ):
        assert (told.folder / name).is_file(), name
    assert list((told.folder / "cache").glob("*"))
    assert "resumed at step" in told.printed
    assert "kernel distance" in told.printed


def test_what_is_not_run_is_still_shown() -> None:
    for line in NOT_HERE:
        assert any(line in page for page in PAGES)
