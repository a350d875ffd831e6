"""Kill the commands that write something at random moments, as kills.py does with training.

    python tests/faults/kills.py --command train-autoencoder --kills 20

Whatever the moment, what was there before is there and whole, or the new result is; and the same
command, started again, ends with the bytes of one that was left alone. A command that has come to
its end is started anew over the earlier result, until it was killed as often as asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from limner.checkpoint.locate import checkpoints
from limner.checkpoint.manifest import damage
from limner.cli import main
from limner.files.atomic import is_staging
from limner.training import precompute

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from captioners import tiny_blip
from pretrained import tiny_autoencoder
from processes import fork_context, none_left
from tiny import TINY

IMPORTED = (
    *("limner.apps.autoencoder.train", "limner.apps.captioning.captioner"),
    "limner.apps.publishing.export",
    *("diffusers.models.autoencoders.autoencoder_kl", "transformers.models.blip.modeling_blip"),
    *("transformers.models.blip.processing_blip", "transformers.models.auto.processing_auto"),
    *("transformers.pipelines", "diffusers.pipelines.pipeline_utils"),
)
"""What the commands import when they need it."""
State = dict[str, str]
"""{file below the result: its digest}; {}: there is no result."""


@dataclass(frozen=True)
class Command:
    """One that is killed.

    Attributes:
        words: of the command line, for the folder (or file) that is written.
        earlier: the words that made what it replaces, or None.
        inputs: makes what the words name, in a folder.
        grows: its result is filled file by file, each of which is whole; else it is all or nothing.
    """

    words: Callable[[Path, Path], list[str]]
    inputs: Callable[[Path], None]
    earlier: Callable[[Path, Path], list[str]] | None = None
    grows: bool = False


def shapes(folder: Path, *settings: str) -> list[str]:
    return [word for word in TINY if not word.startswith("data.num_samples")] + list(settings)


def trained(folder: Path) -> None:
    """A run of a moment."""
    settings = [*TINY, "training.max_steps=1", f"training.output_dir='{folder / 'run'}'"]
    assert main(["train", *settings]) == 0


def drawn(folder: Path) -> None:
    """Pictures with captions."""
    words = ["--input", str(folder / "set"), "--output", str(folder / "pictures"), "--to", "pairs"]
    from limner.config import load_config
    from limner.data.open import open_image_dataset

    images = open_image_dataset(load_config(None, [*TINY, "data.num_samples=60"]))
    (folder / "set").mkdir(parents=True)
    from PIL import Image

    for number, row in enumerate(images.rows[:60]):
        Image.fromarray(images.load(row, 64)).save(folder / "set" / f"{number:03d}.png")
        (folder / "set" / f"{number:03d}.txt").write_text(row.captions[0], "utf-8")
    assert main(["prepare", *words]) == 0


def captioned(folder: Path) -> None:
    drawn(folder)
    tiny_blip(folder / "model")


def encoder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tiny_autoencoder(folder / "vae")


def autoencoder(seed: int) -> Callable[[Path, Path], list[str]]:
    def words(made: Path, output: Path) -> list[str]:
        settings = ["data.image_size=32", "autoencoder.base_channels=8", "autoencoder.crop=32"]
        settings += ["autoencoder.batch_size=4", "autoencoder.max_steps=12"]
        settings += ["autoencoder.max_minutes=60", "training.save_steps=3", f"training.seed={seed}"]
        return ["train-autoencoder", "--output", str(output), *TINY, *settings]

    return words


def exported(weights: str) -> Callable[[Path, Path], list[str]]:
    def words(made: Path, output: Path) -> list[str]:
        place = ["--output", str(output), "--format", "diffusers", "--weights", weights]
        return ["export", str(made / "run"), *place]

    return words


def prepared(made: Path, output: Path) -> list[str]:
    place = ["--input", str(made / "pictures"), "--output", str(output)]
    return ["prepare", *place, "--to", "webdataset", "--shard_size", "20"]


def captioning(made: Path, output: Path) -> list[str]:
    if not output.exists():  # pictures of which the first ten have captions
        shutil.copytree(made / "pictures", output)
        for path in sorted(output.glob("*.txt"))[10:]:
            path.unlink()
    return ["caption", str(output), "--model", str(made / "model"), "--batch_size", "4",
            "--max_new_tokens", "4", "--device", "cpu"]  # fmt: skip


def precomputed(made: Path, output: Path) -> list[str]:
    settings = ["data.image_size=32", "model.patch_size=2", "data.num_samples=96"]
    settings += [f"vae.pretrained_model_name='{made / 'vae'}'", f"cache.folder='{output}'"]
    return ["precompute", *TINY, *settings]


COMMANDS = {
    "train-autoencoder": Command(autoencoder(0), lambda folder: None, autoencoder(1)),
    "prepare": Command(prepared, drawn),
    "precompute": Command(precomputed, encoder, grows=True),
    "export": Command(exported("averaged"), trained, exported("last")),
    "caption": Command(captioning, captioned, grows=True),
}


def start(words: list[str]) -> BaseProcess:
    context = fork_context("kills_of_commands", *IMPORTED)
    life = context.Process(target=live, args=(words,))
    life.start()
    return life


def live(words: list[str]) -> None:
    torch.set_num_threads(1)
    precompute.MOST_ROWS = 32  # several shards
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        code = main(words)
    os._exit(code)


def to_its_end(words: list[str]) -> float:
    """Run it; the seconds that took."""
    began = time.monotonic()
    life = start(words)
    with none_left(life):
        life.join()
    if life.exitcode != 0:
        raise SystemExit(f"{words[0]} ended with {life.exitcode}")
    return time.monotonic() - began


def state_of(result: Path) -> State:
    """What is there under its name or, for the moment of two renames, set aside for it."""
    if not result.exists():
        aside = [p for p in result.parent.glob(f".{result.name}.*.old") if is_staging(p.name)]
        result = aside[0] if aside else result
    found = {}
    for path in sorted(result.rglob("*")):
        name = path.relative_to(result).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            found[name] = digest(path)
    return {name: d for name, d in found.items() if not name.endswith(PASSING)}


PASSING = (".lock", ".partial", "contents.npy")
"""Ends of names that only a command that is at it needs; what is remembered of files has times."""


def digest(path: Path) -> str:
    data = path.read_bytes()
    if path.name == "results.json":
        data = json.dumps(json.loads(data) | {"minutes": 0}).encode()
    if path.suffix == ".safetensors" and len(data) > 8:
        # The library writes the entries of a header in an order that is another every time.
        size = int.from_bytes(data[:8], "little")
        data = (
            json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True).encode() + data[8 + size :]
        )
    return hashlib.sha256(data).hexdigest()


def wrong(now: State, before: State, new: State, grows: bool) -> str | None:
    """What is neither as it was before nor as it will be."""
    if not grows:
        return None if now in (before, new) else f"is neither the earlier nor the new: {list(now)}"
    if lost := before.keys() - now.keys():
        return f"lost {sorted(lost)}"
    differs = [
        name for name, found in now.items() if found not in (before.get(name), new.get(name))
    ]
    return f"differs: {differs}" if differs else None


def staged(folder: Path) -> list[Path]:
    """What is half-written, at any depth."""
    # os.walk, and not Path.rglob: what a living process takes away meanwhile is passed over.
    return [
        Path(place) / name
        for place, folders, files in os.walk(folder)
        for name in (*folders, *files)
        if is_staging(name)
    ]


def harness(folder: Path, name: str, kills: int, seed: int) -> dict[str, Any]:
    command, choose = COMMANDS[name], random.Random(seed)
    start(["completion", "bash"]).join()  # the process that forks all others is there by now
    made, whole, broken = folder / "made", folder / "whole" / "it", folder / "broken" / "it"
    command.inputs(made)
    for place in (whole, broken):
        place.parent.mkdir(parents=True)
    if command.earlier:
        to_its_end(command.earlier(made, whole))
        shutil.copytree(whole, broken)
    words = command.words(made, broken)  # may put something there
    before = state_of(broken)
    seconds = to_its_end(command.words(made, whole))
    new = state_of(whole)
    if new == before or not new:
        raise SystemExit(f"{name} made nothing new")
    kept = folder / "kept"
    if broken.exists():
        shutil.copytree(broken, kept)
    found: dict[str, Any] = {"kills": 0, "while writing": 0, "with the new result": 0}
    found |= {"lives to the end": 0, "wrong": []}
    began, aimed_at = time.monotonic(), broken.parent
    while found["kills"] < kills:
        aimed, earlier = choose.random() < 0.5, set(staged(aimed_at))
        deadline = time.monotonic() + choose.uniform(0.05, seconds)
        life = start(words)
        with none_left(life):
            while life.is_alive() and (aimed or time.monotonic() < deadline):
                if aimed and set(staged(aimed_at)) - earlier:  # half of them while it writes
                    time.sleep(choose.uniform(0, choose.choice((0.02, seconds / 2))))
                    break
                time.sleep(0.001)
        now = state_of(broken)
        if reason := wrong(now, before, new, command.grows):
            found["wrong"].append(reason)
        for path in checkpoints(broken.with_name("it-unfinished")):
            if reason := damage(path):
                found["wrong"].append(f"{path.name}: {reason}")
        if life.exitcode == 0:  # it was done before it could be killed: once more
            found["lives to the end"] += 1
            found["wrong"] += [] if now == new else ["another result at its end"]
            shutil.rmtree(broken.parent)
            broken.parent.mkdir()
            if kept.exists():
                shutil.copytree(kept, broken)
            continue
        found["kills"] += 1
        found["while writing"] += bool(set(staged(aimed_at)) - earlier)
        found["with the new result"] += now == new
    to_its_end(words)
    return {
        "command": name,
        **found,
        "seconds uninterrupted": round(seconds, 1),
        "seconds with kills": round(time.monotonic() - began, 1),
        "different": [] if state_of(broken) == new else ["the result"],
        "left behind": [path.name for path in staged(aimed_at)],
    }
