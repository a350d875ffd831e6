"""What people do wrong: a sentence with the place and the fix, exit code 2, and no traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY

from limner.checkpoint.locate import checkpoints
from limner.cli import main
from limner.config import load_config
from limner.data.open import open_data

Fails = Callable[..., str]


pytestmark = pytest.mark.usefixtures("quick_end")


@pytest.fixture
def outputs(trained: Path) -> Path:
    """The folder of a finished run."""
    return trained / "outputs"


@pytest.fixture
def run(outputs: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be spoilt."""
    return Path(shutil.copytree(outputs, tmp_path / "run"))


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """fails(*words): what `limner` says when it refuses these."""

    def call(*words: object) -> str:
        capsys.readouterr()
        try:
            code: object = main([str(word) for word in words])
        except SystemExit as stopped:  # argparse's own
            code = stopped.code
        said = capsys.readouterr()
        assert code == 2, said
        assert said.err.strip()
        assert "Traceback" not in said.out + said.err
        return said.err

    return call


@pytest.fixture
def train(fails: Fails, tmp_path: Path) -> Fails:
    """train(*words): the same for `limner train` with a tiny configuration."""

    def call(*words: object) -> str:
        return fails("train", *TINY, f"training.output_dir={tmp_path / 'new'}", *words)

    return call


