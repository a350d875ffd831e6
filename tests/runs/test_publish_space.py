"""`limner publish --space`: the web page of a model as a Space, against a Hub on loopback."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up import made_up_checkpoint, made_up_in_latents
from recording_hub import Recorded

from limner.apps.publishing import space as spaces
from limner.apps.publishing.upload import Said, publish
from limner.checkpoint.single_file import WeightsFile
from limner.cli import main
from limner.errors import LimnerError

SPACE = "spaces/me/apple"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_checkpoint(tmp_path_factory.mktemp("made") / "checkpoint")


@pytest.fixture
def own(checkpoint: Path, tmp_path: Path) -> Path:
    """The same of private pictures."""
    folder = shutil.copytree(checkpoint, tmp_path / "own")
    values = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    values["data"] |= {"dataset_name": None, "dataset_path": "/srv/clients/gallinule-portraits"}
    values["training"]["preview_prompts"] = ["Aunt Zenobia"]
    (folder / "config.yaml").write_text(yaml.safe_dump(values), "utf-8")
    return folder


def front_matter(card: bytes) -> dict[str, Any]:
    return yaml.safe_load(card.decode().split("---\n")[1])


def about(page: bytes) -> dict[str, Any]:
    """What the page knows of its model: the only JSON object with these keys in it."""
    start = re.search(rb'\{"limner_version"', page)
    assert start is not None
    return json.JSONDecoder().raw_decode(page[start.start() :].decode())[0]


def test_the_page_is_a_static_space_and_each_names_the_other(
    hub: Recorded, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "limner")
    said = Said(prompts=("a small red circle",))
    address = publish(checkpoint, "me/apple", said=said, space="")
    assert address is not None
    assert address.startswith(f"{hub.address}/me/apple/commit/")
    assert f"the page is at {hub.address}/spaces/me/apple" in caplog.messages
    assert hub.files.keys() == {"me/apple", SPACE}
    assert [(one.get("type"), one.get("sdk")) for one in hub.created] == [
        (None, None),
        ("space", "static"),
    ]
    arrived = hub.files[SPACE]
    assert arrived.keys() == {"README.md", "index.html", "manifest.json"}
    head = front_matter(arrived["README.md"])
    assert head["sdk"] == "static"
    assert head["app_file"] == "index.html"
    assert head["license"] == "apache-2.0"
    assert head["models"] == ["me/apple"]
    text = arrived["README.md"].decode()
    assert "[me/apple](https://huggingface.co/me/apple)" in text
    assert "contain no third-party artwork" in text
    card = hub.files["me/apple"]["README.md"].decode()
    assert "(https://huggingface.co/spaces/me/apple)" in card
    page = about(arrived["index.html"])
    assert page["name"] == "apple"
    assert page["examples"] == ["a small red circle"]
    assert arrived["index.html"].startswith(b"<!doctype html>")


def test_the_page_draws_with_the_published_weights(
    hub: Recorded, checkpoint: Path, tmp_path: Path
) -> None:
    publish(checkpoint, "me/apple", space="", output=tmp_path / "kept")
    from limner.apps.web_page.build import web_page

    file = WeightsFile.open(tmp_path / "kept" / "limner.safetensors")
    page = hub.files[SPACE]["index.html"]
    assert page == web_page(file, "apple", about(page)["examples"]).html


def test_without_it_nothing_is_said_of_a_space(hub: Recorded, checkpoint: Path) -> None:
    publish(checkpoint, "me/apple")
    assert hub.files.keys() == {"me/apple"}
    assert b"spaces/" not in hub.files["me/apple"]["README.md"]


def test_a_space_may_have_a_name_of_its_own(
    hub: Recorded, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(checkpoint), "--repo", "me/apple", "--space", "draw"]) == 0
    assert hub.files.keys() == {"me/apple", "spaces/someone/draw"}
    assert b"huggingface.co/spaces/someone/draw)" in hub.files["me/apple"]["README.md"]
    with pytest.raises(LimnerError, match="--space a b/c"):
        publish(checkpoint, "me/apple", space="a b/c")


# What it cannot hold


@pytest.mark.parametrize("kind", ["latents", "dit"])
def test_a_model_without_a_page_is_refused_before_anything_is_sent(
    hub: Recorded, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "checkpoint"
    if kind == "latents":
        made_up_in_latents(folder, tmp_path / "parts")
    else:
        made_up_checkpoint(folder, "model.architecture=dit")
    with pytest.raises(LimnerError) as told:
        publish(folder, "apple", space="", output=tmp_path / "kept")
    if kind == "latents":
        assert "draws in latents" in str(told.value)
        assert "pretrained text encoder" in str(told.value)
    else:
        assert "model.architecture is dit" in str(told.value)
    assert "without --space" in str(told.value)
    assert hub.requests == []
    assert not (tmp_path / "kept").exists()


def test_a_model_too_large_for_a_page_is_refused_before_anything_is_sent(
    hub: Recorded, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limner.apps.web_page import build

    monkeypatch.setattr(build, "MOST_BYTES", 1000)
    with pytest.raises(LimnerError, match="more than a page can hold"):
        publish(checkpoint, "me/apple", space="")
    assert hub.requests == []


# What stays private


def test_what_is_withheld_from_the_model_is_withheld_from_the_space(
    hub: Recorded, own: Path
) -> None:
    publish(own, "me/apple", said=Said(prompts=("a circle",)), space="")
    assert about(hub.files[SPACE]["index.html"])["examples"] == ["a circle"]
    for name, content in hub.files[SPACE].items():
        for private in (b"gallinule", b"Zenobia", b"/srv/clients", str(own).encode()):
            assert private not in content, name
    text = hub.files[SPACE]["README.md"].decode()
    assert "not stated the source or the licence" in text
    assert "license" not in front_matter(hub.files[SPACE]["README.md"])


def test_the_space_is_searched_before_anything_is_sent(
    hub: Recorded, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spaces, "_examples", lambda *_: ["one of the gallinule-portraits"])
    with pytest.raises(LimnerError, match=r"index\.html.*'gallinule-portraits'"):
        publish(own, "me/apple", space="")
    assert hub.requests == []


@pytest.mark.parametrize("new", [True, False])
def test_the_space_of_a_private_model_is_private(
    hub: Recorded, checkpoint: Path, new: bool
) -> None:
    if not new:  # it was made private earlier, and nobody says so again
        hub.files["me/apple"] = {}
        hub.private.add("me/apple")
    publish(checkpoint, "me/apple", private=new, space="")
    assert hub.private == {"me/apple", SPACE}


def test_a_public_space_never_shows_a_private_model(hub: Recorded, checkpoint: Path) -> None:
    hub.files[SPACE] = {}
    with pytest.raises(LimnerError, match="exists and is public, but the model me/apple is pri"):
        publish(checkpoint, "me/apple", private=True, space="")
    assert hub.sent == []


def test_a_space_that_is_a_program_is_left_alone(
    hub: Recorded, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files[SPACE] = {"app.py": b"print()"}
    hub.sdk["spaces/me/apple"] = "gradio"
    with pytest.raises(LimnerError, match=r"is a program \(gradio\)"):
        publish(checkpoint, "me/apple", space="")
    assert hub.sent == []


# On this machine, and half-way


def test_a_dry_run_shows_both_and_sends_nothing(
    hub: Recorded, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "limner")
    kept = tmp_path / "kept"
    assert publish(checkpoint, "apple", dry_run=True, output=kept, space="") is None
    assert hub.requests == []
    assert "\nThe Space your-name/apple:" in caplog.messages
    assert any(line.endswith("  index.html") for line in caplog.messages)
    assert any("sdk: static" in line for line in caplog.messages)
    folder = tmp_path / "kept-space"
    assert {path.name for path in folder.iterdir()} == {"README.md", "index.html", "manifest.json"}
    assert (kept / "limner.safetensors").is_file()
    publish(checkpoint, "apple", dry_run=True, output=kept, space="")  # an earlier one is replaced
    (folder / "README.md").write_text("mine", "utf-8")
    with pytest.raises(LimnerError, match="kept-space already exists and is not an earlier Space"):
        publish(checkpoint, "apple", dry_run=True, output=kept, space="")
    assert (folder / "README.md").read_text("utf-8") == "mine"


def test_a_failure_half_way_says_what_is_there_and_goes_on_from_there(
    hub: Recorded, checkpoint: Path
) -> None:
    hub.refuse_commits = SPACE
    with pytest.raises(LimnerError) as told:
        publish(checkpoint, "me/apple", space="")
    assert "the Space me/apple was not published" in str(told.value)
    assert f"the model is at {hub.address}/me/apple/commit/" in str(told.value)
    assert "run the same command again" in str(told.value)
    assert hub.files[SPACE] == {}
    model = dict(hub.files["me/apple"])
    hub.refuse_commits = None
    publish(checkpoint, "me/apple", space="")
    assert "index.html" in hub.files[SPACE]
    assert hub.files["me/apple"] == model, "byte for byte, so that the Hub has no need of it"


def test_what_is_not_allowed_is_told_before_the_model_is_sent(
    hub: Recorded, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("Spaces are not for you")

    monkeypatch.setattr(HfApi, "space_info", refused)
    with pytest.raises(LimnerError, match=r"Spaces are not for you\nnothing was uploaded"):
        publish(checkpoint, "me/apple", space="")
    assert hub.sent == []
