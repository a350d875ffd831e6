"""The tutorial, from the first command to the last, in one folder and in its order."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from captioners import tiny_blip
from PIL import Image
from recording_hub import recording_hub
from runs import measure_here, messages
from shown import ROOT, Block, Runner, Told, as_the_hub, blocks_of, shape_of
from tiny import TINY
from visitor import visit_pages

from limner import device as devices
from limner.checkpoint.locate import newest_checkpoint
from limner.config import load_config
from limner.training.monitor import throughput

LANGUAGES = ("docs/tutorial.md", "docs/tutorial.zh-CN.md")
THEIRS = (
    *("data.dataset_name=", "data.num_samples=", "training.max_steps="),
    *("training.preview_prompts=", "training.trackers="),
)
SMALL = [words for words in TINY if not words.startswith(THEIRS)]
"""The smallest model, for the tutorial's own data, length, and prompts."""
FEWER = ("training.max_steps=3",)
WRITTEN = 12
"""Captions that the reader writes, of 16 pictures; a model writes the others."""


class Reader(Runner):
    """Does what the tutorial says, with a small model, in a folder that has photographs."""

    def run_text(self, content: str) -> None:
        """A caption; most of the other photographs get ones like it."""
        images = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
        for number, coarse in enumerate(images):
            big = Image.fromarray(coarse).resize((40, 30), Image.Resampling.NEAREST)
            big.save(f"photos/cat-{number}.jpg")
            text = content if number == 0 else f"cat number {number} on a chair"
            if number < WRITTEN:
                Path(f"photos/cat-{number}.txt").write_text(text, encoding="utf-8")

    def run_yaml(self, content: str) -> None:
        first, _, _ = content.partition("\n")
        Path(first.removeprefix("# ")).write_text(content, encoding="utf-8")
        self.told.configs.append(load_config(yaml.safe_load(content)))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Told, Any]]:
    folder = tmp_path_factory.mktemp("tutorial")
    blip = tiny_blip(tmp_path_factory.mktemp("blip"))
    config = (*SMALL, *FEWER, "data.train_split=0.6", "cache.folder=cache")
    autoencoder = ("autoencoder.max_steps=2", "autoencoder.crop=8", "autoencoder.base_channels=8")
    quick = {
        "caption": ("--model", str(blip), "--max_new_tokens", "6", "--device", "cpu"),
        "train": config,
        "doctor": config,
        "estimate": config,
        "train-autoencoder": (*config, *autoencoder),
        "sweep": ("--costs", "2", "--pictures", "4", "--device", "cpu"),
        "generate": ("--device", "cpu"),
        "play": ("--device", "cpu", "--port", "0"),
    }
    with pytest.MonkeyPatch.context() as patch, recording_hub("your-username") as hub:
        as_the_hub(hub, patch, tmp_path_factory.mktemp("hub"))
        patch.chdir(folder)
        patch.setattr(throughput, "matmul_peak", lambda device, dtype: 1e12)
        measure_here(patch)
        visit_pages(patch, folder / "played.html")
        patch.setattr(devices, "why_not_compile", lambda device: None)
        runner = Reader(folder, quick)
        for block in blocks_of((ROOT / LANGUAGES[0]).read_text(encoding="utf-8")):
            runner.run([block])
            if block.heading.startswith("9."):
                shutil.copytree("outputs/cats", "after-9")
        yield runner.told, hub


def test_every_block_runs_in_its_order(told: tuple[Told, Any]) -> None:
    ran, _ = told
    blocks: list[Block] = blocks_of((ROOT / LANGUAGES[0]).read_text(encoding="utf-8"))
    assert ran.blocks == len(blocks) > 12
    names = [words[1] for words in ran.commands if words[0] == "limner"]
    assert list(dict.fromkeys(names)) == [
        *("caption", "check-data", "doctor", "estimate", "train", "report", "generate", "play"),
        *("evaluate", "sweep", "export", "publish", "train-autoencoder"),
    ]
    headings = [block.heading for block in blocks if block.heading[0].isdigit()]
    assert [h.partition(".")[0] for h in dict.fromkeys(headings)] == [
        str(n) for n in range(1, 15) if n != 8
    ]


def test_each_step_leaves_what_it_says(told: tuple[Told, Any]) -> None:
    ran, hub = told
    folder = ran.folder
    (shown,) = ran.configs
    assert shown.training.num_epochs == 200
    assert f"{16 - WRITTEN} captions written, {WRITTEN} kept, 0 pictures could" in ran.printed
    assert "16 rows checked" in ran.printed
    assert (folder / "outputs" / "cats" / "check" / "check.html").is_file()
    assert "16 pictures with captions" in ran.printed
    assert "at its peak" in ran.printed
    run = folder / "outputs" / "cats"
    for name in ("previews", "log.jsonl", "report.html", "tensorboard"):
        assert (run / name).exists()
    assert newest_checkpoint(run).name == "checkpoint-3"
    assert any("16 pictures" in m or "pictures for training" in m for m in messages(run))
    for name in ("output.png", "nine-0.png", "nine-8.png", "nine-sheet.png", "black.png"):
        assert (folder / name).is_file()
    assert (run / "evaluation" / "evaluation.html").is_file()
    assert (newest_checkpoint(run) / "sweep.json").is_file()
    assert (folder / "cats.safetensors").stat().st_size > 10_000
    assert (folder / "cats-for-diffusers" / "model_index.json").is_file()
    assert hub.files.keys() == {"your-username/cats"}
    card = hub.files["your-username/cats"]["README.md"].decode()
    assert "my own photographs" in card
    assert (folder / "vae" / "config.json").is_file()
    larger = load_config(newest_checkpoint(folder / "outputs" / "cats-256") / "config.yaml")
    assert larger.vae.fingerprint is not None


def test_both_languages_say_the_same_in_the_same_order() -> None:
    english, chinese = (shape_of((ROOT / name).read_text(encoding="utf-8")) for name in LANGUAGES)
    assert english == chinese


def test_what_the_run_is_said_to_say_it_says() -> None:
    """The words in the table are those of the program."""
    source = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "src").rglob("*.py"))
    text = (ROOT / LANGUAGES[0]).read_text(encoding="utf-8").partition("## 8.")[2]
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == "the run says"
    for said in rows[1:]:
        assert said in source, said
