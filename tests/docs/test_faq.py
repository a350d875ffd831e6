"""Every block of docs/faq.md is run, row by row, and what the answer promises is looked at."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compared_runs import differing
from PIL import Image
from recording_hub import recording_hub
from runs import events, measure_here, messages
from shown import IMAGES, ROOT, Block, Runner, Told, as_the_hub, blocks_of, shape_of, workplace

import limner
from limner import device as devices
from limner.checkpoint.folder import load_tensors
from limner.cli import main
from limner.config import load_config
from limner.data.open import open_data
from limner.errors import LimnerError
from limner.inference.saving import how_drawn
from limner.models.text_to_image import build_model
from limner.training.monitor import throughput
from limner.training.trainer import Trainer

LANGUAGES = ("docs/faq.md", "docs/faq.zh-CN.md")
DOCUMENT = (ROOT / LANGUAGES[0]).read_text(encoding="utf-8")
ROWS = [*(f"Q{n}" for n in range(1, 17)), "Getting help", "Debugging"]
ANSWERED: list[str] = []
SMALLER = (
    *("data.image_size=16", "training.max_steps=1", "training.num_workers=0"),
    *("data.memory_mb=64", "sampling.num_inference_steps=1"),
)
"""Of shown configurations; the test of a row looks at them as they are shown, too."""


def of_row(row: str) -> list[Block]:
    return [b for b in blocks_of(DOCUMENT) if re.match(rf"{row}(:|$)", b.heading)]


def answers(row: str) -> Callable[[Any], Any]:
    def mark(test: Any) -> Any:
        test.row = row
        ANSWERED.append(row)
        return test

    return mark


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "matmul_peak", lambda device, dtype: 1e12)
        return workplace(tmp_path_factory.mktemp("prepared") / "work")


@pytest.fixture
def work(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_end: None) -> Path:
    """A copy of the prepared folder, as the working directory; no network, no compiler."""
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(devices, "why_not_compile", lambda device: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    measure_here(monkeypatch)
    return folder


@pytest.fixture
def told(request: pytest.FixtureRequest, work: Path) -> Told:
    """What came of running every block of the test's row."""
    return Runner(work, smaller=SMALLER).run(of_row(request.function.row))


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image).astype(int)


# The document


def test_every_row_has_blocks_and_a_test_that_runs_them() -> None:
    headings = [line for line in DOCUMENT.splitlines() if line.startswith("#")]
    rows = [m[1] for h in headings if (m := re.match(r"#+ (Q\d+|Getting help|Debugging)", h))]
    assert rows == ROWS
    assert sorted(ANSWERED) == sorted(ROWS)
    assert all(of_row(row) for row in ROWS)
    assert sum(len(of_row(row)) for row in ROWS) == len(blocks_of(DOCUMENT))


def test_both_languages_say_the_same_in_the_same_order() -> None:
    english, chinese = (shape_of((ROOT / name).read_text(encoding="utf-8")) for name in LANGUAGES)
    assert english == chinese


# Environment


@answers("Q1")
def test_the_device_is_chosen_and_what_is_wrong_is_said(told: Told) -> None:
    assert "to fix" in told.printed
    expected = devices.choose_device("auto")
    assert f"{torch.cuda.is_available()} {expected}" in told.printed
    if not torch.cuda.is_available():
        with pytest.raises(LimnerError, match="finds none on this machine; use auto"):
            devices.choose_device("cuda")


@answers("Q2")
def test_what_is_asked_for_is_what_is_tested(told: Told) -> None:
    assert [words[0] for words in told.commands] == ["python", ".", "pip", "limner"]
    assert "Would install" not in told.printed
    asked = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    packages = [line for line in asked if line and line[0] not in "#-"]
    assert packages
    assert all("==" in line for line in packages)
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")


# Training


