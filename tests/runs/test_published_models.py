"""A published model by its id: drawn from, measured, and trained on, through the real client."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import made_up_checkpoint, made_up_in_latents
from recording_hub import Recorded, point_client_at
from tiny import TINY

from limner import ImageGenerator, Trainer
from limner.apps.publishing.export import export
from limner.apps.publishing.upload import publish
from limner.checkpoint.find_model import find_model
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.inherit import load_run_config
from limner.cli import main
from limner.config import Config
from limner.errors import LimnerError
from limner.evaluation.evaluate import evaluate

RUN = [
    line
    for line in TINY
    if not line.startswith(("model.", "text_encoder.", "training.max_steps", "data.image_size"))
]
"""Settings of a short run that say nothing about the model."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_checkpoint(tmp_path_factory.mktemp("made") / "checkpoint")


@pytest.fixture
def published(hub: Recorded, checkpoint: Path) -> Recorded:
    publish(checkpoint, "me/tiny")
    hub.requests.clear()
    return hub


def drawn(model: str | Path, **options: Path) -> np.ndarray:
    generator = ImageGenerator(model, device="cpu", **options)
    return np.array(generator.generate("a circle", seed=1, guidance_scale=2.0))


def tuned(tmp_path: Path, *overrides: str) -> Config:
    output = f"training.output_dir='{tmp_path / 'tuned'}'"
    return load_run_config(None, [*RUN, "training.max_steps=1", output, *overrides])


def downloaded(hub: Recorded) -> set[str]:
    places = {request.split()[1] for request in hub.requests if "/resolve/" in request}
    return {place.split("/resolve/")[1].partition("/")[2] for place in places}


# Drawing


