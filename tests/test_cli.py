"""The command line and the scripts: every flag of the contract does what it says."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from PIL import Image

import limner
from limner import device as devices
from limner.checkpoint import checkpoints
from limner.cli import SOLVER_NAMES, main
from limner.config import load_config
from limner.diffusion.solvers import SOLVERS
from limner.errors import LimnerError
from limner.training.runlog import read_log

SCRIPTS = Path(__file__).parents[1] / "src" / "scripts"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends by measuring the processor, which takes longer than these runs."""
    monkeypatch.setattr(devices, "matmul_peak", lambda device, dtype: 1e12)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.yaml and the run that `limner train` made of it, in outputs/."""
    folder = tmp_path_factory.mktemp("cli")
    output = f"training.output_dir='{folder / 'outputs'}'"
    (folder / "tiny.yaml").write_text(load_config(None, [*TINY, output]).to_yaml(), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "matmul_peak", lambda device, dtype: 1e12)
        assert main(["train", "--config", str(folder / "tiny.yaml")]) == 0
    return folder


@pytest.fixture
def generate(run: Path, tmp_path: Path) -> Callable[..., np.ndarray]:
    """generate(*words): the pixels of the picture that `limner generate` draws with these."""

    def draw(*words: str) -> np.ndarray:
        path = tmp_path / "drawn.png"
        assert main(["generate", *words, "--output", str(path)]) == 0
        pixels = np.array(Image.open(path))
        path.unlink()
        return pixels

    return draw


def script(name: str, *words: str, cwd: Path) -> str:
    """Runs one of src/scripts as people do; what it printed."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / name), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


# The scripts, as processes


