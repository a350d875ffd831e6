"""The demo and its evaluation: all to look at is there, and figures are what they claim."""

import contextlib
import io
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limner.apps import demo
from limner.checkpoint.locate import checkpoints
from limner.cli import main
from limner.config import Config, load_config
from limner.data.open import Data, open_data
from limner.errors import LimnerError
from limner.evaluation.end_of_run import evaluate_run
from limner.evaluation.summary import sentences_of_run
from limner.inference.generator import ImageGenerator
from limner.metrics import retrieval
from limner.training.monitor import throughput
from limner.training.monitor.run_log import read_log
from limner.training.trainer import Trainer

STEPS = 3


def small(minutes: float, output_dir: str, device: torch.device) -> Config:
    """The demo's own configuration, of a model that takes no time."""
    settings = demo_config(minutes, output_dir, device).model_dump(mode="json")
    settings["data"] |= {"image_size": 16}
    settings["model"] |= {"hidden_size": 64, "num_layers": 1, "num_heads": 1}
    settings["text_encoder"] |= {"hidden_size": 64, "num_layers": 1, "vocab_size": 400}
    settings["training"] |= {"max_steps": STEPS, "batch_size": 4, "compile_model": False}
    settings["training"] |= {"mixed_precision": "no", "device": "cpu", "heldout_pictures": 4}
    settings["sampling"] |= {"num_inference_steps": 1}
    return load_config(settings)


demo_config = demo.demo_config


@pytest.fixture
def tiny_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "demo_config", small)
    monkeypatch.setattr(throughput, "matmul_peak", lambda device, dtype: 1e12)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a tiny demo, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(demo, "demo_config", small)
        patch.setattr(throughput, "matmul_peak", lambda device, dtype: 1e12)
        assert main(["demo", "--minutes", "1", "--output", str(folder)]) == 0
    return folder, said.getvalue()


# What a person finds


def test_a_demo_leaves_everything_to_look_at(run: tuple[Path, str]) -> None:
    folder, _ = run
    assert [path.name for path in checkpoints(folder)] == [f"checkpoint-{STEPS}"]
    with Image.open(folder / "samples.png") as sheet:
        assert min(sheet.size) > 200
    assert list((folder / "previews").glob("*.png"))
    report = (folder / "report.html").read_text("utf-8")
    assert not re.search(r'(src|href)="(?!data:|#|https://)', report)  # self-contained
    samples = json.loads((folder / "samples.json").read_text("utf-8"))
    for sample in samples:
        assert Image.open(folder / sample["file"]).size == (16, 16)
        assert (sample["truth"] is None) == (sample["rank"] is None) == (sample["split"] == "free")
    splits = [sample["split"] for sample in samples]
    assert {split: splits.count(split) for split in splits} == {
        "trained": 48,
        "held out": min(48, len(held_out_rows())),
        "free": len(demo.FREE_PROMPTS),
    }
    assert [s["prompt"] for s in samples if s["split"] == "free"] == list(demo.FREE_PROMPTS)


def held_out_rows() -> list[Any]:
    return open_data(small(1, "unused", torch.device("cpu"))).held_out.rows


def test_the_figures_cover_the_range_that_is_promised(run: tuple[Path, str]) -> None:
    results = json.loads((run[0] / "results.json").read_text("utf-8"))
    found = results["recall"]
    assert found["trained"]["count"] + found["held out"]["count"] >= 300
    assert found["held out"]["count"] == len(held_out_rows()) >= 30
    assert (
        f"all {found['trained']['count'] + found['held out']['count']} images" in (results["range"])
    )
    assert results["distance"] == retrieval.DISTANCE
    assert results["speed"]["matmul_peak_gflops"] == 1000.0
    assert (results["steps"], results["images"]) == (STEPS, 4 * STEPS)
    assert results["command"] == "limner demo --minutes 1"


