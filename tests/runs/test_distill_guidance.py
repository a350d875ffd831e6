"""Students whose guidance scale stays a setting: `distill.guidance_scale` is a range."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import keep_modules_in, load
from PIL import Image
from runs import events
from students import COUNT, Build, weights

from limner.apps.distill import distill_config
from limner.apps.play.painter import Painter
from limner.apps.publishing.export import export
from limner.apps.sweep import sweep as sweeping
from limner.cli import main
from limner.config import SamplingConfig, load_config
from limner.errors import LimnerError
from limner.files.fingerprints import digest
from limner.inference.generator import ImageGenerator
from limner.inference.saving import how_drawn
from limner.training.distillation.pairs import TrajectoryPairs
from limner.training.distillation.teacher import open_teacher
from limner.training.distillation.trajectories import (
    Drawing,
    draw_trajectories,
    held_out_drawings,
    spread,
    trained_drawings,
)
from limner.training.trainer import Trainer

LOW, HIGH = 1.5, 6.0
RANGE = f"distill.guidance_scale=[{LOW}, {HIGH}]"


@pytest.fixture(scope="module")
def guided(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of a student that is told the guidance scale; only to be read."""
    folder = tmp_path_factory.mktemp("guided")
    words = [f"cache.folder='{folder / 'cache'}'", f"distill.num_trajectories={COUNT}"]
    words += ["training.max_steps=60", "training.save_steps=30", "training.preview_steps=60"]
    words += ["training.heldout_steps=20", RANGE]
    Trainer(distill_config(str(trained / "outputs"), str(folder / "run"), None, words)).train()
    return folder / "run"


# What it learns from


def test_any_number_of_trajectories_has_all_parts_of_the_range() -> None:
    for count in (8, 100, 1000):
        scales = sorted(spread(number, LOW, HIGH, seed=0) for number in range(count))
        assert LOW <= scales[0] <= scales[-1] <= HIGH
        gaps = np.diff([LOW, *scales, HIGH])
        assert gaps.max() < 3 * (HIGH - LOW) / count
    assert spread(5, LOW, HIGH, seed=0) == spread(5, LOW, HIGH, seed=0)
    assert spread(5, LOW, HIGH, seed=0) != spread(5, LOW, HIGH, seed=1)


def test_each_trajectory_has_its_scale_and_a_longer_run_has_the_same_ones(build: Build) -> None:
    config = build(RANGE)
    run = Trainer(config).run
    rows = run.data.trained.rows
    drawings = trained_drawings(run.config, rows)
    assert len({d.guidance for d in drawings}) == COUNT
    longer = trained_drawings(build(RANGE, f"distill.num_trajectories={2 * COUNT}"), rows)
    assert longer[:COUNT] == drawings
    measured = held_out_drawings(run.config, run.data)
    assert {d.guidance for d in measured} == {config.sampling.guidance_scale} == {3.0}
    assert run.inputs.trajectories is not None
    pairs = TrajectoryPairs(run.inputs.trajectories[0], run.inputs.words, run.config)
    for count in range(40):
        drawing = drawings[pairs.order.position(count)]
        assert drawing.guidance is not None
        assert pairs[count].u[2] == pytest.approx(drawing.guidance)


def test_one_scale_for_all_is_stored_as_it_always_was(build: Build) -> None:
    drawings = trained_drawings(build(), Trainer(build()).run.data.trained.rows)
    assert {d.guidance for d in drawings} == {None}
    assert Drawing("a red circle", 7).id == digest("a red circle", "7")
    ids = {Drawing("a red circle", 7, scale).id for scale in (None, 1.0, 1.5)}
    assert len(ids) == 3
    of_one, of_some, of_others = (
        open_teacher(build(*words)).fingerprint
        for words in (["distill.guidance_scale=3"], [RANGE], ["distill.guidance_scale=[1, 3]"])
    )
    assert len({of_one, of_some, of_others}) == 3
    other_default = build(RANGE, "sampling.guidance_scale=2")  # draws the same trajectories
    assert open_teacher(other_default).fingerprint == of_some