def test_the_training_script_trains_and_goes_on_from_a_named_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    config = tmp_path / "configs" / "train_config.yaml"
    config.write_text(load_config(None, [*TINY, "training.max_steps=3"]).to_yaml(), "utf-8")
    printed = script("train.py", "--config", "configs/train_config.yaml", cwd=tmp_path)
    assert "images/s" in printed
    outputs = tmp_path / "outputs"
    checkpoint = outputs / "checkpoint-3"
    for name in ("model.pt", "optimizer.pt", "training_state.json"):
        assert (checkpoint / name).is_file()
    words = ["--config", "configs/train_config.yaml", "--resume", "./outputs/checkpoint-3"]
    printed = script("train.py", *words, "training.max_steps=5", cwd=tmp_path)
    assert "resumed at step 3" in printed
    assert [path.name for path in checkpoints(outputs)] == ["checkpoint-3", "checkpoint-5"]
    steps = [e["step"] for e in read_log(outputs / "log.jsonl") if e["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5]


def test_the_inference_script_takes_every_flag(run: Path) -> None:
    script(
        "inference.py",
        *("--config", "tiny.yaml", "--checkpoint", "./outputs/checkpoint-6"),
        *("--prompt", "一个红色的圆", "--output", "drawn/by script.png"),
        *("--num_inference_steps", "3", "--height", "24", "--width", "16", "--seed", "42"),
        cwd=run,
    )
    with Image.open(run / "drawn" / "by script.png") as picture:
        assert picture.size == (16, 24)
        drawn = np.array(picture)
    generator = limner.ImageGenerator(run / "outputs")
    expected = generator.generate("一个红色的圆", 3, seed=42, height=24, width=16)
    assert np.abs(drawn.astype(int) - np.array(expected)).max() <= 1


@pytest.mark.parametrize("kind", ["coco", "custom"])
def test_the_preparing_script_takes_every_flag(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(5):
        Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(source / f"{number}.jpg")
        (source / f"{number}.txt").write_text(f"red {number}", "utf-8")
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(5)]
    captions = [{"id": n, "image_id": n, "caption": f"red {n}"} for n in range(5)]
    annotations = json.dumps({"images": images, "annotations": captions})
    given = source / "captions_train.json"
    given.write_text(annotations, "utf-8")
    words = ["--input", str(given if kind == "coco" else source), "--output", "data"]
    printed = script("prepare_data.py", "--type", kind, *words, "--num_samples", "3", cwd=tmp_path)
    assert "3 pictures in data" in printed
    rows = json.loads((tmp_path / "data" / "metadata.json").read_text("utf-8"))
    assert [row["image"] for row in rows] == [f"images/image_{n:06d}.jpg" for n in (1, 2, 3)]
    assert {row["text"] for row in rows} < {f"red {n}" for n in range(5)}
    for row in rows:
        red = np.array(Image.open(tmp_path / "data" / row["image"]))[0, 0, 0]
        assert abs(int(red) - 50 * int(row["text"].split()[1])) < 10


@pytest.mark.parametrize(
    "statement", ["import limner", "import limner.cli as c; c._parser().format_help()"]
)
def test_help_and_import_wait_for_no_heavy_package(statement: str) -> None:
    heavy = ("torch", "accelerate", "numpy", "PIL", "pydantic", "tokenizers")
    program = f"import sys; {statement}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_program_and_the_module_answer_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "limner", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    for command in ("demo", "train", "generate", "prepare", "report"):
        assert command in done.stdout


# limner train


def test_a_run_leaves_what_a_person_looks_for(run: Path) -> None:
    folder = run / "outputs"
    names = ["config.yaml", "log.jsonl", "samples.png", "samples.json", "results.json"]
    for name in [*names, "report.html", "previews", "checkpoint-3", "checkpoint-6"]:
        assert (folder / name).exists(), name
    report = (folder / "report.html").read_text("utf-8")
    assert 'src="data:image/png;base64,' in report
    assert load_config(folder / "config.yaml") == load_config(run / "tiny.yaml")


@pytest.mark.parametrize(
    "words",
    [
        ["training.max_steps=2", "training.batch_size=3"],
        ["--training.max_steps", "2", "--training.batch_size", "3"],
        ["--training.max_steps=2", "--training.batch_size=3"],
        ["--training.max_steps", "2", "--training.batch_size=3", "training.logging_steps=1"],
    ],
)
def test_any_key_can_be_set_in_every_usual_way(words: list[str], run: Path, tmp_path: Path) -> None:
    output = f"training.output_dir={tmp_path / 'run'}"
    assert main(["train", words[0], "--config", str(run / "tiny.yaml"), *words[1:], output]) == 0
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.training.max_steps, config.training.batch_size) == (2, 3)
    assert config.model == load_config(run / "tiny.yaml").model


def test_resume_latest_with_and_without_a_configuration(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, config = f"training.output_dir={tmp_path / 'run'}", ["--config", str(run / "tiny.yaml")]
    assert main(["train", *config, output, "training.max_steps=2"]) == 0
    assert main(["train", *config, output, "training.max_steps=4", "--resume", "latest"]) == 0
    assert "resumed at step 2" in capsys.readouterr().out
    # The checkpoint carries its own configuration.
    assert main(["train", "--resume", "latest", output, "training.max_steps=5"]) == 0
    assert "resumed at step 4" in capsys.readouterr().out
    checkpoint = str(tmp_path / "run" / "checkpoint-5")
    assert main(["train", "--resume", checkpoint, "--training.max_steps", "6"]) == 0
    assert "resumed at step 5" in capsys.readouterr().out
    names = [path.name for path in checkpoints(tmp_path / "run")]
    assert names == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]  # three are kept


@pytest.fixture
def levels() -> Iterator[None]:
    """`--log-level` sets these for the whole process."""
    before = {name: logging.getLogger(name).level for name in ("", "limner")}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def debugged(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
    caplog.clear()
    return said


@pytest.mark.usefixtures("levels")
def test_debug_shows_shapes_and_ranges_through_the_model(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--config", str(run / "tiny.yaml"), f"training.output_dir={tmp_path / 'run'}"]
    assert main(["train", *words, "training.max_steps=1", "--log-level", "debug"]) == 0
    said = debugged(caplog)
    for part, before, after in (
        ("model", "[4, 3, 16, 16] float32 from ", "[4, 3, 16, 16] float32 from 0 to 0"),
        ("text_encoder", "[4, 24] int64 from 0 to ", "([4, 24, 64] float32 from "),
        ("denoiser.blocks.0", "[4, 16, 64] float32 from ", "[4, 16, 64] float32 from "),
        ("denoiser.blocks.1", "[4, 16, 64] float32 from ", "[4, 16, 64] float32 from "),
    ):
        (line,) = [message for message in said if message.startswith(f"{part}: ")]
        assert line.startswith(f"{part}: {before}")
        assert f" -> {after}" in line
    assert main(["train", *words, "--resume", "latest", "training.max_steps=2"]) == 0
    assert debugged(caplog) == []
    assert (
        main(
            [
                "generate",
                str(tmp_path / "run"),
                "a",
                "--log-level",
                "debug",
                "--output",
                str(tmp_path / "a.png"),
            ]
        )
        == 0
    )
    # Two steps, each with the prompt and, for guidance, with the empty one.
    assert sum(m.startswith("model: [2, 3, 16, 16] float32") for m in debugged(caplog)) == 2


# limner generate


def test_words_and_flags_draw_the_same(run: Path, generate: Callable[..., np.ndarray]) -> None:
    outputs, prompt = str(run / "outputs"), "a small red circle at the top left"
    expected = generate(outputs, prompt, "--seed", "1")
    assert expected.shape == (16, 16, 3)
    for words in (
        ["--seed", "1", outputs, prompt],
        [outputs, "--seed", "1", prompt],
        ["--checkpoint", outputs, "--prompt", prompt, "--seed", "1"],
        ["--checkpoint", outputs, prompt, "--seed=1"],
        [str(run / "outputs" / "checkpoint-6"), prompt, "--seed", "1"],
        [outputs, prompt, "--seed", "1", "--config", str(run / "tiny.yaml")],
        [outputs, prompt, "--seed", "1", "--device", "cpu", "--scheduler_type", "dpmsolver++"],
        [outputs, prompt, "--seed", "1", "--num_inference_steps", "2", "--guidance_scale", "3"],
    ):
        assert np.array_equal(generate(*words), expected), words


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("", ["--seed", "2"]),
        ("", ["--num_inference_steps", "5"]),
        ("", ["--guidance_scale", "1"]),
        ("", ["--scheduler_type", "ddpm"]),
        ("checkpoint-3", []),
    ],
)
def test_every_flag_changes_the_picture(
    where: str, words: list[str], run: Path, generate: Callable[..., np.ndarray]
) -> None:
    prompt = ["--prompt", "two blue squares", "--seed", "1"]
    expected = generate("--checkpoint", str(run / "outputs"), *prompt)
    other = generate("--checkpoint", str(run / "outputs" / where), *prompt, *words)
    assert not np.array_equal(other, expected)


def test_the_same_seed_gives_the_same_file(run: Path, tmp_path: Path) -> None:
    files = []
    for number, seed in enumerate(["42", "42", "43"]):
        files.append(tmp_path / f"{number}.png")
        words = [str(run / "outputs"), "a large green cross in the center", "--seed", seed]
        assert main(["generate", *words, "--output", str(files[-1])]) == 0
    first, again, other = (path.read_bytes() for path in files)
    assert first == again != other


def test_size_flags_are_pixels(run: Path, generate: Callable[..., np.ndarray]) -> None:
    picture = generate(str(run / "outputs"), "a", "--height", "8", "--width", "32")
    assert picture.shape == (8, 32, 3)


@pytest.mark.parametrize("prompt", ["", "   ", "红苹果", "пятно", "🍎", "x" * 500])
def test_any_words_give_a_picture(
    prompt: str, run: Path, generate: Callable[..., np.ndarray]
) -> None:
    assert generate(str(run / "outputs"), prompt).shape == (16, 16, 3)
    assert generate("--checkpoint", str(run / "outputs"), "--prompt", prompt).shape == (16, 16, 3)


def test_several_prompts_are_numbered_pictures(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["two blue squares", "three red crosses", "", "two blue squares"]
    words = [str(run / "outputs"), *prompts, "--seed", "5", "--output", str(tmp_path / "a.png")]
    assert main(["generate", *words]) == 0
    paths = [tmp_path / f"a-{number}.png" for number in range(4)]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    drawn = [np.array(Image.open(path)).astype(int) for path in paths]
    alone = limner.ImageGenerator(run / "outputs").generate(prompts[1], seed=5)
    assert np.abs(drawn[1] - np.array(alone)).max() <= 1
    assert np.abs(drawn[0] - drawn[3]).max() <= 1
    assert not np.array_equal(drawn[0], drawn[1])


def test_prompts_keep_their_order_wherever_the_flags_are(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, flags = str(run / "outputs"), ["--seed", "5", "--output", str(tmp_path / "a.png")]
    asked: list[list[str]] = []

    def draw(self: limner.ImageGenerator, prompts: list[str], *_: object) -> list[Image.Image]:
        asked.append(prompts)
        return [Image.new("RGB", (4, 4)) for _ in prompts]

    monkeypatch.setattr(limner.ImageGenerator, "generate_batch", draw)
    for words in (
        [outputs, "one", "two", "three", *flags],
        [outputs, "one", *flags, "two", "three"],
        [outputs, *flags, "one", "two", "three"],
        ["--checkpoint", outputs, *flags, "one", "two", "three"],
        ["one", "two", "--checkpoint", outputs, *flags, "three"],
        ["--checkpoint", outputs, "one", "two", *flags, "--prompt", "three"],
    ):
        assert main(["generate", *words]) == 0
    assert asked == [["one", "two", "three"]] * 6


def test_letters_that_the_screen_does_not_have_are_no_error(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")  # as on Windows
    monkeypatch.setattr(sys, "stdout", screen)
    path = tmp_path / "红苹果.png"
    assert main(["generate", str(run / "outputs"), "红苹果", "--output", str(path)]) == 0
    assert path.is_file()
    screen.flush()
    assert screen.buffer.getvalue().strip().endswith(b"???.png")  # type: ignore[attr-defined]


# The Python interface


def test_the_generator_takes_a_solver_by_name(run: Path) -> None:
    drawn = {
        name: np.array(limner.ImageGenerator(run / "outputs", scheduler_type=name).generate("a"))
        for name in ("ddpm", "ddim", "euler")
    }
    assert limner.ImageGenerator(run / "outputs", "ddim").sampling.scheduler_type == "ddim"
    assert not np.array_equal(drawn["ddpm"], drawn["ddim"])
    with pytest.raises(LimnerError, match="'plms' is not known; take one of ddpm, ddim, euler"):
        limner.ImageGenerator(run / "outputs", scheduler_type="plms")
    assert tuple(SOLVERS) == SOLVER_NAMES


def test_a_batch_is_its_pictures(run: Path) -> None:
    generator = limner.ImageGenerator(run / "outputs")
    prompts, seeds = ["a red circle", "two blue squares", ""], [3, 4, 5]
    batch = generator.generate_batch(prompts, seeds=seeds, num_inference_steps=3)
    assert [picture.size for picture in batch] == [(16, 16)] * 3
    for prompt, seed, picture in zip(prompts, seeds, batch, strict=True):
        alone = generator.generate(prompt, num_inference_steps=3, seed=seed)
        assert np.abs(np.array(picture).astype(int) - np.array(alone)).max() <= 1
    with pytest.raises(LimnerError, match="3 prompts need as many seeds, or one; got 2"):
        generator.generate_batch(prompts, seeds=[1, 2])


def test_the_documented_names_train_save_and_draw(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limner import ImageGenerator, Trainer, load_config

    monkeypatch.chdir(tmp_path)
    trainer = Trainer(load_config(run / "tiny.yaml", ["training.output_dir=run"]))
    trainer.save_checkpoint("./outputs/final")
    names = {path.name for path in (tmp_path / "outputs" / "final").iterdir()}
    assert {"model.pt", "optimizer.pt", "training_state.json", "config.yaml"} <= names
    trainer.save_checkpoint("./outputs/final")  # again, in its place
    assert ImageGenerator("./outputs/final").generate("a").size == (16, 16)
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["final"]
    assert set(limner.__all__) >= {"Trainer", "ImageGenerator", "load_config", "LimnerError"}
    with pytest.raises(AttributeError, match="no attribute 'Trainor'"):
        limner.Trainor  # noqa: B018


# limner report


def test_a_report_can_be_written_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run / "outputs" / "report.html"
    report.unlink()
    assert main(["report", str(run / "outputs")]) == 0
    assert report.is_file()
    printed = capsys.readouterr().out
    assert str(report) in printed
    assert "held out prompts: " in printed