def test_a_demo_says_both_figures_and_what_to_do_next(run: tuple[Path, str]) -> None:
    folder, said = run
    found = json.loads((folder / "results.json").read_text("utf-8"))["recall"]
    for split, shown in (("trained", "training"), ("held out", "held-out")):
        at_1, count = found[split]["at_1"], found[split]["count"]
        right = round(at_1 * count)
        assert f"{shown} prompts: recall@1 {at_1:.1%} ({right} of {count}); recall@5 " in said
    assert retrieval.DISTANCE in said
    assert str(folder / "samples.png") in said
    assert str(folder / "report.html") in said
    assert f"{STEPS} steps are too few to learn this" in said
    commands = [line.strip() for line in said.splitlines() if line.startswith("  limner ")]
    assert len(commands) == 5
    assert f'limner generate {folder} "a red apple" --seed 42' in commands
    assert commands[2].startswith(f"limner play {folder} ")
    assert commands[3].startswith(f"limner distill {folder} --output {folder}-fast ")
    assert "limner train my_pictures --minutes 10" in commands[4]


def test_a_report_of_a_demo_can_be_written_again(
    run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(run[0], tmp_path / "demo")
    before = json.loads((folder / "results.json").read_text("utf-8"))
    (folder / "report.html").unlink()
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:  # as if killed later on
        line = {"kind": "train", "step": 999, "images": 3996, "seconds": 600.0, "loss": 1.0}
        log.write(json.dumps(line) + "\n")
    assert main(["report", str(folder)]) == 0
    after = json.loads((folder / "results.json").read_text("utf-8"))
    for key in ("recall", "command", "images", "steps", "minutes", "sampling"):
        assert after[key] == before[key]
    prompts = [s["prompt"] for s in json.loads((folder / "samples.json").read_text("utf-8"))]
    assert prompts[-len(demo.FREE_PROMPTS) :] == list(demo.FREE_PROMPTS)
    assert "held-out prompts: " in capsys.readouterr().out
    assert (folder / "report.html").is_file()


# Folders


def test_a_demo_replaces_an_earlier_one(
    tiny_demo: None, run: tuple[Path, str], tmp_path: Path
) -> None:
    folder = shutil.copytree(run[0], tmp_path / "demo")
    (folder / "samples" / "999.png").write_bytes(b"of the earlier one")
    demo.run_demo(0.1, str(folder))
    assert not (folder / "samples" / "999.png").exists()
    assert len([e for e in read_log(folder / "log.jsonl") if e["kind"] == "speed"]) == 1


def test_a_demo_leaves_folders_of_others_alone(
    tiny_demo: None, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", "utf-8")
    trainer = Trainer(tiny_config("training.max_steps=1"))
    trainer.train()
    for folder in (tmp_path / "mine", trainer.folder):
        before = sorted(folder.rglob("*"))
        with pytest.raises(LimnerError, match="is not empty and is not an earlier demo"):
            demo.run_demo(0.1, str(folder))
        assert sorted(folder.rglob("*")) == before


def goes_on(folder: Path) -> None:
    settings = small(0.1, str(folder), torch.device("cpu")).model_dump(mode="json")
    settings["training"] |= {"max_steps": STEPS + 1, "learning_rate": 0.0005}
    Trainer(load_config(settings), resume="latest").train()


def reported(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text("utf-8"))
    (folder / "results.json").write_text(json.dumps(results | {"command": None}), "utf-8")


def drawn(folder: Path) -> None:
    (checkpoints(folder)[-1] / "favourite.png").write_bytes(b"mine")


@pytest.mark.parametrize(
    ("do", "told"),
    [(goes_on, "was trained further"), (reported, "further"), (drawn, "3/favourite.png")],
)
def test_a_demo_that_somebody_went_on_with_is_not_removed(
    do: Callable[[Path], None],
    told: str,
    tiny_demo: None,
    run: tuple[Path, str],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(run[0], tmp_path / "demo")
    do(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(LimnerError, match=f"began as a demo and .*{told}, so it is not removed"):
        demo.run_demo(0.1, str(folder))
    assert sorted(folder.rglob("*")) == before


def test_a_demo_that_was_interrupted_is_replaced_too(
    tiny_demo: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "demo"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            demo.run_demo(0.1, str(folder))
    assert not (folder / "samples.png").exists()
    demo.run_demo(0.1, str(folder))
    assert (folder / "samples.png").is_file()


# Settings


@pytest.mark.parametrize("minutes", [0.5, 3.0, 10.0, 60.0])
@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_drawing_has_its_share_of_the_minutes(minutes: float, kind: str) -> None:
    config = demo_config(minutes, "here", torch.device(kind))
    training = config.training
    assert training.max_minutes is not None
    assert 0.85 * minutes < training.max_minutes < minutes
    assert minutes - training.max_minutes < 1.3
    assert (training.max_steps, training.num_epochs) == (None, None)
    assert (training.device, training.output_dir) == (kind, "here")
    assert (config.data.dataset_name, config.data.subset) == ("emoji", "demo")


def test_a_gpu_does_more_in_the_same_time() -> None:
    cpu, gpu = (demo_config(10, "here", torch.device(kind)) for kind in ("cpu", "cuda"))
    work = []
    for config in (cpu, gpu):
        assert config.model.patch_size
        tokens = (config.data.image_size // config.model.patch_size) ** 2
        work.append(tokens * config.model.num_layers * config.model.hidden_size**2)
    assert work[1] > 2 * work[0]
    assert gpu.data.image_size >= cpu.data.image_size


def test_the_previewed_prompts_are_in_the_demo() -> None:
    data = open_data(demo_config(10, "here", torch.device("cpu")))
    captions = {caption for row in data.set.rows for caption in row.captions}
    free = {"a red apple", "红苹果"}
    assert set(demo.PREVIEW_PROMPTS) - free <= captions
    assert "红苹果" in captions
    unseen = {row.captions[0] for row in data.held_out.rows}
    assert unseen & set(demo.PREVIEW_PROMPTS)


# The evaluation at its end


def images(count: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, size, size, 3), generator=generator, dtype=torch.uint8)


def test_the_true_picture_is_its_own_nearest() -> None:
    everything = images(40)
    order = [7, 0, 39, 7]
    assert retrieval.ranks(everything[order], order, everything) == [1, 1, 1, 1]


def test_ranks_count_the_nearer_pictures() -> None:
    # Grey pictures: the distance is the difference in grey.
    greys = torch.tensor([0, 10, 20, 30, 200], dtype=torch.uint8)
    everything = greys[:, None, None, None].expand(5, 32, 32, 3).contiguous()
    drawn = torch.full((1, 32, 32, 3), 11, dtype=torch.uint8)
    ranks = [retrieval.ranks(drawn, [truth], everything)[0] for truth in range(5)]
    assert ranks == [3, 1, 2, 4, 5]


def test_equal_pictures_share_the_better_place() -> None:
    everything = images(6)
    everything[4] = everything[1]
    drawn = everything[[1, 1, 0]]
    assert retrieval.ranks(drawn, [1, 4, 1], everything)[:2] == [1, 1]
    assert retrieval.ranks(everything[[0]], [1], everything) == retrieval.ranks(
        everything[[0]], [4], everything
    )


def test_what_a_person_does_not_see_is_forgiven_and_a_shade_is_not() -> None:
    grey = torch.full((32, 32, 3), 120, dtype=torch.uint8)
    checkers = torch.full_like(grey, 80)
    checkers[::2, ::2] = checkers[1::2, 1::2] = 160
    everything = torch.stack([grey, checkers + 15])
    assert retrieval.ranks(checkers[None], [0], everything) == [1]


def test_recall_is_the_share_within_the_first() -> None:
    assert retrieval.summary([1, 1, 2, 5, 6, 300]) == {
        "count": 6,
        "at_1": round(2 / 6, 4),
        "at_5": round(4 / 6, 4),
    }


def perfect(data: Data, wrong: Callable[[str, int], bool]) -> Callable[..., list[Image.Image]]:
    """A generator that draws every caption's true picture, except where `wrong(prompt, place)`."""
    truth = {
        row.captions[0]: split.load(i).numpy()
        for split in (data.trained, data.held_out)
        for i, row in enumerate(split.rows)
    }

    def generate_batch(self: Any, prompts: list[str], **_: Any) -> list[Image.Image]:
        blank = np.zeros((16, 16, 3), dtype=np.uint8)
        return [
            Image.fromarray(blank if wrong(prompt, i) else truth.get(prompt, blank))
            for i, prompt in enumerate(prompts)
        ]

    return generate_batch


def test_a_perfect_model_gets_full_marks_and_a_blank_one_none(
    run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(run[0], tmp_path / "demo")
    config = load_config(folder / "config.yaml")
    data = open_data(config)
    monkeypatch.setattr(ImageGenerator, "generate_batch", perfect(data, lambda prompt, i: False))
    found = evaluate_run(folder, config, data)["recall"]
    assert [found[split]["at_1"] for split in ("trained", "held out")] == [1.0, 1.0]
    held_out = {row.captions[0] for row in data.held_out.rows}
    blank = perfect(data, lambda prompt, i: prompt in held_out)
    monkeypatch.setattr(ImageGenerator, "generate_batch", blank)
    found = evaluate_run(folder, config, data)["recall"]
    assert found["trained"]["at_1"] == 1.0
    assert found["held out"]["at_1"] < 0.1
    said = sentences_of_run({"recall": found})
    assert said[0].startswith(f"training prompts: recall@1 100.0% ({found['trained']['count']} of ")
    assert len(said) == 2


def test_drawing_ends_in_its_time_and_says_what_it_left_out(
    run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(run[0], tmp_path / "demo")
    config = load_config(folder / "config.yaml")
    data = open_data(config)
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    draw = perfect(data, lambda prompt, i: False)

    def slowly(self: Any, prompts: list[str], **how: Any) -> list[Image.Image]:
        nonlocal now
        now += len(prompts)  # a second each
        return draw(self, prompts, **how)

    monkeypatch.setattr(ImageGenerator, "generate_batch", slowly)
    results = evaluate_run(folder, config, data, ["a red apple"], seconds=100)
    assert 95 <= now <= 100
    drawn = results["drawn"]
    assert drawn["free"] == [1, 1]
    assert sum(n for n, _ in drawn.values()) == now
    for split in ("trained", "held out"):
        (n, of), found = drawn[split], results["recall"][split]
        assert found["count"] == n
        assert n / of == pytest.approx(99 / 335, abs=0.03)  # evenly, of both
        assert found["at_1"] == 1
    said = f"recall of {drawn['trained'][0]} of 296 training captions and {drawn['held out'][0]} of"
    assert sentences_of_run(results)[0].startswith(said)
    # Also the pictures that are kept come from all over the set.
    kept = json.loads((folder / "samples.json").read_text("utf-8"))
    rows = [row.captions[0] for row in data.trained.rows]
    places = [rows.index(s["prompt"]) for s in kept if s["split"] == "trained"]
    assert min(places) < 15
    assert max(places) > 280
    # However late it is, something is drawn.
    now = 0.0
    results = evaluate_run(folder, config, data, seconds=-5)
    assert now == 16
    assert "drawn" not in evaluate_run(folder, config, data, seconds=1e6)


def test_shapes_are_read_back_by_the_checker(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("data.image_size=32", "data.num_samples=60", "training.max_steps=1")
    trainer = Trainer(config)
    trainer.train()
    data = open_data(config)
    monkeypatch.setattr(ImageGenerator, "generate_batch", perfect(data, lambda prompt, i: False))
    results = evaluate_run(trainer.folder, config, data)
    found = results["checker"]
    assert found["trained"]["count"] + found["held out"]["count"] == 60
    for split in ("trained", "held out"):
        assert found[split]["all_right"] == 1.0
        assert set(found[split]["by_part"].values()) == {1.0}
        assert {"colour", "shape"} <= set(found[split]["by_part"])
    samples = json.loads((trainer.folder / "samples.json").read_text("utf-8"))
    assert all(sample["right"] for sample in samples)
    monkeypatch.setattr(
        ImageGenerator, "generate_batch", perfect(data, lambda prompt, i: i % 2 == 0)
    )
    found = evaluate_run(trainer.folder, config, data)["checker"]
    count = found["trained"]["count"]
    assert found["trained"]["all_right"] == pytest.approx((count // 2) / count, abs=1e-4)
    sentence = sentences_of_run({"checker": found})[0]
    right = found["trained"]["all_right"]
    assert sentence.startswith(f"training prompts: {right:.1%} of {count} fully correct ")
    assert f"colour {found['trained']['by_part']['colour']:.0%}" in sentence