def test_it_draws_as_the_checkpoint_does_and_no_code_is_downloaded(
    published: Recorded, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = drawn(checkpoint)
    assert np.array_equal(drawn("me/tiny"), here)
    assert downloaded(published) == {"limner.safetensors"}
    point_client_at("http://127.0.0.1:9", tmp_path / "hub", monkeypatch)  # nobody answers there
    assert np.array_equal(drawn("me/tiny"), here)
    assert main(["generate", "me/tiny", "a circle", "--output", str(tmp_path / "circle.png")]) == 0
    assert (tmp_path / "circle.png").is_file()


def test_a_revision_may_be_chosen(published: Recorded) -> None:
    find_model("me/tiny@v1")
    assert any("/revision/v1" in request for request in published.requests)
    with pytest.raises(LimnerError, match=r"'me/tiny' was not found.* no revision 'v2'"):
        find_model("me/tiny@v2")


def test_a_checkpoint_uploaded_as_it_is_is_a_model_too(hub: Recorded, checkpoint: Path) -> None:
    from huggingface_hub import HfApi

    HfApi().create_repo("me/raw")
    HfApi().upload_folder(folder_path=checkpoint, repo_id="me/raw")
    assert np.array_equal(drawn("me/raw"), drawn(checkpoint))


def test_a_published_folder_is_drawn_from_by_its_name(
    published: Recorded, checkpoint: Path, tmp_path: Path
) -> None:
    for name, content in published.files["me/tiny"].items():
        (tmp_path / "brought" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "brought" / name).write_bytes(content)
    assert np.array_equal(drawn(tmp_path / "brought"), drawn(checkpoint))


def test_the_checkpoints_of_a_run_go_before_an_export_among_them(
    checkpoint: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(checkpoint, run / "checkpoint-3")
    export(checkpoint, run / "limner.safetensors")
    assert find_model(run) == run
    export(checkpoint, run / "checkpoint-3" / "limner.safetensors")
    assert find_model(run / "checkpoint-3") == run / "checkpoint-3"


def test_a_guide_may_be_an_exported_file(checkpoint: Path, tmp_path: Path) -> None:
    weaker = made_up_checkpoint(tmp_path / "weaker", "model.num_layers=1")
    file = export(weaker, tmp_path / "weaker.safetensors")
    by_file = drawn(checkpoint, guide=file)
    assert np.array_equal(by_file, drawn(checkpoint, guide=weaker))
    assert not np.array_equal(by_file, drawn(checkpoint))


def test_pretrained_parts_come_along(hub: Recorded, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    checkpoint = made_up_in_latents(tmp_path / "checkpoint", parts)
    there = drawn(checkpoint).astype(int)
    publish(checkpoint, "me/latents")
    hub.requests.clear()
    shutil.rmtree(parts)
    assert np.abs(drawn("me/latents") - there).max() <= 1
    found = downloaded(hub)
    assert {"limner.safetensors", "vae/config.json", "text_encoder/config.json"} < found
    assert not [name for name in found if name.startswith(("transformer", "samples", "pipeline"))]
    # They are what a run that starts from it learns with.
    trainer = Trainer(tuned(tmp_path, "training.init_from=me/latents", "data.image_size=32"))
    assert trainer.config.vae.fingerprint == Checkpoint.open(checkpoint).config.vae.fingerprint
    trainer.train()


# Going on from it


def test_a_run_starts_from_it_and_goes_on_without_it(
    published: Recorded,
    checkpoint: Path,
    tmp_path: Path,
    quick_end: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = "data.image_size=16"
    trainer = Trainer(tuned(tmp_path, "training.init_from=me/tiny", size))
    for name, tensor in Checkpoint.open(checkpoint).tensors().items():
        assert torch.equal(trainer.model.state_dict()[name], tensor), name
    trainer.train()
    shutil.rmtree(tmp_path / "hub")
    point_client_at("http://127.0.0.1:9", tmp_path / "hub", monkeypatch)
    again = tuned(tmp_path, "training.init_from=me/tiny", size, "training.max_steps=2")
    trainer = Trainer(again, resume="latest")
    trainer.train()
    assert trainer.state.step == 2


def test_an_evaluation_of_it_is_written_here(
    published: Recorded, tmp_path: Path, quick_end: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["evaluation.num_images=4", "evaluation.efficientnet=false"]
    found = evaluate("me/tiny@v1", few, device="cpu")
    assert found.folder == Path("tiny-evaluation")
    assert (found.folder / "evaluation.json").is_file()


# What goes wrong


def test_a_mistyped_run_is_not_asked_of_the_hub_beside_other_runs(
    published: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    for name in ("outputs/demo", "demo", "./outputs/demo", "a/b/c", "/no/model", "x/y.safetensors"):
        assert find_model(name) == Path(name)
        with pytest.raises(LimnerError, match="no checkpoint at"):
            ImageGenerator(name)
        with pytest.raises(LimnerError, match=r"training\.init_from: no model found at"):
            tuned(tmp_path, f"training.init_from={name}")
    assert published.requests == []


def test_what_is_nowhere_is_told_in_one_message(published: Recorded, tmp_path: Path) -> None:
    with pytest.raises(LimnerError) as error:
        ImageGenerator("me/mistyped")
    said = str(error.value)
    assert said.startswith("'me/mistyped' was not found. There is no folder at")
    assert f"{published.address}/me/mistyped: there is no such repository" in said
    assert "a run folder (outputs/demo), one of its checkpoints" in said
    with pytest.raises(LimnerError, match=r"training\.init_from: 'me/mistyped' was not found"):
        tuned(tmp_path, "training.init_from=me/mistyped")


@pytest.mark.parametrize("content", [b"no weights", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_repository_of_something_else_is_refused(hub: Recorded, content: bytes) -> None:
    hub.files["me/other"] = {"limner.safetensors": content}
    with pytest.raises(LimnerError, match="was not written by limner export"):
        ImageGenerator("me/other")
    hub.files["me/another"] = {"model.safetensors": content}
    with pytest.raises(LimnerError, match="'me/another' is on the Hub, but is not a Limner model"):
        ImageGenerator("me/another")