@pytest.mark.parametrize("kind", ["cfg", "cfg_zero_star", "apg"])
def test_a_trajectory_ends_where_a_drawing_with_its_scale_does(kind: str, trained: Path) -> None:
    """Whatever is beside it, and whatever the scale of the settings is."""
    generator = ImageGenerator(trained / "outputs", device="cpu")
    sampling = SamplingConfig(
        scheduler_type="ddim", num_inference_steps=4, guidance_scale=1.0,
        guidance_interval=(0.1, 0.9), guidance_rescale=0.3,
    ).model_copy(update={"guidance_type": kind})  # fmt: skip
    scales = (1.0, 2.5, 6.0)
    drawings = [Drawing("a red circle", 7, scale) for scale in scales]
    states = draw_trajectories(
        generator.model, generator.objective, generator.words, drawings, sampling, (3, 16, 16),
        torch.float32,
    )  # fmt: skip
    ends = states[:, -1]
    for scale, end in zip(scales, ends, strict=True):
        how = sampling.model_dump() | {"guidance_scale": scale}
        image = generator.generate("a red circle", seed=7, **how)
        shown = torch.from_numpy(np.array(image)).float()
        assert (((end.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255) - shown).abs().max() <= 1
    assert (ends[0] - ends[2]).abs().max() > 0.01


# Training


def test_the_scale_that_it_is_told_becomes_the_scale_of_its_teacher(
    guided: Path, trained: Path
) -> None:
    student = weights(guided / "checkpoint-60")
    assert student["denoiser.guidance_embedding.mlp.2.weight"].abs().max() > 0
    losses = [event["loss_by_level"]["1"] for event in events(guided, "heldout")]
    assert losses[-1] < losses[0]
    with Image.open(guided / "previews" / "step-000060.png") as sheet:
        assert sheet.height > 3 * 96
    config = load_config(guided / "checkpoint-60" / "config.yaml")
    assert config.distill.guidance_range == (LOW, HIGH)
    assert config.sampling.guidance_scale == 3.0  # its teacher's
    assert config.distill.fingerprint == open_teacher(config).fingerprint


def test_a_resumed_run_is_the_same_run(build: Build, tmp_path: Path) -> None:
    whole = build(RANGE, name="whole")
    Trainer(whole).train()
    folder = Path(whole.training.output_dir)
    Trainer(build(RANGE, name="again"), resume=folder / "checkpoint-3").train()
    one, other = (weights(home / "checkpoint-6") for home in (folder, tmp_path / "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    for words in ([], ["distill.guidance_scale=[1, 4]"]):
        with pytest.raises(LimnerError, match=r"distill\.guidance_scale: \(1\.5, 6\.0\) in the"):
            Trainer(build(*words, name="whole"))


@pytest.mark.parametrize("architecture", ["modern", "dit"])
def test_both_architectures_are_told(architecture: str, tiny_config: Build, tmp_path: Path) -> None:
    teacher = tiny_config(f"model.architecture={architecture}", "training.max_steps=1")
    Trainer(teacher).train()
    words = [f"cache.folder='{tmp_path / 'cache'}'", "distill.num_trajectories=4", RANGE]
    words += ["training.max_steps=2", "training.save_steps=2"]
    student = str(tmp_path / "s")
    Trainer(distill_config(teacher.training.output_dir, student, None, words)).train()
    generator = ImageGenerator(student, device="cpu")
    assert generator.model.takes_guidance
    generator.generate("a red circle", guidance_scale=LOW)


# The default


@pytest.mark.parametrize(
    ("scale", "default"), [("[1, 6]", 3.0), ("[4, 8]", 6.0), ("[0, 2]", 1.0), ("5", 1.0)]
)
def test_it_draws_with_its_teachers_scale_or_the_middle(
    scale: str, default: float, build: Build
) -> None:
    assert build(f"distill.guidance_scale={scale}").sampling.guidance_scale == default
    if scale == "[1, 6]":
        chosen = build(f"distill.guidance_scale={scale}", "sampling.guidance_scale=2")
        assert chosen.sampling.guidance_scale == 2.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["distill.guidance_scale=[6, 1]"], r"\[6, 1\] must be below the second"),
        (["distill.guidance_scale=[2, 2]"], "use a single number"),
        (["distill.guidance_scale=[1, 2, 3]"], r"distill\.guidance_scale"),
        ([RANGE, "sampling.guidance_scale=1"], "distilled for guidance scales from 1.5 to 6"),
        ([RANGE, "sampling.guidance_interval=[0.1, 0.9]"], "fixed when it was made"),
        ([RANGE, "sampling.guidance_type=apg"], "fixed when it was made"),
        ([RANGE, "sampling.guidance_rescale=0.5"], "fixed when it was made"),
    ],
)
def test_settings_that_cannot_be(words: list[str], said: str, build: Build) -> None:
    with pytest.raises(LimnerError, match=said):
        build(*words)


# Drawing


