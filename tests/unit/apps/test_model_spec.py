"""What an exported file tells the programs that manage models."""

import base64
import hashlib
import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import made_up_checkpoint
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from limner.apps.publishing.export import export
from limner.apps.publishing.model_spec import MOST_CHARACTERS, SIDE, data_url
from limner.checkpoint.single_file import WeightsFile

COLOURS = {"trained": (255, 0, 0), "held out": (0, 255, 0), "free": (0, 0, 255)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_checkpoint(tmp_path_factory.mktemp("made") / "checkpoint")


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path) -> Path:
    """A finished run of that checkpoint, with a sample of each split."""
    folder = tmp_path / "alices-cats"
    shutil.copytree(checkpoint, folder / "checkpoint-3")
    (folder / "samples").mkdir()
    samples = []
    for number, (split, colour) in enumerate(COLOURS.items()):
        name = f"samples/{number:03d}.png"
        Image.new("RGB", (16, 16), colour).save(folder / name)
        samples.append({"prompt": f"a {split} one", "seed": 0, "file": name, "split": split})
    (folder / "samples.json").write_text(json.dumps(samples), "utf-8")
    (folder / "results.json").write_text(json.dumps({"steps": 3}), "utf-8")
    return folder


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(file, "np") as opened:
        return opened.metadata()


def decoded(url: str) -> Image.Image:
    kind, _, content = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(BytesIO(base64.b64decode(content)))


def colour_of(url: str) -> str:
    red, green, blue = np.asarray(decoded(url)).reshape(-1, 3).mean(axis=0)
    return max((red, "trained"), (green, "held out"), (blue, "free"))[1]


def make_private(run: Path) -> None:
    config = run / "checkpoint-3" / "config.yaml"
    text = config.read_text("utf-8")
    config.write_text(text.replace("dataset_name: shapes", "dataset_name: null"), "utf-8")


def test_a_file_says_what_it_is(run: Path, tmp_path: Path) -> None:
    file = export(run, tmp_path / "apple-painter.safetensors")
    found = metadata_of(file)
    for key, text in {
        "sai_model_spec": "1.0.1",
        "architecture": "limner-modern",
        "implementation": "limner",
        "title": "apple-painter",
        "license": "apache-2.0",
        "resolution": "16x16",
        "prediction_type": "velocity",
        "usage_hint": "dpmsolver++, 2 steps, guidance 3",
    }.items():
        assert found[f"modelspec.{key}"] == text
    content = file.read_bytes()
    behind = 8 + int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(content[behind:]).hexdigest()
    assert found["modelspec.hash_sha256"] == f"0x{digest}"
    assert "trained with Limner on shapes" in found["modelspec.description"]
    assert "contain no third-party artwork" in found["modelspec.description"]
    assert "modelspec.author" not in found, "nobody said who"
    about = " ".join(text for key, text in found.items() if key.startswith("modelspec."))
    for private in (str(tmp_path), "alices-cats", "a free one"):
        assert private not in about


def test_the_same_model_is_the_same_file(run: Path, tmp_path: Path) -> None:
    first = export(run, tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").unlink()
    assert export(run, tmp_path / "a.safetensors").read_bytes() == first


def test_its_thumbnail_is_a_picture_of_the_run(run: Path, tmp_path: Path) -> None:
    url = metadata_of(export(run, tmp_path / "a.safetensors"))["modelspec.thumbnail"]
    assert colour_of(url) == "free"
    assert decoded(url).size == (16, 16)


def test_pictures_of_other_weights_are_no_thumbnail(run: Path, tmp_path: Path) -> None:
    for results in ({"steps": 4}, {"steps": "many"}, {}):
        (run / "results.json").write_text(json.dumps(results), "utf-8")
        file = export(run, tmp_path / "a.safetensors")
        assert "modelspec.thumbnail" not in metadata_of(file)


def test_a_private_set_is_not_shown(run: Path, tmp_path: Path) -> None:
    make_private(run)
    samples = json.loads((run / "samples.json").read_text("utf-8"))
    for left, shown in ((samples, "free"), (samples[:2], "held out"), (samples[:1], None)):
        (run / "samples.json").write_text(json.dumps(left), "utf-8")
        found = metadata_of(export(run, tmp_path / "a.safetensors"))
        url = found.get("modelspec.thumbnail")
        assert (url and colour_of(url)) == shown, "never one of a prompt that it was trained on"
        assert "a private data set" in found["modelspec.description"]
        assert "modelspec.license" not in found


def test_a_thumbnail_is_small_whatever_it_shows() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 600, 3), dtype=np.uint8)
    url = data_url(Image.fromarray(noise))
    assert url is not None
    assert len(url) <= MOST_CHARACTERS
    assert decoded(url).size == (SIDE, SIDE // 2)


def test_what_other_programs_write_there_is_kept(run: Path, tmp_path: Path) -> None:
    file = export(run, tmp_path / "a.safetensors")
    edited = tmp_path / "edited.safetensors"
    said = {"title": "My Painter", "author": "me", "trigger_phrase": "a b c", "resolution": "9x9"}
    metadata = metadata_of(file) | {f"modelspec.{key}": text for key, text in said.items()}
    save_file(load_file(file), edited, metadata)
    opened = WeightsFile.open(edited)  # not "damaged": nothing depends on these texts
    assert opened.model_spec["title"] == "My Painter"
    half = WeightsFile.open(export(edited, tmp_path / "half.safetensors", dtype="float16"))
    assert {key: half.model_spec[key] for key in said} == said | {"resolution": "16x16"}
    assert half.model_spec["thumbnail"] == WeightsFile.open(file).model_spec["thumbnail"]


def test_a_file_without_it_opens(run: Path, tmp_path: Path) -> None:
    file = export(run, tmp_path / "a.safetensors")
    old = {k: v for k, v in metadata_of(file).items() if not k.startswith("modelspec.")}
    save_file(load_file(file), tmp_path / "old.safetensors", old)
    opened = WeightsFile.open(tmp_path / "old.safetensors")
    assert opened.model_spec == {}
    assert opened.tensors().keys() == WeightsFile.open(file).tensors().keys()


@pytest.mark.parametrize(
    ("overrides", "architecture", "prediction"),
    [
        (["model.architecture=dit"], "limner-dit", "velocity"),
        (
            ["scheduler.objective=diffusion", "scheduler.prediction_type=v_prediction"],
            "limner-modern",
            "v",
        ),
    ],
)
def test_what_draws_otherwise_is_called_otherwise(
    tmp_path: Path, overrides: list[str], architecture: str, prediction: str
) -> None:
    checkpoint = made_up_checkpoint(tmp_path / "checkpoint", *overrides)
    found: dict[str, Any] = WeightsFile.open(export(checkpoint, tmp_path / "out")).model_spec
    assert found["architecture"] == architecture
    assert found["prediction_type"] == prediction
    assert found["title"] == "Limner 16 x 16, step 3", "a name that all files have is none"