def own_folder(path: Path, count: int = 12, broken: tuple[int, ...] = ()) -> Path:
    """Pictures with metadata.json; those in `broken` are no pictures."""
    (path / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        name = f"images/image_{number:06d}.png"
        Image.new("RGB", (16, 16), (20 * number, 0, 0)).save(path / name)
        if number in broken:
            (path / name).write_bytes((path / name).read_bytes()[:40])
        rows.append({"image": name, "text": f"red number {number}"})
    (path / "metadata.json").write_text(json.dumps(rows), "utf-8")
    return path


def using(folder: Path) -> list[str]:
    return ["data.dataset_name=null", "data.num_samples=null", f"data.dataset_path={folder}"]


# Data


def test_a_missing_folder_is_named_with_the_key_that_names_it(train: Fails, tmp_path: Path) -> None:
    said = train(*using(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in said
    assert "data.dataset_path" in said
    assert not (tmp_path / "new").exists()


def test_broken_json_is_named_with_its_line(train: Fails, tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "data")
    (folder / "metadata.json").write_text('[{"image": "a.jpg",\n "text": "a"},,]', "utf-8")
    said = train(*using(folder))
    assert f"{folder / 'metadata.json'}, line 2" in said
    assert "comma" in said


def test_a_folder_without_captions_shows_the_layouts(train: Fails, tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "data")
    (folder / "metadata.json").unlink()
    said = train(*using(folder))
    assert "12 pictures, none with a caption" in said
    assert "metadata.json: [" in said


def test_an_unknown_data_set_says_which_there_are(train: Fails) -> None:
    said = train("data.dataset_name=laion")
    assert "data.dataset_name: 'laion' is neither emoji nor shapes" in said
    assert "data.dataset_path" in said


@pytest.mark.parametrize("broken", [(3,), (0, 5, 11), tuple(range(1, 12))])
@pytest.mark.parametrize("workers", [0, 1])
def test_broken_pictures_are_listed_and_the_run_goes_on(
    broken: tuple[int, ...], workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = own_folder(tmp_path / "data", broken=broken)
    settings = ["training.max_steps=8", f"training.num_workers={workers}", "data.train_split=1"]
    settings += ["data.check_pictures=false", "data.refused_limit=1"]  # met on the way
    words = [*TINY, f"training.output_dir={tmp_path / 'run'}", *using(folder), *settings]
    assert main(["train", *words]) == 0
    listed = [
        json.loads(line)
        for line in (tmp_path / "run" / "refused.jsonl").read_text("utf-8").splitlines()
    ]
    assert {row["key"] for row in listed} == {f"images/image_{n:06d}.png" for n in broken}
    assert all(row["reason"] for row in listed)
    assert "skipped a picture: images/image_" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()


def test_held_out_pictures_may_be_broken_too(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "data")
    words = [*TINY, *using(folder), "data.train_split=0.6", "data.check_pictures=false"]
    words.append("data.refused_limit=1")
    held_out = [row.key for row in open_data(load_config(None, words)).held_out.rows]
    assert held_out
    for key in held_out:
        (folder / key).write_bytes(b"no picture")
    assert main(["train", *words, f"training.output_dir={tmp_path / 'run'}"]) == 0
    samples = json.loads((tmp_path / "run" / "samples.json").read_text("utf-8"))
    truths = {s["prompt"]: s["truth"] for s in samples if s["split"] == "held out"}
    assert len(truths) == len(held_out)
    assert set(truths.values()) == {None}
    for sample in samples:
        if sample["split"] == "trained":  # each beside its own picture
            truth = np.array(Image.open(tmp_path / "run" / sample["truth"]))
            assert truth[0, 0, 0] == 20 * int(sample["prompt"].split()[-1])


def test_a_folder_of_broken_pictures_only_is_refused(train: Fails, tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "data", broken=tuple(range(12)))
    said = train(*using(folder))
    assert "none of the" in said
    assert "images/image_" in said


def test_rows_that_are_missing_are_counted_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = own_folder(tmp_path / "data")
    (folder / "images" / "image_000004.png").unlink()
    words = [*TINY, *using(folder), f"training.output_dir={tmp_path / 'run'}"]
    assert main(["train", *words, "training.max_steps=1"]) == 0
    assert "1 row cannot be used (see refused.jsonl)" in capsys.readouterr().out
    (line,) = (tmp_path / "run" / "refused.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["key"] == "images/image_000004.png"


# Settings


def test_an_unknown_key_names_the_nearest(train: Fails) -> None:
    said = train("training.batchsize=4")
    assert "training.batchsize is not a known key; did you mean training.batch_size?" in said


def test_a_configuration_that_cannot_be_read_is_named(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert str(path) in fails("train", "--config", path)
    for content in (b"model: [1,", b"\xff\xfe", b"- 1"):
        path.write_bytes(content)
        assert str(path) in fails("train", "--config", path)
    path.write_text("modle: {hidden_size: 64}", "utf-8")
    assert "modle is not a known key; did you mean model?" in fails("train", "--config", path)


@pytest.mark.parametrize("section", ["vae", "text_encoder"])
def test_pretrained_parts_that_are_not_there_say_how_to_get_them(
    section: str, train: Fails
) -> None:
    said = train(f"{section}.pretrained_model_name=./some/model")
    assert f"{section}.pretrained_model_name: './some/model' is not a folder" in said
    assert "HF_ENDPOINT" in said
    assert "set it to null" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stray", "words"], "unrecognized argument 'words'; settings are section.key=value"),
        (["stray", "cats.yaml"], "for a configuration file use --config cats.yaml"),
        (["--magic-size", "4"], "unrecognized argument '--magic-size'"),
        (["--training.seed"], "'--training.seed' needs a value: --training.seed VALUE"),
        (["--magic=4"], "unrecognized argument '--magic=4'"),
        (["training.=4"], "'training.=4' is not a valid override"),
    ],
)
def test_words_that_are_no_setting_are_refused(words: list[str], said: str, train: Fails) -> None:
    assert said in train(*words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_refused(train: Fails, fails: Fails, outputs: Path) -> None:
    assert "device cuda: " in train("training.device=cuda")
    assert "device cuda: " in fails("generate", outputs, "a", "--device", "cuda")


# Folders


def test_a_folder_that_cannot_be_made_is_named(train: Fails, fails: Fails, outputs: Path) -> None:
    file = outputs / "config.yaml"
    assert str(file) in train(f"training.output_dir={file}")
    assert str(file) in fails("generate", outputs, "a", "--output", file / "a.png")
    assert str(file) in fails("demo", "--output", file)


def test_a_new_run_does_not_mix_with_an_old_one(train: Fails, run: Path) -> None:
    said = train(f"training.output_dir={run}", "training.seed=7")
    assert str(run / "checkpoint-6") in said
    assert "--resume latest" in said


# Checkpoints


def test_a_checkpoint_that_is_not_there_is_named(
    train: Fails, fails: Fails, tmp_path: Path
) -> None:
    nowhere = tmp_path / "checkpoint-1000"
    for said in (
        train("--resume", nowhere),
        fails("train", "--resume", nowhere),
        fails("generate", nowhere, "a"),
        fails("generate", "--checkpoint", nowhere, "--prompt", "a"),
    ):
        assert f"no checkpoint at {nowhere}" in said
    config = tmp_path / "tiny.yaml"
    config.write_text(load_config(None, TINY).to_yaml(), "utf-8")
    for words in ([], ["--config", config]):
        said = train("--resume", "latest", *words)
        assert f"--resume latest: no checkpoint in {tmp_path / 'new'}" in said
        assert "training.output_dir" in said
    nowhere.mkdir()
    assert "is not a complete checkpoint: model.pt, " in fails("generate", nowhere, "a")


def test_resuming_another_architecture_names_each_difference(train: Fails, run: Path) -> None:
    words = ["model.architecture=dit", "model.hidden_size=128", "text_encoder.num_layers=2"]
    said = train("--resume", run / "checkpoint-6", *words)
    for line in (
        "model.architecture: 'modern' in the checkpoint, 'dit' in the configuration",
        "model.hidden_size: 64 in the checkpoint, 128 in the configuration",
        "text_encoder.num_layers: 1 in the checkpoint, 2 in the configuration",
    ):
        assert line in said
    assert "model.num_heads" not in said


def test_drawing_with_the_configuration_of_another_model_is_refused(
    fails: Fails, run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("model: {num_layers: 3}", "utf-8")
    said = fails("generate", run, "a", "--config", other)
    assert "model.num_layers: 2 in the checkpoint, 3 in the configuration" in said


def test_another_optimizer_is_refused(train: Fails, run: Path) -> None:
    said = train("--resume", run / "checkpoint-6", "optimizer.type=adamw")
    assert "optimizer.type is 'muon' in the checkpoint" in said


@pytest.mark.parametrize(
    ("file", "content", "command"),
    [
        ("ema.safetensors", b"\0" * 100, "generate"),
        ("model.pt", b"no weights", "train"),
        ("optimizer.pt", b"", "train"),
        ("training_state.json", b"{", "generate"),
        ("training_state.json", b'{"stride": 3}', "generate"),
        ("training_state.json", b"[1]", "generate"),
        ("training_state.json", b'"words"', "generate"),
        ("config.yaml", b"model: {hidden_sise: 3}", "generate"),
        ("tokenizer.json", b"{}", "generate"),
    ],
)
def test_a_damaged_file_is_named(
    file: str, content: bytes, command: str, run: Path, fails: Fails
) -> None:
    damaged = run / "checkpoint-6" / file
    damaged.write_bytes(content)
    words = [damaged.parent, "a"]
    if command == "train":
        words = ["--resume", damaged.parent, f"training.output_dir={run}"]
    assert str(damaged) in fails(command, *words)


def test_weights_of_another_model_are_refused(run: Path, fails: Fails) -> None:
    file = run / "checkpoint-6" / "config.yaml"
    file.write_text(file.read_text("utf-8").replace("num_layers: 2", "num_layers: 3"), "utf-8")
    said = fails("generate", run, "a")
    assert "does not fit the model its configuration describes" in said
    assert "denoiser.blocks.2" in said


# Drawing


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], 'limner generate outputs/demo "a cat"'),
        (
            ["a", "--height", "18"],
            "--height 18 is not a multiple of 4, the model's patch in pixels",
        ),
        (
            ["a", "--width", "0"],
            "--width 0 is not a multiple of 4, the model's patch in pixels; use 4",
        ),
        (
            ["a", "--height", "0"],
            "--height 0 is not a multiple of 4, the model's patch in pixels; use 4",
        ),
        (["a", "--height", "-4"], "--height -4 is not a multiple"),
        (["a", "--num_inference_steps", "0"], "num_inference_steps is 0; it must be at least 1"),
        (["a", "--guidance_scale", "-1"], "guidance_scale is -1.0; it must be 0 or more"),
        (["a", "--guidance_scale", "nan"], "guidance_scale is nan"),
        (["a", "--seed", "1" + "0" * 30], "--seed"),
        (["a", "--seed", "-1"], "--seed"),
        (["a", "--seed", "apple"], "--seed"),
        (["a", "--scheduler_type", "plms"], "invalid choice: 'plms'"),
        (["a", "--output", "apple.xyz"], "--output apple.xyz does not end in a picture format"),
        (["a", "--output", "."], "--output . is a folder; use a file such as apple.png"),
        (["a", "--num-steps", "4"], "unrecognized arguments: --num-steps"),
        (["a", "--seeds=4"], "unrecognized arguments: --seeds=4; did you mean --seed?"),
        (["a", "--num_images", "0"], "--num_images 0: must be at least 1"),
        (["a", "--shift", "-1"], "sampling.shift: "),
        (["a", "--guidance_interval", "0.8", "0.2"], "the first must be below the second"),
        (["a", "--guidance-interval", "0.2", "1.2"], "sampling.guidance_interval: "),
        (["a", "--guidance_type", "more"], "invalid choice: 'more'"),
        (["a", "--guide", "nowhere"], "no checkpoint at"),
        (["a", "--strength", "0.5"], "--strength requires --init_image"),
        (["a", "--init-image", "no.png"], "no.png: the picture file is not there. Put it back."),
        (["a", "--interpolate", "4"], "needs two prompts, or one prompt and --end_seed; got 1"),
        (
            ["a", "b", "c", "--interpolate", "4"],
            "needs two prompts, or one prompt and --end_seed; got 3",
        ),
        (["a", "b", "--interpolate", "1"], "must be at least 2, since both ends are drawn"),
        (
            ["a", "b", "--interpolate", "4", "--num-images", "2"],
            "--interpolate and --num_images cannot be combined",
        ),
        (["a", "--end-seed", "4"], "--end_seed requires --interpolate N"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    words: list[str], said: str, outputs: Path, fails: Fails
) -> None:
    assert said in fails("generate", outputs, *words)


def test_an_empty_prompt_gives_a_picture(outputs: Path, tmp_path: Path) -> None:
    for number, words in enumerate(([outputs, ""], ["--checkpoint", outputs, "--prompt", ""])):
        path = tmp_path / f"{number}.png"
        assert main(["generate", *map(str, words), "--output", str(path)]) == 0
        assert Image.open(path).size == (16, 16)


# Other commands


def test_a_report_of_what_is_no_run_is_refused(fails: Fails, tmp_path: Path) -> None:
    assert f"{tmp_path} is not a Limner run" in fails("report", tmp_path)


def test_preparing_what_is_not_there_is_refused(fails: Fails, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert str(tmp_path / "in") in fails("prepare", "--input", tmp_path / "in", "--output", output)
    assert "--input" in fails("prepare", "--output", output)
    assert not output.exists()


@pytest.mark.parametrize("words", [["paint"], ["demo", "--minutes", "0"], ["demo", "outputs"]])
def test_commands_that_do_not_exist_are_refused(words: list[str], fails: Fails) -> None:
    assert "usage: limner" in fails(*words)


def test_an_interrupted_run_says_so(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("limner.inference.generator.ImageGenerator.generate_batch", interrupt)
    assert main(["generate", str(outputs), "a"]) == 130
    assert "interrupted; what has been saved is kept" in capsys.readouterr().err
    assert checkpoints(outputs)
