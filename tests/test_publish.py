"""`limner publish` against a Hub on loopback that records what arrives."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from made_up import made_up_checkpoint
from PIL import Image
from pretrained import tiny_autoencoder, tiny_clip
from recording_hub import Recorded, recording_hub

from limner import ImageGenerator, Trainer
from limner.checkpoint import Checkpoint
from limner.cli import main
from limner.config import load_config
from limner.errors import LimnerError
from limner.evaluation.evaluate import evaluate
from limner.publishing.card import Facts, Sample, changed_settings, model_card, plain
from limner.publishing.export import without_paths
from limner.publishing.publish import Said, publish

TOKEN = "hf_" + "averysecrettoken" * 2
PIPELINE = {"README.md", "limner.safetensors", "manifest.json", "model_index.json", "pipeline.py"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    """What HF_ENDPOINT, HF_TOKEN and HF_HUB_DISABLE_XET do, which are read when it is imported."""
    from huggingface_hub import constants, hf_api

    with recording_hub() as recorded:
        monkeypatch.setattr(constants, "ENDPOINT", recorded.address)
        monkeypatch.setattr(hf_api.api, "endpoint", recorded.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield recorded


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_checkpoint(tmp_path_factory.mktemp("made") / "checkpoint")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


# The real command, as somebody runs it


def test_a_run_is_published_whole_and_the_token_stays_unseen(trained: Path, tmp_path: Path) -> None:
    with recording_hub() as hub:
        environment = dict(os.environ)
        environment |= {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONUTF8": "1"}
        kept = tmp_path / "kept"
        words = ["publish", str(trained / "outputs"), "--repo", "shapes", "--private"]
        words += ["--output", str(kept), "--log-level", "debug"]
        done = subprocess.run(
            [sys.executable, "-m", "limner", *words],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert hub.created == [
            {"name": "shapes", "organization": "someone", "visibility": "private"}
        ]
        assert hub.files.keys() == {"someone/shapes"}
        arrived = hub.files["someone/shapes"]
        assert arrived == files_of(kept)
        assert arrived.keys() > PIPELINE
        assert done.stdout.splitlines()[-1].startswith(f"{hub.address}/someone/shapes/commit/")
        assert hub.tokens == {TOKEN}
        for text in (done.stdout, done.stderr, *map(str, arrived.values())):
            assert TOKEN not in text
        assert not [
            p for p in tmp_path.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()
        ]
        assert str(tmp_path) not in str(arrived["README.md"])

        # And whoever finds it draws from it: with diffusers by its id, with Limner from the file.
        alone = (
            "import torch; from diffusers import DiffusionPipeline\n"
            "pipe = DiffusionPipeline.from_pretrained('someone/shapes', trust_remote_code=True)\n"
            "seed = torch.Generator().manual_seed(3)\n"
            "pipe('a small red circle', generator=seed).images[0].save('drawn.png')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", alone],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        downloaded = {r.split()[1].split("/", 5)[-1] for r in hub.requests if "/resolve/" in r}
        assert "limner.safetensors" not in downloaded, (
            "diffusers needs no second copy of the weights"
        )
    here = np.array(Image.open(tmp_path / "drawn.png")).astype(int)
    for source in (kept / "limner.safetensors", trained / "outputs"):
        there = ImageGenerator(source, device="cpu").generate("a small red circle", seed=3)
        assert np.abs(here - np.array(there)).max() <= 1


def test_the_card_is_made_from_the_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(trained / "outputs"), "--repo", "me/shapes", "--dry-run"]
    assert main(["publish", *words]) == 0
    listed, _, card = capsys.readouterr().out.partition("  bytes in all\n")
    assert {line.split()[1] for line in listed.splitlines() if len(line.split()) == 2} > PIPELINE
    assert front_matter(card.strip() + "\n") == {
        "license": "apache-2.0",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "diffusion-transformer", "limner", "modern"],
        "language": ["en"],
    }
    results = json.loads((trained / "outputs" / "results.json").read_text("utf-8"))
    samples = json.loads((trained / "outputs" / "samples.json").read_text("utf-8"))
    assert f"| parameters | {results['parameters']:,}, published in float32 |" in card
    assert "| updates | 6 |" in card
    assert "| pictures seen | 24 |" in card
    assert f"limner {results['versions']['limner']}" in card
    assert "| `model.hidden_size` | `64` |" in card
    assert "training.output_dir" not in card
    assert str(trained) not in card
    assert f"{samples[0]['prompt']} (trained, {samples[0]['seed']})" in card
    assert "Drawn with dpmsolver++, 2 steps, guidance 3, in float32." in card
    assert "trained prompts: 0.0% of 23 drawn fully right" in card
    assert 'DiffusionPipeline.from_pretrained("me/shapes", trust_remote_code=True)' in card
    assert "limner generate shapes/limner.safetensors" in card


def test_a_dry_run_sends_nothing(hub: Recorded, checkpoint: Path) -> None:
    lines: list[str] = []
    assert publish(checkpoint, "tiny", dry_run=True, say=lines.append) is None
    assert hub.requests == []
    assert "your-name/tiny" in lines[-1]


# What the card says, and what it does not


def facts(**changes: Any) -> Facts:
    values: dict[str, Any] = {
        "repo": "me/model", "config": load_config({"data": {"dataset_path": "/home/me/cats"}}),
        "parameters": 1000, "step": 5, "images": 20, "seconds": 61.0, "dtype": "float32",
        "weights_file": "limner.safetensors", "samples": [], "results": {}, "evaluation": {},
        "license": None, "data_name": None, "data_license": None,
    }  # fmt: skip
    return Facts(**values | changes)


def test_own_data_is_an_honest_blank_unless_said() -> None:
    described = {
        "dataset": {"description": "3 pictures with 3 captions from /home/me/cats (pairs)"}
    }
    card = model_card(facts(results=described))
    assert "license" not in front_matter(card)
    assert "The publisher has not said where these pictures and captions are from" in card
    assert "No licence was chosen for the model itself." in card
    assert "/home/me" not in card
    said = {"license": "mit", "data_name": "My cats", "data_license": "CC0-1.0"}
    card = model_card(facts(results=described, **said))
    assert front_matter(card)["license"] == "mit"
    assert "3 pictures with 3 captions from My cats" in card
    assert "My cats, licence: CC0-1.0." in card
    assert "has not said" not in card
    assert "Nothing was measured with these weights." in card
    assert "No pictures were kept" in card


def test_the_built_in_emoji_are_attributed() -> None:
    config = load_config({"data": {"dataset_name": "emoji", "languages": ["de", "fr"]}})
    card = model_card(facts(config=config))
    assert front_matter(card)["license"] == "cc-by-4.0"
    assert front_matter(card)["language"] == ["de", "fr"]
    for words in ("Twemoji", "Twitter, Inc and other contributors", "CC-BY 4.0", "Changes made"):
        assert words in card


def test_prompts_cannot_break_the_card() -> None:
    nasty = 'a | b` <img src=x onerror=y> [c](d) **e** "f" $(g)\n# h 猫'
    how = {"scheduler_type": "ddim", "num_inference_steps": 4, "guidance_scale": 1.0}
    card = model_card(facts(samples=[Sample("samples/0.png", nasty, 7, "free", how)]))
    rows = [line for line in card.splitlines() if "samples/0.png" in line or "(free, 7)" in line]
    assert [row.count("|") for row in rows] == [2, 2]
    assert "onerror" in card
    assert "<img src=x" not in card
    assert 'pipe("a red apple"' in card, (
        "what shells or Python would take apart is not shown as code"
    )
    assert plain("é猫 a-b, c.") == "é猫 a-b, c."


def test_measurements_are_shown_with_their_protocol() -> None:
    distance = {"value": 12.3456, "interval": [11.0, 13.5], "name": "FID", "slot": "inception"}
    distance |= {"metric": "Frechet distance", "better": "lower", "reference": {}}
    right = {"value": 0.5, "interval": None}
    evaluation = {
        "metrics": [distance],
        "recall": {"held_out": {"at_1": right, "at_5": right}},
        "protocol": {"drawn.pictures": 5000, "sampling.num_inference_steps": 20, "loss.count": 9},
    }
    card = model_card(facts(evaluation=evaluation))
    assert "| FID | 12.35 | 11 to 13.5 |" in card
    assert "| recall at 1, held-out captions | 0.5 |  |" in card
    assert "| drawn: pictures | 5000 |" in card
    assert "| sampling: num&#95;inference&#95;steps | 20 |" in card
    assert "loss: count" not in card


def test_only_an_evaluation_of_these_weights_is_in_the_card(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "outputs", tmp_path / "run")
    few = ["evaluation.num_images=4", "evaluation.efficientnet=false"]
    evaluate(run, few, device="cpu", say=lambda line: None)

    def card_of(checkpoint: Path) -> str:
        output = tmp_path / f"card-of-{checkpoint.name}"
        publish(checkpoint, "me/model", dry_run=True, output=output, say=lambda line: None)
        return (output / "README.md").read_text("utf-8")

    assert "measured by `limner evaluate`" in card_of(run / "checkpoint-6")
    assert "measured by `limner evaluate`" not in card_of(run / "checkpoint-3")


def test_the_recipe_is_what_differs_from_the_defaults() -> None:
    assert dict(changed_settings(load_config(None))) == {}
    changed = load_config(
        {
            "model": {"num_layers": 3},
            "training": {"num_workers": 7, "output_dir": "/secret"},
            "vae": {"pretrained_model_name": "/home/me/my-vae"},
            "text_encoder": {"pretrained_model_name": "google/t5-v1_1-base"},
            "evaluation": {"reference": "/home/me/photos", "num_images": 7},
        }
    )
    assert "/home/me/photos" not in without_paths(changed).to_yaml()
    found = dict(changed_settings(changed))
    assert found["model.num_layers"] == "3"
    assert found["vae.pretrained_model_name"] == "my-vae"
    assert found["text_encoder.pretrained_model_name"] == "google/t5-v1&#95;1-base"
    assert not {"training.num_workers", "training.output_dir"} & found.keys()
    assert not [key for key in found if key.startswith("evaluation.")]


def test_figures_of_another_checkpoint_are_left_out(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = trained / "outputs" / "checkpoint-3"
    lines: list[str] = []
    publish(older, "me/older", dry_run=True, say=lines.append, said=Said(prompts=("a circle",)))
    card = lines[-1]
    assert "| updates | 3 |" in card
    assert "Nothing was measured with these weights." in card
    assert "a circle (free, 0)" in card
    assert "(trained," not in card
    assert "is not about checkpoint-3" in caplog.text
    run = tmp_path / "run"
    shutil.copytree(trained / "outputs", run)
    stale = json.loads((run / "results.json").read_text("utf-8")) | {"steps": 2}
    (run / "results.json").write_text(json.dumps(stale), "utf-8")
    publish(run, "me/stale", dry_run=True, say=lines.append)
    assert "Nothing was measured with these weights." in lines[-1]


# Parts that come along


def test_pretrained_parts_come_along_and_are_found_beside_the_file(
    hub: Recorded, tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    checkpoint = made_up_checkpoint(
        tmp_path / "checkpoint",
        f"text_encoder.pretrained_model_name='{tiny_clip(parts / 'clip', whole=True)}'",
        "text_encoder.max_length=null",
        f"vae.pretrained_model_name='{tiny_autoencoder(parts / 'vae')}'",
        "data.image_size=32",
        "model.patch_size=2",
    )
    there = np.array(ImageGenerator(checkpoint, device="cpu").generate("a circle", seed=1))
    address = publish(checkpoint, "me/latents", output=tmp_path / "kept", say=lambda _: None)
    assert address == f"{hub.address}/me/latents/commit/{'0' * 40}"
    shutil.rmtree(parts)
    moved = (tmp_path / "kept").rename(tmp_path / "downloaded")
    assert files_of(moved) == hub.files["me/latents"]
    here = ImageGenerator(moved / "limner.safetensors", device="cpu").generate("a circle", seed=1)
    assert np.abs(np.array(here).astype(int) - there).max() <= 1
    (moved / "vae" / "config.json").write_text("{}", "utf-8")
    with pytest.raises(LimnerError, match="describes a None"):
        ImageGenerator(moved / "limner.safetensors", device="cpu")


# What goes wrong


@pytest.mark.parametrize(
    ("status", "said"), [(401, "you are not logged in"), (403, "hf auth login"), (500, "500")]
)
def test_a_refusal_is_told_without_the_token(
    hub: Recorded, checkpoint: Path, status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    hub.refuse = status
    with pytest.raises(LimnerError, match=said) as error:
        publish(checkpoint, "me/tiny", say=lambda _: None)
    assert hub.address in str(error.value)
    assert error.value.__suppress_context__

    def leak(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"request with Bearer {TOKEN} failed")

    monkeypatch.setattr(HfApi, "create_repo", leak)
    with pytest.raises(LimnerError, match=r"Bearer \*\*\* failed"):
        publish(checkpoint, "me/tiny", say=lambda _: None)


def test_a_wrong_name_is_told_before_anything_is_made(hub: Recorded, tmp_path: Path) -> None:
    with pytest.raises(LimnerError, match=r"--repo a b/c"):
        publish(tmp_path / "nothing", "a b/c")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(LimnerError, match="holds more than an earlier export"):
        publish(tmp_path / "nothing", "me/c", output=tmp_path / "mine")
    assert hub.requests == []


# As the FAQ has it


def test_a_saved_checkpoint_is_uploaded_as_the_faq_says(
    hub: Recorded, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    monkeypatch.chdir(tmp_path)
    trainer = Trainer(tiny_config("training.max_steps=1"))
    trainer.train()
    trainer.save_checkpoint("./outputs/final")
    api = HfApi()
    api.create_repo("your-username/dit-model")
    api.upload_folder(
        folder_path="./outputs/final",
        repo_id="your-username/dit-model",
    )
    arrived = hub.files["your-username/dit-model"]
    assert arrived == files_of(tmp_path / "outputs" / "final")
    assert {"model.pt", "ema.safetensors", "config.yaml", "tokenizer.json"} < arrived.keys()
    # What arrived is a checkpoint again.
    for name, content in arrived.items():
        (tmp_path / "back").mkdir(exist_ok=True)
        (tmp_path / "back" / name).write_bytes(content)
    assert Checkpoint.open(tmp_path / "back").state.step == 1
    ImageGenerator(tmp_path / "back", device="cpu").generate("a circle")
