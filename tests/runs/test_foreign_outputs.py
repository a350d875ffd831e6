"""No command replaces what somebody else wrote, and two of a kind do not write one output."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lock_holders import another_process
from photo_folders import photos, picture
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from limner.apps.autoencoder import train
from limner.apps.captioning.caption import caption_lock
from limner.apps.check_data.check import LOCK, check
from limner.apps.demo import PREVIEW_PROMPTS, remove_earlier
from limner.apps.play.painter import keep
from limner.apps.publishing.export import export, refuse_foreign
from limner.apps.sweep.store_settings import store_sampling
from limner.apps.sweep.sweep import sweep
from limner.cli import main
from limner.commands.generate import save_sheet
from limner.config import AutoencoderConfig, Config, load_config
from limner.data.convert.convert import prepare
from limner.errors import LimnerError
from limner.evaluation.end_of_run import _write as write_samples
from limner.evaluation.evaluate import evaluate
from limner.evaluation.results_folder import check_replaceable
from limner.evaluation.samples import Drawing
from limner.evaluation.splits import Split
from limner.files.fingerprints import load_array, save_array
from limner.files.output_folders import foreign_names
from limner.inference.saving import check_not_foreign, is_drawing, remember, save_all, save_picture


def in_folder(config: Config, folder: Path) -> Config:
    data = {"dataset_path": str(folder), "image_size": 16}
    training = {"output_dir": config.training.output_dir, "device": "cpu"}
    return load_config({"data": data, "training": training})


# ---- drawings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tiff"])
def test_a_drawing_is_replaced_and_a_photo_is_not(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    check_not_foreign([path])
    path.touch()
    check_not_foreign([path])
    save_picture(remember(picture(), {"prompt": "a"}), path)
    check_not_foreign([path])
    picture().save(path)
    with pytest.raises(LimnerError, match=rf"--output .*{name} is there already and is no drawing"):
        check_not_foreign([path])


def test_a_kind_that_says_nothing_of_itself_is_never_replaced(tmp_path: Path) -> None:
    save_picture(remember(picture(), {"prompt": "a"}), tmp_path / "a.bmp")
    assert not is_drawing(tmp_path / "a.bmp")
    (tmp_path / "b.png").write_text("no picture", encoding="utf-8")
    assert not is_drawing(tmp_path / "b.png")
    assert is_drawing(save_sheet(tmp_path / "c.png", [picture()], ["a"]))


def test_a_sheet_does_not_replace_what_came_while_it_was_drawn(tmp_path: Path) -> None:
    picture().save(tmp_path / "c-sheet.png")
    before = (tmp_path / "c-sheet.png").read_bytes()
    with pytest.raises(LimnerError, match=r"c-sheet\.png is there already and is no"):
        save_sheet(tmp_path / "c.png", [picture()], ["a"])
    assert (tmp_path / "c-sheet.png").read_bytes() == before


def test_generate_replaces_its_own_drawings_alone(trained: Path, tmp_path: Path, capsys) -> None:
    outputs = str(trained / "outputs")
    path = tmp_path / "apple.png"
    words = ["generate", outputs, "a", "--device", "cpu", "--output", str(path)]
    assert main(words) == 0
    assert main([*words, "--seed", "2"]) == 0
    picture().save(path)
    before = path.read_bytes()
    assert main(words) == 2
    assert "apple.png is there already and is no drawing of Limner's" in capsys.readouterr().err
    picture().save(tmp_path / "b-1.png")
    assert main([*words[:-1], str(tmp_path / "b.png"), "--num_images", "2"]) == 2
    assert "b-1.png is there already" in capsys.readouterr().err
    picture().save(tmp_path / "c-sheet.png")
    assert main([*words[:-1], str(tmp_path / "c.png"), "--sheet"]) == 2
    assert "c-sheet.png is there already" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["apple.png", "b-1.png", "c-sheet.png"]


def test_two_pages_that_keep_drawings_in_one_folder_lose_none(tmp_path: Path) -> None:
    picture().save(tmp_path / "apple-7.png")
    before = (tmp_path / "apple-7.png").read_bytes()
    drawn = remember(picture(), {"prompt": "apple", "seed": 7})
    assert [keep(drawn, tmp_path).name for _ in "ab"] == ["apple-7-2.png", "apple-7-3.png"]
    assert (tmp_path / "apple-7.png").read_bytes() == before


# ---- folders that are replaced as a whole ------------------------------------------------------


def test_what_nobody_would_miss_does_not_count_and_a_repository_does(tmp_path: Path) -> None:
    for name in (".DS_Store", ".gitkeep", "Thumbs.db", "._a.png", "ours.json"):
        (tmp_path / name).touch()
    assert foreign_names(tmp_path, ("ours.json",)) == []
    (tmp_path / ".git").mkdir()
    (tmp_path / "notes.txt").touch()
    assert foreign_names(tmp_path, ("ours.json",)) == [".git", "notes.txt"]
    assert foreign_names(tmp_path / "notes.txt") == ["notes.txt"]
    assert foreign_names(tmp_path / "nowhere") == []


def test_an_evaluation_does_not_replace_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(LimnerError, match=r"is no earlier evaluation \(it holds pictures\)"):
        check_replaceable(tmp_path)
    (tmp_path / "evaluation.json").touch()
    (tmp_path / ".DS_Store").touch()
    check_replaceable(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(LimnerError, match=r"it holds notes\.txt"):
        check_replaceable(tmp_path)
    (tmp_path / "notes.txt").unlink()
    for name in ("0001.png", "0001-truth.png", "near-0001.png"):
        (tmp_path / "pictures" / name).touch()
    check_replaceable(tmp_path)
    (tmp_path / "pictures" / "mine.png").touch()
    with pytest.raises(LimnerError, match=r"it holds pictures/mine\.png"):
        check_replaceable(tmp_path)


def test_what_people_keep_among_a_runs_samples_stays(tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    (samples / "best").mkdir(parents=True)
    for name in ("000.png", "000-truth.png", "mine.png", "best/000.png", "notes.txt"):
        (samples / name).write_text("earlier", encoding="utf-8")
    write_samples(tmp_path, {}, [Drawing("a", 0, Split.FREE, picture=picture())])
    found = {p.relative_to(samples).as_posix() for p in samples.rglob("*") if p.is_file()}
    assert found == {"000.png", "mine.png", "best/000.png", "notes.txt"}
    assert (samples / "000.png").read_bytes() != b"earlier"
    assert (samples / "best" / "000.png").read_bytes() == b"earlier"


def test_an_autoencoder_does_not_replace_a_run(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    # A finished run has a results.json, as an autoencoder's folder has.
    for name in ("results.json", "config.yaml", "checkpoint-3/model.pt"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).touch()
    with pytest.raises(LimnerError, match=r"no earlier autoencoder \(it holds checkpoint-3\)"):
        train.train_autoencoder(tiny_config(), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint-3" / "model.pt").exists()
    for name in train.WRITTEN:
        (tmp_path / "vae" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "vae" / name).touch()
    train.check_replaceable(tmp_path / "vae")


def test_an_autoencoder_removes_its_own_checkpoints_alone(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    waiting = train.fitting_folder(tmp_path / "vae")
    waiting.mkdir()
    (waiting / "notes.md").touch()
    with pytest.raises(LimnerError, match=r"vae-unfinished, where .*holds notes\.md"):
        train.train_autoencoder(tiny_config(), tmp_path / "vae")
    (waiting / "notes.md").unlink()
    for name in (".checkpoint-6.1f3a9c02-4711-0.writing", "checkpoint-3", ".DS_Store"):
        (waiting / name).mkdir()
    train.check_checkpoints_folder(waiting)

    source = photos(tmp_path / "pets-unfinished")
    with pytest.raises(LimnerError, match="inside the data"):
        train.train_autoencoder(in_folder(tiny_config(), source), tmp_path / "pets")
    assert len(list(source.iterdir())) == 6


def test_what_is_put_beside_an_autoencoders_checkpoints_meanwhile_stays(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = train.fitting_folder(tmp_path / "vae")

    def write_notes(model: object, pictures: object, device: object) -> None:
        assert (waiting / "checkpoint-1").is_dir()
        (waiting / "notes.md").touch()

    monkeypatch.setattr(train, "_normalise", write_notes)
    sizes = {"base_channels": 8, "crop": 16, "batch_size": 2, "max_steps": 1}
    config = in_folder(tiny_config(), photos(tmp_path / "photos"))
    config = config.model_copy(update={"autoencoder": AutoencoderConfig(**sizes)})
    train.train_autoencoder(config, tmp_path / "vae")
    assert [p.name for p in waiting.iterdir()] == ["notes.md"]


def test_a_demo_removes_an_earlier_demo_and_nothing_else(tmp_path: Path) -> None:
    training = {"preview_prompts": PREVIEW_PROMPTS}
    config = load_config({"data": {"dataset_name": "emoji"}, "training": training})
    for name in ("log.jsonl", "previews/a.png", "checkpoint-5/model.pt", "tensorboard/x", ".keep"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    (tmp_path / "my drawings").mkdir()
    with pytest.raises(LimnerError, match="holds my drawings, which no demo wrote"):
        remove_earlier(tmp_path)
    assert (tmp_path / "checkpoint-5" / "model.pt").exists()
    (tmp_path / "my drawings").rmdir()
    remove_earlier(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".keep"]
    remove_earlier(tmp_path / "nowhere")


def test_an_export_that_was_changed_since_is_not_replaced(trained: Path, tmp_path: Path) -> None:
    folder = export(trained / "outputs", tmp_path / "out", "diffusers")
    (folder / ".DS_Store").touch()
    export(trained / "outputs", folder, "diffusers")
    index = folder / "model_index.json"
    index.write_text(index.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(LimnerError, match="or one that was changed since"):
        export(trained / "outputs", folder, "diffusers")


def test_an_exported_file_whose_weights_were_merged_is_not_replaced(
    trained: Path, tmp_path: Path
) -> None:
    path = export(trained / "outputs", tmp_path / "painter.safetensors")
    export(trained / "outputs", path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file({name: tensor * 0.5 for name, tensor in load_file(path).items()}, path, header)
    before = path.read_bytes()
    with pytest.raises(LimnerError, match="or one that was changed since"):
        export(trained / "outputs", path)
    assert path.read_bytes() == before


def test_prepare_counts_no_hidden_files(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").touch()
    assert prepare("auto", source, tmp_path / "out").count == 3
    with pytest.raises(LimnerError, match="already exists and is not empty"):
        prepare("auto", source, tmp_path / "out")


@pytest.mark.parametrize("there", [False, True], ids=["no folder yet", "an empty folder"])
def test_what_is_put_into_an_output_meanwhile_stays_and_the_work_is_kept(
    there: bool, tmp_path: Path
) -> None:
    source, out = photos(tmp_path / "photos"), tmp_path / "out"
    (tmp_path / "out-2").touch()
    if there:
        out.mkdir()

    def somebody_writes(done: int, total: int) -> None:
        out.mkdir(exist_ok=True)
        (out / "notes.txt").write_text("an afternoon's work", encoding="utf-8")

    with pytest.raises(LimnerError, match=r"out is not what it was .* is in \S+out-3\.$"):
        prepare("auto", source, out, on_progress=somebody_writes)
    assert [p.name for p in out.iterdir()] == ["notes.txt"]
    assert len(json.loads((tmp_path / "out-3" / "metadata.json").read_text("utf-8"))) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out-2", "out-3", "photos"]


def test_a_file_that_came_while_it_was_drawn_is_not_replaced(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    written = save_all([remember(picture(colour), {}) for colour in ("red", "blue")], paths)
    assert next(written) == paths[0]
    picture("green").save(paths[1])
    mine = paths[1].read_bytes()
    with pytest.raises(LimnerError, match=r"b\.png \(something else was put there meanwhile\) is"):
        list(written)
    assert paths[1].read_bytes() == mine


def test_a_folder_that_is_a_disk_of_its_own_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = photos(tmp_path / "photos"), tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(out))
    for refused in (
        lambda: prepare("auto", source, out, on_progress=lambda done, total: pytest.fail("late")),
        lambda: check_replaceable(out),
        lambda: train.check_replaceable(out),
        lambda: refuse_foreign(out),
    ):
        with pytest.raises(LimnerError, match=r"out is a disk or volume .* such as \S+out"):
            refused()
    assert prepare("auto", source, out / "new").count == 3


# ---- folders that are added to -----------------------------------------------------------------


def test_a_check_does_not_replace_pictures_of_that_name(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = in_folder(tiny_config(), photos(tmp_path / "photos"))
    mine = tmp_path / "mine"
    photos(mine / "pictures")
    with pytest.raises(LimnerError, match=r"is no earlier check and holds pictures, which would"):
        check(config, mine)
    assert len(list((mine / "pictures").iterdir())) == 6
    for _ in range(2):
        check(config, tmp_path / "check")
    (tmp_path / "check" / "check.json").unlink()
    (tmp_path / "check" / LOCK).touch()  # killed
    check(config, tmp_path / "check")
    (tmp_path / "check" / "pictures" / "mine.png").touch()
    with pytest.raises(LimnerError, match=r"holds mine\.png, which no check wrote"):
        check(config, tmp_path / "check")
    (tmp_path / "check" / "pictures" / "mine.png").unlink()
    assert not (tmp_path / "check" / LOCK).exists()


def test_a_list_of_findings_beside_pictures_of_mine_is_no_check(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = in_folder(tiny_config(), photos(tmp_path / "photos"))
    check(config, tmp_path / "check")
    mine = tmp_path / "mine"
    photos(mine / "pictures")
    shutil.copy(tmp_path / "check" / "problems.jsonl", mine)
    with pytest.raises(LimnerError, match=r"pictures holds a\.png, which no check wrote"):
        check(config, mine)
    assert len(list((mine / "pictures").iterdir())) == 6
    picture().save(tmp_path / "check" / "pictures" / "mine.png")
    with pytest.raises(LimnerError, match=r"holds mine\.png, which no check wrote"):
        check(config, tmp_path / "check")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "problems.jsonl").write_text('{"kind": "flat tyre"}\n', encoding="utf-8")
    with pytest.raises(LimnerError, match=r"no earlier check and holds problems\.jsonl"):
        check(config, tmp_path / "other")


def test_a_report_is_written_into_runs_alone(tmp_path: Path, capsys) -> None:
    (tmp_path / "config.yaml").write_text("# mine\ndata: {dataset_name: shapes}\n", "utf-8")
    (tmp_path / "results.json").write_text("{}", encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run of Limner's, so no report is written there" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "results.json"]


def test_a_cache_does_not_replace_an_array_of_somebody_elses(tmp_path: Path) -> None:
    path = tmp_path / "contents.npy"
    np.save(path, np.arange(5))
    with pytest.raises(LimnerError, match=r"contents\.npy is an array that Limner did not write"):
        save_array(path, np.zeros(3))
    assert np.load(path).tolist() == [0, 1, 2, 3, 4]
    path.unlink()
    for value in (1, 2):
        save_array(path, np.full(3, value))
    path.write_bytes(path.read_bytes()[:-3])  # damaged: made anew
    save_array(path, np.full(3, 4))
    found = load_array(path)
    assert found is not None
    assert found.tolist() == [4, 4, 4]


def test_a_sweep_keeps_comments_of_a_checkpoints_configuration(tmp_path: Path) -> None:
    text = "# drawn best by eye\n" + Config().to_yaml()
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    said = store_sampling(tmp_path, Config().sampling)
    assert said == "config.yaml contained comments; a copy is kept as config.edited.yaml"
    assert (tmp_path / "config.edited.yaml").read_text(encoding="utf-8") == text
    assert store_sampling(tmp_path, Config().sampling) is None


# ---- two at a time -----------------------------------------------------------------------------


def test_two_of_a_kind_do_not_write_one_output(
    tiny_config: Callable[..., Config], trained: Path, tmp_path: Path, capsys
) -> None:
    source, out = photos(tmp_path / "photos"), tmp_path / "out"
    run = trained / "outputs"
    config = in_folder(tiny_config(), source)
    commands: list[Callable[[], object]] = [
        lambda: prepare("auto", source, out),
        lambda: export(run, out, "diffusers"),
        lambda: evaluate(run, output=out),
        lambda: train.train_autoencoder(config, out),
    ]
    with another_process(out, None) as process:
        for command in commands:
            with pytest.raises(LimnerError) as error:
                command()
            assert f"{out} is in use: process {process.pid} on " in str(error.value)
            assert "another --output" in str(error.value)
    assert not out.exists()
    drawing = tmp_path / "a.png"
    with another_process(drawing, None) as process:
        assert main(["generate", str(run), "a", "--device=cpu", f"--output={drawing}"]) == 2
        assert f"a.png is in use: process {process.pid} on " in capsys.readouterr().err
        assert not drawing.exists()
    with (
        another_process(out / "limner.safetensors", None),
        pytest.raises(LimnerError, match=r"limner\.safetensors is in use: process"),
    ):
        export(run, out)
    with (
        another_process(out, LOCK),
        pytest.raises(LimnerError, match="out is in use: process"),
    ):
        check(config, out)
    with (
        another_process(run / "checkpoint-6", ".limner-sweep.lock"),
        pytest.raises(LimnerError, match="checkpoint-6 is in use: process"),
    ):
        sweep(run / "checkpoint-6")
    with (
        another_process(source, ".limner-caption.lock"),
        pytest.raises(LimnerError, match=r"photos is in use: process .*or caption another folder"),
    ):
        caption_lock(source).acquire()
    for leftover in (run / "checkpoint-6").glob(".limner*"):
        leftover.unlink()


def test_two_demos_do_not_remove_each_other(tmp_path: Path, capsys) -> None:
    from limner.files.folder_lock import TRAINING

    with another_process(tmp_path, TRAINING):
        (tmp_path / "log.jsonl").write_text(json.dumps({"kind": "a", "step": 1}), "utf-8")
        assert main(["demo", "--output", str(tmp_path)]) == 2
        assert "is in use: process" in capsys.readouterr().err
        assert (tmp_path / "log.jsonl").exists()