def test_it_draws_with_any_scale_of_its_range(guided: Path, tmp_path: Path) -> None:
    generator = ImageGenerator(guided, device="cpu")
    told = list[float]()
    forward = generator.model.denoiser.forward

    def counted(*inputs: torch.Tensor) -> torch.Tensor:
        told.append(float(inputs[4][0]))
        return forward(*inputs)  # type: ignore[arg-type]

    generator.model.denoiser.forward = counted  # type: ignore[method-assign, assignment]
    drawn = {}
    for scale, steps in ((None, 2), (LOW, 1), (HIGH, 1), (HIGH, 4)):
        told.clear()
        drawn[scale, steps] = generator.generate(
            "a red circle", guidance_scale=scale, num_inference_steps=steps, seed=3
        )
        assert told == [3.0 if scale is None else scale] * steps, "one evaluation for each step"
    assert how_drawn(drawn[HIGH, 1])["sampling"]["guidance_scale"] == HIGH
    assert not np.array_equal(np.asarray(drawn[LOW, 1]), np.asarray(drawn[HIGH, 1]))
    output = tmp_path / "a.png"
    words = ["generate", str(guided), "a red circle", "--guidance_scale", "4.5", "--output"]
    assert main([*words, str(output)]) == 0
    with Image.open(output) as image:
        assert how_drawn(image)["sampling"]["guidance_scale"] == 4.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"guidance_scale": 1.0}, "distilled for guidance scales from 1.5 to 6; use one of these"),
        ({"guidance_scale": 6.5}, "distilled for guidance scales from 1.5 to 6"),
        ({"guidance_interval": (0.2, 0.8)}, r"sampling\.guidance_interval: .*fixed when it was"),
        ({"negative_prompt": "a dog"}, "cannot be guided away"),
    ],
)
def test_what_it_did_not_learn_is_refused(
    settings: dict[str, object], said: str, guided: Path
) -> None:
    with pytest.raises(LimnerError, match=said):
        ImageGenerator(guided, device="cpu").generate("a red circle", **settings)  # type: ignore[arg-type]


def test_it_draws_the_same_from_one_file_and_from_a_folder_for_diffusers(
    guided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_modules_in(tmp_path / "modules", monkeypatch)
    file = export(guided, tmp_path / "one.safetensors", "safetensors")
    pipeline = load(export(guided, tmp_path / "folder", "diffusers"))
    for scale in (None, LOW, 4.25):
        own, of_file, of_folder = (
            np.asarray(image, dtype=int)
            for image in (
                ImageGenerator(guided, device="cpu").generate(
                    "a red circle", guidance_scale=scale, seed=5
                ),
                ImageGenerator(file, device="cpu").generate(
                    "a red circle", guidance_scale=scale, seed=5
                ),
                pipeline(
                    "a red circle",
                    guidance_scale=scale,
                    generator=torch.Generator().manual_seed(5),
                ).images[0],
            )
        )
        assert np.array_equal(own, of_file)
        assert abs(own - of_folder).max() <= 1
    for settings, said in (
        ({"guidance_scale": 1.0}, "guidance_scale from 1.5 to 6; got 1.0"),
        ({"guidance_interval": (0.1, 0.9)}, "only the scale is a setting"),
        ({"negative_prompt": "a dog"}, "only the scale is a setting"),
    ):
        with pytest.raises(ValueError, match=said):
            pipeline("a red circle", **settings)


def test_the_pages_and_the_card_know_its_range(guided: Path, tmp_path: Path) -> None:
    about = Painter(guided, device="cpu").about()
    assert (about["distilled"], about["guidance_range"]) == (True, (LOW, HIGH))
    words = ["publish", str(guided), "--repo", "me/few", "--dry-run", "--output"]
    assert main([*words, str(tmp_path / "p")]) == 0
    card = (tmp_path / "p" / "README.md").read_text("utf-8")
    assert "with a guidance scale from 1.5 to 6 (`guidance_scale`)" in card
    assert "its guidance is fixed" not in card


def test_a_sweep_chooses_its_scale(
    guided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoint-60"
    shutil.copytree(guided / "checkpoint-60", checkpoint)

    def no_network(device: object) -> None:
        raise LimnerError("no network of features")  # what prompts name decides

    monkeypatch.setattr(sweeping, "EfficientNet", no_network)
    result = sweeping.sweep(checkpoint, costs=[1, 2], images=4, device="cpu", store=False)
    assert [row.sampling.num_inference_steps for row in result.rows] == [2, 1, 2]
    assert [row.chosen.cost for row in result.rows] == [2, 1, 2]
    measured = json.loads((checkpoint / "sweep.json").read_text("utf-8"))["measured"]
    scales = {m["sampling"]["guidance_scale"] for m in measured}
    assert scales == {LOW, 2.0, 3.0, 4.0, HIGH}
    assert all(LOW <= row.sampling.guidance_scale <= HIGH for row in result.rows)


def test_the_comparison_shows_both_ends_of_its_range(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], quick_end: None
) -> None:
    words = ["distill", str(trained / "outputs"), "--output", str(tmp_path / "s"), "--minutes", "1"]
    words += [f"cache.folder={tmp_path / 'cache'}", f"distill.num_trajectories={COUNT}", RANGE]
    assert main([*words, "training.max_steps=2"]) == 0
    said = capsys.readouterr().out
    assert "student, 2 steps, guidance 3: 2 evaluations of" in said
    written = json.loads((tmp_path / "s" / "comparison.json").read_text("utf-8"))
    assert [(way["name"].partition(",")[0], way["evaluations"]) for way in written] == [
        *(("teacher", 4), ("teacher", 8), ("student", 1), ("student", 2), ("student", 4)),
        *(("teacher", 4), ("student", 2), ("teacher", 4), ("student", 2)),
    ]
    assert [way["name"] for way in written if way["name"].startswith("student, 2")] == [
        f"student, 2 steps, guidance {scale}" for scale in ("3", "1.5", "6")
    ]