@answers("Q3")
def test_memory_that_runs_out_is_no_end(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "at its peak" in told.printed
    by_itself, by_hand = told.configs
    assert (by_itself.training.batch_size, by_itself.training.effective_batch_size) == ("auto", 32)
    assert by_hand.training.mixed_precision == "fp16"
    assert by_hand.vae.use_slicing
    log = events(Path("outputs/shown-0"), "train")
    assert log[-1]["images"] == 32 * log[-1]["step"]
    log = events(Path("outputs/shown-1"), "train")
    assert log[-1]["images"] == 2 * 8 * log[-1]["step"]

    trainer = Trainer(load_config("configs/train_config.yaml", ["training.output_dir=outputs/oom"]))
    loss = trainer.run.train_step.loss

    def measured(batch: Any, timesteps: torch.Tensor) -> torch.Tensor:
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(batch, timesteps)

    monkeypatch.setattr(trainer.run.train_step, "loss", measured)
    state = trainer.train()
    assert (state.step, state.images, state.pieces) == (4, 16, 4)
    assert any("out of memory" in message for message in messages(trainer.folder))


@answers("Q4")
def test_speed_is_said_and_every_key_is_there(told: Told) -> None:
    (shown,) = told.configs
    training = shown.training
    assert (training.num_workers, training.compile_model, training.prefetch_factor) == (4, True, 4)
    assert events(Path("outputs/shown-0"), "train")[-1]["images_per_second"] > 0
    assert "pictures/s" in told.printed
    assert "compile" in told.printed
    assert f"{IMAGES} rows checked" in told.printed
    page = Path("outputs/check/check.html").read_text(encoding="utf-8")
    assert "Shorter side, pixels" in page
    main(["train", "--config", "configs/train_config.yaml", "training.output_dir=outputs/said"])
    first = messages(Path("outputs/said"))[0]
    assert "processor" in first
    assert re.search(r"in (float32|bfloat16|float16)", first)


@answers("Q5")
def test_the_model_answers_and_a_run_that_does_not_learn_says_so(told: Told) -> None:
    assert "torch.Size([2, 3, 64, 64])" in told.printed
    assert (told.folder / "outputs" / "report.html").is_file()
    (shown,) = told.configs
    assert (shown.training.learning_rate, shown.training.max_grad_norm) == (5e-4, 1.0)
    assert shown.training.learning_rate < load_config({}).training.learning_rate < 1e-2
    assert load_config({}).training.learning_rate == 3.3e-3
    words = ["training.output_dir=outputs/still", "training.learning_rate=1e-12"]
    words += ["training.max_steps=5", "training.heldout_steps=1", "lr_scheduler.type=constant"]
    Trainer(load_config("configs/train_config.yaml", words)).train()
    assert any(m.startswith("not learning") for m in messages(Path("outputs/still")))


@answers("Q6")
def test_the_end_is_the_same_as_without_the_interruption(told: Told) -> None:
    named = Path("outputs/checkpoint-1000")
    for name in ("model.pt", "optimizer.pt", "training_state.json"):
        assert (named / name).is_file()
    assert told.printed.count("resumed at step 2") == 2
    assert differing(Path("whole"), Path("outputs/checkpoint-4")) == []


# Data


@answers("Q7")
def test_bad_rows_are_listed_and_change_nothing(told: Told) -> None:
    assert "2 rows checked" in told.printed
    assert "0 errors" in told.printed
    assert "True\n2 rows; the first: {'image': 'images/image_000001.jpg'" in told.printed
    rows = json.loads(Path("data/metadata.json").read_text(encoding="utf-8"))
    bad = [{"image": "images/gone.jpg", "text": "a cat"}, {"image": "images/image_000003.jpg"}]
    Path("data/metadata.json").write_text(json.dumps([*rows, *bad]), encoding="utf-8")
    assert main(["check-data", "configs/train_config.yaml", "--output", "checked"]) == 2
    found = Path("checked/problems.jsonl").read_text(encoding="utf-8").splitlines()
    kinds = {line["key"]: line["kind"] for line in map(json.loads, found)}
    assert kinds["images/gone.jpg"] == "missing-file"
    assert kinds["images/image_000003.jpg"] == "unusable-row"
    words = ["training.output_dir=outputs/bad", "training.batch_size=1", "data.train_split=1"]
    assert main(["train", "--config", "configs/train_config.yaml", *words]) == 0
    listed = Path("outputs/bad/refused.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(listed) == 2
    assert "gone.jpg" in listed[0]
    assert open_data(load_config("configs/train_config.yaml", words)).set.rows[0].captions


@answers("Q8")
def test_fewer_rows_and_no_pictures_in_memory(told: Told) -> None:
    (shown,) = told.configs
    assert (shown.data.num_samples, shown.data.image_size, shown.data.memory_mb) == (1000, 64, 0)
    assert shown.training.num_workers == 1
    few = open_data(load_config("configs/train_config.yaml", ["data.num_samples=5"]))
    assert len(few.trained.rows) + len(few.held_out.rows) == 5


# Drawing


@answers("Q9")
def test_more_steps_are_another_picture_and_the_sweep_is_stored(told: Told) -> None:
    assert [words[1] for words in told.commands if words[0] == "limner"] == [
        *("generate", "sweep", "evaluate", "train")
    ]
    named = Path("outputs/checkpoint-1000")
    assert (named / "sweep.json").is_file()
    assert (told.folder / "outputs" / "evaluation" / "evaluation.html").is_file()
    assert "resumed at step 2" in told.printed
    generator = limner.ImageGenerator(named)
    assert not np.array_equal(
        np.array(generator.generate("a cat on a chair", num_inference_steps=100)),
        np.array(generator.generate("a cat on a chair", num_inference_steps=2)),
    )


@answers("Q10")
def test_the_named_solver_draws_with_as_many_steps(told: Told) -> None:
    generator: Any = told.names["generator"]
    assert generator.sampling.scheduler_type == "ddim"
    assert generator.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pixels("cat.png").shape == (16, 16, 3)
    assert load_config({}).sampling.num_inference_steps == 20
    calls = []
    generator.model.register_forward_hook(lambda *_: calls.append(1))
    generator.generate("a cat on a chair", num_inference_steps=20, guidance_scale=1.0)
    assert len(calls) == 20


@answers("Q11")
def test_the_same_seed_is_the_same_picture(told: Told) -> None:
    assert Path("first.png").read_bytes() == Path("again.png").read_bytes()
    assert not np.array_equal(pixels("first.png"), pixels("other.png"))
    generator = limner.ImageGenerator("outputs")
    prompts = ["a dog", "a cat on a chair", "a bird"]
    among = generator.generate_batch(prompts, seeds=[1, 42, 3])[1]
    assert np.abs(np.array(among).astype(int) - pixels("first.png")).max() <= 1


# Models


@answers("Q12")
def test_what_does_not_fit_is_named(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    assert told.printed.endswith("True\n")
    assert main(["generate", "outputs/nowhere", "a cat"]) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    wider = load_config("configs/train_config.yaml", ["model.hidden_size=128"])
    Path("other.yaml").write_text(wider.to_yaml(), encoding="utf-8")
    assert main(["generate", "outputs", "a cat", "--config", "other.yaml"]) == 2
    said = capsys.readouterr().err
    assert "model.hidden_size: 64 in the checkpoint, 128 in the configuration" in said
    damaged = Path("outputs/checkpoint-1000/ema.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert main(["generate", "outputs/checkpoint-1000", "a cat"]) == 2
    assert "ema.safetensors" in capsys.readouterr().err


@answers("Q13")
def test_the_exported_file_is_small_and_draws(told: Told) -> None:
    folder = Path("outputs/checkpoint-1000")
    checkpoint = sum(p.stat().st_size for p in folder.iterdir())
    assert Path("cats.safetensors").stat().st_size < checkpoint / 5
    assert Path("output.png").is_file()
    first = load_tensors(folder / "model.pt")
    assert all(tensor.dtype == torch.float32 for tensor in first.values())


# Others


@answers("Q14")
def test_the_larger_model_is_what_is_estimated(work: Path) -> None:
    yaml_block, command = of_row("Q14")
    shown = [word for word in command.content.split() if word.startswith("model.")]
    asked = load_config("configs/train_config.yaml", shown)
    sizes = (asked.model.hidden_size, asked.model.num_layers, asked.model.num_heads)
    assert sizes == (768, 12, 12)
    small = ("model.hidden_size=96", "model.num_layers=3", "model.num_heads=3")
    told = Runner(work, {"estimate": small}, (*SMALLER, *small)).run([yaml_block, command])
    (larger,) = told.configs
    assert larger.model == asked.model
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in build_model(config, 300).parameters())
            for config in (larger, load_config("configs/train_config.yaml"))
        ]
        tried = build_model(load_config("configs/train_config.yaml", small), 300)
    assert counts[0] > 80e6 > 1e6 > counts[1]
    (said,) = re.findall(r"parameters +([\d.]+)M", told.printed)
    assert float(said) == pytest.approx(sum(p.numel() for p in tried.parameters()) / 1e6, rel=0.1)
    with pytest.raises(LimnerError, match=r"earlier run with other settings"):
        Trainer(load_config("configs/train_config.yaml", small))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    with recording_hub("your-username") as recorded:
        as_the_hub(recorded, monkeypatch, tmp_path / "hub")
        yield recorded


@answers("Q15")
def test_what_is_shared_arrives(hub: Any, told: Told) -> None:
    assert hub.files.keys() == {"your-username/dit-model", "your-username/dit-checkpoint"}
    assert {"README.md", "model_index.json", "limner.safetensors"} <= set(
        hub.files["your-username/dit-model"]
    )
    assert how_drawn(Image.open("shared.png"))["prompt"] == "a cat on a chair"
    assert any(r.split()[1].endswith("/limner.safetensors") for r in hub.requests)
    sent = hub.files["your-username/dit-checkpoint"]
    assert {"model.pt", "optimizer.pt", "config.yaml"} <= set(sent)
    for name, content in sent.items():
        assert (Path("outputs/final") / name).read_bytes() == content
    # And what was sent goes on.
    Path("elsewhere").mkdir()
    for name, content in sent.items():
        (Path("elsewhere") / name).write_bytes(content)
    config = load_config("configs/train_config.yaml", ["training.output_dir=continued"])
    assert Trainer(config, resume="elsewhere").state.step == 2


@answers("Q16")
def test_the_measurements_are_there(told: Told) -> None:
    found = json.loads(Path("outputs/evaluation/evaluation.json").read_text(encoding="utf-8"))
    assert found["held_out_loss"]
    assert found["recall"]
    assert found["memorisation"]
    measured = {metric["name"].partition(" (")[0] for metric in found["metrics"]}
    assert measured >= {"kernel distance", "Frechet distance", "precision", "recall"}
    assert Path("outputs/evaluation/evaluation.html").is_file()
    for flag in ("--inception", "--clip", "--dinov2"):
        assert f"`{flag}`" in DOCUMENT


# Help and debugging


@answers("Getting help")
def test_what_to_send_is_json(told: Told) -> None:
    found = json.loads(told.printed)
    assert {"python", "packages", "memory", "data"} <= {finding["name"] for finding in found}


@answers("Debugging")
def test_shapes_are_shown_without_a_print(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "limner")
    told = Runner(work).run(of_row("Debugging"))
    said = [record.getMessage() for record in caplog.records]
    assert any(re.match(r"denoiser.blocks.0: \[4, 16, 64\]", message) for message in said)
    assert any(re.match(r"model: \[2, 3, 16, 16\]", message) for message in said)
    assert "denoiser <class 'torch.Tensor'>" in told.printed
