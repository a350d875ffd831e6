"""What is written does not come back as data: outputs stay out of the data's folder."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from photo_folders import Build, files, image, of, photos

from limner.apps.autoencoder.train import train_autoencoder
from limner.apps.check_data.check import check
from limner.apps.play.painter import Painter
from limner.apps.publishing.export import export
from limner.apps.publishing.upload import publish
from limner.cli import main
from limner.config import load_config
from limner.data import image_sizes, verify
from limner.data.convert.convert import prepare
from limner.data.formats.folders import FolderImages
from limner.data.open import open_data
from limner.data.own_folder import data_folder, keep_out_of_the_data
from limner.errors import LimnerError
from limner.evaluation.evaluate import evaluate
from limner.files.output_folders import output_around
from limner.training.precompute import check_cache_folder
from limner.training.trainer import Trainer

links = pytest.mark.skipif(os.name == "nt", reason="links need a right there")


@pytest.mark.parametrize(
    ("data", "output", "said"),
    [
        (
            ".",
            "run",
            "training.output_dir: run is inside the data folder (.), .*such as ../photos-run",
        ),
        (
            "../photos",
            "deep/er/run",
            "deep/er/run is inside the data folder (../photos), .*photos-run",
        ),
        (
            ".",
            ".",
            "training.output_dir: . is inside the data folder (.), .*such as ../photos-output",
        ),
        ("../link", "run", "run is inside the data folder (../link), .*such as ../photos-run"),
        (".", "../link/run", "../link/run is inside the data folder (.), .*such as ../photos-run"),
        (".", "..", "training.output_dir: .. contains the data (.), .*such as ../run"),
    ],
)
@links
def test_a_run_does_not_begin_among_its_data(
    data: str, output: str, said: str, tiny_config: Build, tmp_path: Path, monkeypatch
) -> None:
    photos(tmp_path / "photos")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "photos")
    before = files(tmp_path)
    pattern = said.replace("(", r"\(").replace(")", r"\)").replace("..", r"\.\.")
    with pytest.raises(LimnerError, match=pattern):
        Trainer(of(tiny_config, data, output))
    assert files(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "photos"]


@links
def test_nor_where_a_link_among_the_data_leads(tiny_config: Build, tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    photos(tmp_path / "disk" / "more")
    (tmp_path / "photos" / "deeper").mkdir()
    (tmp_path / "photos" / "deeper" / "link").symlink_to(tmp_path / "disk")
    out = tmp_path / "disk" / "run"
    config = of(tiny_config, tmp_path / "photos", out)
    with pytest.raises(LimnerError, match=r"run is inside the data folder \(.*deeper/link\)"):
        Trainer(config)
    with pytest.raises(
        LimnerError, match=r"--output: .*run is inside the data folder \(.*deeper/link\)"
    ):
        prepare("auto", tmp_path / "photos", out)
    with pytest.raises(
        LimnerError, match=r"--output: .*run is inside the data folder \(.*deeper/link\)"
    ):
        check(config, out)
    assert not out.exists()


def test_beside_a_table_that_is_named_itself_a_run_does_no_harm(
    tiny_config: Build, tmp_path: Path
) -> None:
    photos(tmp_path / "photos")
    table = tmp_path / "photos.csv"
    rows = [f"photos/{n}.png,picture {n}" for n in "abc"]
    table.write_text("\n".join(["file_name,text", *rows]), encoding="utf-8")
    Trainer(of(tiny_config, table, tmp_path / "run"))
    with pytest.raises(LimnerError, match="is inside the data"):
        Trainer(of(tiny_config, tmp_path, tmp_path / "run"))


def test_a_run_that_began_among_its_data_goes_on_without_its_own_pictures(
    tiny_config: Build, tmp_path: Path
) -> None:
    """As earlier versions let it begin."""
    photos(tmp_path / "photos")
    run = tmp_path / "photos" / "run"
    Trainer(of(tiny_config, tmp_path / "photos", tmp_path / "run")).train()
    shutil.move(tmp_path / "run", run)
    image().save(run / "previews.png")
    (run / "previews.txt").write_text("a preview", encoding="utf-8")
    trainer = Trainer(of(tiny_config, tmp_path / "photos", run, "training.max_steps=7"), "latest")
    assert {row.key for row in trainer.data.set.rows} == {"a.png", "b.png", "c.png"}
    assert "Skipped: run (a training run written by Limner)." in trainer.data.set.description


@pytest.mark.parametrize(
    "names",
    [(".limner-train.lock",), ("problems.jsonl", "pictures/a.jpg")],
)
def test_what_a_killed_command_left_is_no_data_either(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    photos(tmp_path / "photos")
    photos(tmp_path / "photos" / "left" / "pictures")
    for name in names:
        (tmp_path / "photos" / "left" / name).touch()
    assert len(FolderImages(tmp_path / "photos").rows) == 3


@pytest.mark.parametrize("name", ["previews", "samples", "evaluation/pictures", "check/pictures"])
def test_a_folder_that_a_run_made_is_no_data(name: str, tmp_path: Path) -> None:
    photos(tmp_path / "run" / name)
    photos(tmp_path / "run" / "mine")
    for ours in ("config.yaml", "log.jsonl"):
        (tmp_path / "run" / ours).touch()
    with pytest.raises(
        LimnerError, match="is part of a training run written by Limner, which is not"
    ):
        FolderImages(tmp_path / "run" / name)
    assert len(FolderImages(tmp_path / "run" / name, kind="folder").rows) == 3
    assert len(FolderImages(tmp_path / "run" / "mine").rows) == 3
    assert output_around(tmp_path) is None


def test_no_command_writes_into_the_data(
    tiny_config: Build, trained: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    photos(tmp_path / "photos")
    out = tmp_path / "photos" / "out"
    run = tmp_path / "run"
    shutil.copytree(trained / "outputs" / "checkpoint-6", run / "checkpoint-6")
    path = run / "checkpoint-6" / "config.yaml"
    config = of(tiny_config, tmp_path / "photos", run)
    path.write_text(config.to_yaml(), encoding="utf-8")
    before = files(tmp_path)
    commands: list[Callable[[], object]] = [
        lambda: prepare("auto", tmp_path / "photos", out),
        lambda: check(config, out),
        lambda: export(run, out),
        lambda: export(run, out, "diffusers"),
        lambda: publish(run, "a/b", dry_run=True, output=out),
        lambda: evaluate(run, output=out),
        lambda: train_autoencoder(config, out),
        lambda: Painter(run, out, device="cpu"),
    ]
    for command in commands:
        with pytest.raises(LimnerError, match=r"--output: .*out(/limner\.safetensors)? is inside"):
            command()
    assert main(["generate", str(run), "a", "--device", "cpu", "--output", f"{out}.png"]) == 2
    assert "out.png is inside the data" in capsys.readouterr().err
    assert files(tmp_path) == before


def test_nor_from_another_folder_than_the_run_began_in(
    tiny_config: Build, trained: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    photos(tmp_path / "photos")
    run = tmp_path / "runs" / "one"
    shutil.copytree(trained / "outputs" / "checkpoint-6", run / "checkpoint-6")
    config = of(tiny_config, "photos", "./runs/one")
    (run / "checkpoint-6" / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "photos")
    before = files(tmp_path)
    for model in (Path("../runs/one"), run / "checkpoint-6", run / "checkpoint-6" / "model.pt"):
        for command in (
            lambda model=model: export(model, "out.safetensors"),
            lambda model=model: evaluate(model, output=Path("out")),
            lambda model=model: publish(model, "a/b", dry_run=True, output=Path("out")),
            lambda model=model: Painter(model, Path("out"), device="cpu"),
        ):
            with pytest.raises(LimnerError, match=r"--output: out.* is inside the data"):
                command()
        assert main(["generate", str(model), "a", "--device=cpu", "--output=out.png"]) == 2
        assert "out.png is inside the data" in capsys.readouterr().err
    assert files(tmp_path) == before


def test_a_cache_does_not_begin_among_the_data(tiny_config: Build, tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    folder = tmp_path / "photos" / "cache"
    config = of(tiny_config, tmp_path / "photos", tmp_path / "run", f"cache.folder='{folder}'")
    check_cache_folder(config)  # nothing is to be stored
    vae = config.vae.model_copy(update={"fingerprint": "0" * 32})
    config = config.model_copy(update={"vae": vae})
    with pytest.raises(LimnerError, match=r"cache\.folder: .*cache is inside the data"):
        check_cache_folder(config)
    folder.mkdir()
    check_cache_folder(config)


def test_what_is_remembered_of_data_does_not_begin_among_them(
    tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (verify, image_sizes):
        monkeypatch.setattr(module, "REMEMBERED_FROM", 1)
        monkeypatch.setattr(verify, "RACY_NS", 0)
    photos(tmp_path / "photos")
    (tmp_path / "shards").mkdir()
    prepare("auto", tmp_path / "photos", tmp_path / "tars", to="webdataset")
    for tar in (tmp_path / "tars").glob("*.tar"):
        shutil.copy(tar, tmp_path / "shards")
    before = files(tmp_path)
    monkeypatch.chdir(tmp_path / "photos")
    config = of(tiny_config, ".", "../run", "cache.folder=cache", "data.buckets=auto")
    open_data(config)
    monkeypatch.chdir(tmp_path / "shards")
    config = of(tiny_config, ".", "../run", "cache.folder=cache")
    with pytest.raises(LimnerError, match=r"cache\.folder: cache is inside .* \.\./shards-cache"):
        check(config, tmp_path / "check")
    assert not list(tmp_path.rglob("cache"))
    assert before.items() <= files(tmp_path).items()
    open_data(of(tiny_config, ".", "../run", "cache.folder=../shards-cache"))
    Path("cache").mkdir()  # of an earlier release: it goes on
    open_data(config)


def test_which_data_lie_in_a_folder(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    table = tmp_path / "a.csv"
    table.touch()
    for data, wanted in (
        ({"dataset_path": str(tmp_path / "photos")}, tmp_path / "photos"),
        ({"dataset_path": str(tmp_path / "nowhere")}, None),
        ({"dataset_path": str(table)}, None),
        ({"dataset_path": str(tmp_path / "photos" / "*.tar")}, None),
        ({"dataset_path": "https://example.org/{0..3}.tar"}, None),
        ({"dataset_name": "shapes", "dataset_path": str(tmp_path / "photos")}, None),
        ({"dataset_name": "org/name", "dataset_path": str(tmp_path / "photos")}, None),
    ):
        assert data_folder(load_config({"data": data})) == wanted, data
    config = load_config({"data": {"dataset_path": str(tmp_path / "photos")}})
    keep_out_of_the_data(tmp_path / "photos-2", config, "--output")  # no part of the name
