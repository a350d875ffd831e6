"""Distillation: the student of a teacher, from its first step to its pictures."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import events, messages
from students import COUNT, Build, weights

from limner.apps import distill as distill_module
from limner.apps.distill import Way, compare, distill, distill_config, shortfalls
from limner.apps.play.painter import Painter
from limner.apps.sweep import sweep as sweeping
from limner.apps.sweep.store_settings import store_sampling
from limner.checkpoint.folder import Checkpoint, load_tensors
from limner.checkpoint.lineage import read_lineage
from limner.checkpoint.open_model import open_model
from limner.cli import main
from limner.config import load_config
from limner.data.dataset import ImageError
from limner.data.open import open_data
from limner.diffusion.objective import build_objective
from limner.errors import LimnerError
from limner.files.full_disk import in_units
from limner.inference.generator import ImageGenerator
from limner.training.distillation import trajectories
from limner.training.distillation.pairs import TrajectoryPairs
from limner.training.distillation.teacher import open_teacher
from limner.training.distillation.trajectories import (
    Trajectories,
)
from limner.training.precompute import check_cache_folder
from limner.training.trainer import Trainer

# Training


def test_what_was_drawn_before_a_kill_is_kept_and_the_run_is_the_same(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trajectories, "AT_ONCE", 4)  # of both: some processors round by the batch
    whole = build(f"cache.folder='{tmp_path / 'other'}'", name="whole")
    Trainer(whole).train()

    draw, drawn = trajectories.draw_trajectories, list[int]()

    def killed(*arguments: object) -> torch.Tensor:
        if len(drawn) == 3:
            raise KeyboardInterrupt
        found = draw(*arguments)  # type: ignore[arg-type]
        drawn.append(len(found))
        return found

    monkeypatch.setattr(trajectories, "draw_trajectories", killed)
    with pytest.raises(KeyboardInterrupt):
        Trainer(build()).train()
    assert drawn == [4, 4, 4]
    monkeypatch.setattr(
        trajectories,
        "draw_trajectories",
        lambda *arguments: (drawn.append(1), draw(*arguments))[1],  # type: ignore[arg-type]
    )
    config = build()
    Trainer(config).train()
    assert len(drawn) == 3 + 4  # 25 drawings, of which 12 were there
    folder = Path(config.training.output_dir)
    for name in ("checkpoint-3", "checkpoint-6"):
        one, other = weights(folder / name), weights(Path(whole.training.output_dir) / name)
        assert all(torch.equal(one[key], other[key]) for key in other)


def test_a_resumed_run_is_the_same_run(build: Build, tmp_path: Path) -> None:
    whole = Path(build(name="whole").training.output_dir)
    Trainer(build(name="whole")).train()
    Trainer(build(name="again"), resume=whole / "checkpoint-3").train()
    for file in ("model.pt", "ema.safetensors"):
        one = _tensors(whole / "checkpoint-6" / file)
        other = _tensors(tmp_path / "again" / "checkpoint-6" / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path) if path.suffix == ".safetensors" else load_tensors(path)


def test_the_student_comes_nearer_to_its_teacher_and_the_words_stay(
    build: Build, trained: Path
) -> None:
    config = build("training.max_steps=150", "training.heldout_steps=50", "optimizer.type=adamw")
    Trainer(config).train()
    folder = Path(config.training.output_dir)
    losses = [event["loss_by_level"] for event in events(folder, "heldout")]
    assert set(losses[0]) == {"1", "2", "4"}
    assert losses[-1]["1"] < 0.8 * losses[0]["1"]
    student = weights(folder / "checkpoint-150")
    teacher = _tensors(trained / "outputs" / "checkpoint-6" / "ema.safetensors")
    for name, tensor in teacher.items():
        if name.startswith("text_encoder."):
            assert torch.equal(student[name], tensor), name
    assert student["denoiser.span_embedding.mlp.2.weight"].abs().max() > 0


@pytest.mark.parametrize("kind", ["sample", "velocity", "epsilon"])
@pytest.mark.parametrize("architecture", ["modern", "dit"])
def test_at_first_it_draws_as_its_teacher_does_without_guidance(
    kind: str, architecture: str, tiny_config: Build, tmp_path: Path
) -> None:
    config = tiny_config(
        f"model.architecture={architecture}", f"scheduler.prediction_type={kind}",
        "scheduler.objective=flow_matching", "training.max_steps=1",
    )  # fmt: skip
    Trainer(config).train()
    folder = config.training.output_dir
    words = [f"cache.folder='{tmp_path / 'cache'}'", "distill.num_trajectories=4"]
    words.append("training.max_steps=1")
    student = distill_config(
        folder, str(tmp_path / "s"), None, [*words, "training.learning_rate=1e-30"]
    )
    Trainer(student).train()
    assert events(tmp_path / "s", "train")
    usual = {"scheduler_type": "ddim", "num_inference_steps": 4}
    teacher = ImageGenerator(folder, device="cpu")
    one = teacher.generate("a red circle", guidance_scale=1.0, **usual)
    other = ImageGenerator(tmp_path / "s", device="cpu").generate("a red circle", **usual)
    difference = np.asarray(one, dtype=int) - np.asarray(other, dtype=int)
    assert abs(difference).max() <= 1


def test_its_run_folder_says_what_it_is(distilled: Path, trained: Path) -> None:
    lineage = read_lineage(distilled)
    assert lineage is not None
    assert lineage.method == "distilled"
    assert lineage.base is not None
    said = messages(distilled)
    assert any(f"{COUNT + 1} trajectories of 8 steps to draw once" in line for line in said)
    with Image.open(distilled / "previews" / "step-000006.png") as sheet:
        assert sheet.height > 3 * 96  # in 1, 2, and 4 steps
    config = load_config(distilled / "checkpoint-6" / "config.yaml")
    assert config.distill.fingerprint == open_teacher(config).fingerprint


# Drawing


def open_student_times(generator: ImageGenerator) -> list[float]:
    own, schedule = generator.sampling, generator.objective.noise_schedule
    return schedule.inference_timesteps(8, own.shift, own.timestep_power).tolist()


def test_it_draws_in_one_step_or_two_or_more(
    distilled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generator = ImageGenerator(distilled, device="cpu")
    assert generator.sampling.num_inference_steps == 2
    calls = list[tuple[float, float]]()
    forward = generator.model.denoiser.forward

    def counted(
        x: torch.Tensor, t: torch.Tensor, y: object, span: torch.Tensor, guidance: None
    ) -> torch.Tensor:
        calls.append((float(t[0]), float(span[0])))
        return forward(x, t, y, span)  # type: ignore[arg-type]

    generator.model.denoiser.forward = counted  # type: ignore[method-assign, assignment]
    for steps in (1, 2, 4, 3):
        calls.clear()
        image = generator.generate("a red circle", num_inference_steps=steps, seed=3)
        assert image.size == (16, 16)
        assert len(calls) == steps
        assert sum(span for _, span in calls) == pytest.approx(1000)
        assert calls[0][0] == 1000
    assert "distilled for 1, 2, 4, or 8 steps" in caplog.text
    output = tmp_path / "a.png"
    words = ["generate", str(distilled), "a red circle", "--num_inference_steps", "1"]
    assert main([*words, "--output", str(output)]) == 0
    assert output.is_file()
    generator.interpolate("a red circle", "a blue square", count=3)

    known = open_student_times(generator)
    for strength, steps in ((0.5, 2), (0.7, 1), (0.2, 4)):
        calls.clear()
        generator.generate(
            "a red circle", init_image=output, strength=strength, num_inference_steps=steps
        )
        for time, span in calls:
            i, j = (min(range(9), key=lambda k: abs(known[k] - t)) for t in (time, time - span))
            assert (known[i], known[i] - known[j]) == pytest.approx((time, span))
            assert i % (j - i) == 0, "a step that it has learned"
    unchanged = generator.generate("a red circle", init_image=output, strength=0.0)
    assert np.array_equal(np.asarray(unchanged), np.asarray(Image.open(output)))


def test_a_sweep_compares_its_numbers_of_steps(
    distilled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoint-6"
    shutil.copytree(distilled / "checkpoint-6", checkpoint)

    def no_network(device: object) -> None:
        raise LimnerError("no network of features")  # what prompts name decides

    monkeypatch.setattr(sweeping, "EfficientNet", no_network)
    result = sweeping.sweep(checkpoint, images=4, device="cpu", store_cost=4)
    assert [row.name for row in result.rows] == ["before", "1", "2", "4", "8"]
    assert [row.sampling.num_inference_steps for row in result.rows] == [2, 1, 2, 4, 8]
    assert result.finished
    assert ImageGenerator(checkpoint, device="cpu").sampling.num_inference_steps == 4
    asked = sweeping.sweep(checkpoint, costs=[3, 5], images=4, device="cpu", store=False)
    assert [row.sampling.num_inference_steps for row in asked.rows] == [2, 2, 4]


def test_it_draws_the_same_from_one_file(distilled: Path, tmp_path: Path) -> None:
    """Whose configuration does not say any more where the teacher was."""
    file = tmp_path / "one.safetensors"
    assert main(["export", str(distilled), "--output", str(file)]) == 0
    for steps in (1, 2):
        one, other = (
            np.asarray(
                ImageGenerator(model, device="cpu").generate(
                    "a red circle", num_inference_steps=steps
                )
            )
            for model in (distilled, file)
        )
        assert np.array_equal(one, other)


def test_it_is_published_with_the_model_that_it_was_made_from(
    distilled: Path, trained: Path, tmp_path: Path
) -> None:
    words = ["publish", str(distilled), "--repo", "me/in_few", "--dry-run", "--output"]
    assert main([*words, str(tmp_path / "both")]) == 0
    teacher = tmp_path / "both" / "teacher.safetensors"
    how = {"prompt": "a red circle", "num_inference_steps": 2, "seed": 1}
    one, other = (
        np.asarray(ImageGenerator(model, device="cpu").generate(**how))  # type: ignore[arg-type]
        for model in (trained / "outputs", teacher)
    )
    assert np.array_equal(one, other)
    card = (tmp_path / "both" / "README.md").read_text("utf-8")
    assert "limner train training.init_from=in_few/teacher.safetensors" in card
    assert "distilled with Limner from `teacher.safetensors`" in card
    assert "not public" not in card
    assert "from_config" not in card, "its pipeline takes no other scheduler"
    lineage = open_model(teacher).lineage
    assert (lineage.method, lineage.model) == ("full", "me/in_few")

    assert main([*words, str(tmp_path / "alone"), "--without_teacher"]) == 0
    assert not (tmp_path / "alone" / "teacher.safetensors").exists()
    assert "teacher" not in (tmp_path / "alone" / "README.md").read_text("utf-8")


def test_a_teacher_that_was_swept_since_is_published_and_one_that_changed_is_not(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(trained / "outputs", teacher)
    few = [f"cache.folder='{tmp_path / 'cache'}'", f"distill.num_trajectories={COUNT}"]
    words = (str(teacher), str(tmp_path / "student"), None, [*few, "training.max_steps=2"])
    trainer = Trainer(distill_config(*words))
    trainer.train()
    (checkpoint,) = {trainer.config.training.init_from}
    assert checkpoint is not None
    assert Path(checkpoint) == teacher / "checkpoint-6"
    store_sampling(Path(checkpoint), trainer.config.sampling)
    publish = ["publish", str(tmp_path / "student"), "--repo", "me/fast", "--dry-run", "--output"]
    assert main([*publish, str(tmp_path / "swept")]) == 0
    assert (tmp_path / "swept" / "teacher.safetensors").is_file()
    with pytest.raises(LimnerError, match="draws with other settings than when this run began"):
        Trainer(distill_config(*words))

    shutil.rmtree(checkpoint)
    caplog.clear()
    assert main([*publish, str(tmp_path / "gone")]) == 0
    assert not (tmp_path / "gone" / "teacher.safetensors").exists()
    assert "the teacher is not published with it" in caplog.text


def test_the_same_command_goes_on_although_the_teacher_did(trained: Path, tmp_path: Path) -> None:
    teacher, student = tmp_path / "teacher", str(tmp_path / "student")
    shutil.copytree(trained / "outputs", teacher)
    few = [f"cache.folder='{tmp_path / 'cache'}'", f"distill.num_trajectories={COUNT}"]
    few += ["training.save_steps=1"]
    few += ["training.max_steps=2"]
    first = distill_config(str(teacher), student, 5.0, few)
    Trainer(first).train()
    shutil.copytree(teacher / "checkpoint-6", teacher / "checkpoint-7")
    again = distill_config(str(teacher), student, None, few).training
    assert (again.init_from, again.max_minutes) == (first.training.init_from, 5.0)
    assert distill(str(teacher), student, 6.0, few) == Path(student)
    assert load_config(Path(student) / "config.yaml").training.max_minutes == 6.0
    other = distill_config(str(teacher), str(tmp_path / "another"), 5.0, few).training
    assert other.init_from == str(teacher / "checkpoint-7")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"guidance_scale": 3.0}, "guidance of a distilled model was fixed"),
        ({"scheduler_type": "unipc"}, "use ddim"),
        ({"zero_init_steps": 1}, "zero_init_steps"),
        ({"negative_prompt": "a dog"}, "cannot be guided away"),
    ],
)
def test_what_it_no_longer_has_is_said(
    settings: dict[str, object], said: str, distilled: Path
) -> None:
    generator = ImageGenerator(distilled, device="cpu")
    with pytest.raises(LimnerError, match=said):
        generator.generate("a red circle", **settings)  # type: ignore[arg-type]


def test_the_page_in_the_browser_is_told(distilled: Path) -> None:
    assert Painter(distilled, device="cpu").about()["distilled"] is True


# What is refused


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.buckets=auto", r"data\.buckets: not supported"),
        ("lora.rank=4", r"lora\.rank: not supported"),
        ("training.batch_size=auto", r"training\.batch_size: auto is not supported"),
        ("sampling.scheduler_type=heun", r"sampling\.scheduler_type"),
        ("model.num_layers=3", r"model\.num_layers is 3 here and 2 there"),
        ("data.image_size=32", r"data\.image_size is 32 here and 16 there"),
        ("distill.num_inference_steps=0", r"distill\.num_inference_steps"),
        ("distill.num_inference_steps=6", r"6 is not a multiple of 4"),
        ("text_encoder.max_length=5", r"text_encoder\.max_length is 5 here and"),
    ],
)
def test_settings_that_cannot_be(word: str, said: str, build: Build) -> None:
    with pytest.raises(LimnerError, match=said):
        Trainer(build(*word.split()))


def test_its_trajectories_are_not_kept_among_the_images(build: Build, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    words = ["data.dataset_name=null", f"data.dataset_path='{tmp_path / 'photos'}'"]
    check_cache_folder(build(*words))
    with pytest.raises(LimnerError, match=r"cache\.folder: .*is inside the data folder"):
        check_cache_folder(build(*words, f"cache.folder='{tmp_path / 'photos' / 'cache'}'"))


def test_a_distilled_model_is_no_guide(distilled: Path, trained: Path) -> None:
    with pytest.raises(LimnerError, match="is a distilled model, which cannot guide"):
        ImageGenerator(trained / "outputs", device="cpu", guide=distilled)


def test_a_student_has_no_students_and_is_not_tuned(
    distilled: Path, build: Build, tiny_config: Build
) -> None:
    with pytest.raises(LimnerError, match="cannot be trained further; fine-tune the model it was"):
        Trainer(build(f"training.init_from='{distilled}'"))
    with pytest.raises(LimnerError, match="cannot be trained further"):
        Trainer(tiny_config(f"training.init_from='{distilled}'", "model.flow_map=false"))
    with pytest.raises(LimnerError, match=r"model\.flow_map: .*set training\.init_from"):
        Trainer(tiny_config("model.flow_map=true"))
    with pytest.raises(LimnerError, match=r"distill\.guidance_scale: has no effect without"):
        load_config(None, ["distill.guidance_scale=2"])


def test_another_teacher_does_not_take_over(
    distilled: Path, trained: Path, build: Build, tmp_path: Path
) -> None:
    config = load_config(distilled / "checkpoint-6" / "config.yaml")
    told = [f"distill.fingerprint={'0' * 32}", f"training.output_dir='{tmp_path / 'x'}'"]
    other = load_config(config.model_dump(mode="json"), told)
    with pytest.raises(LimnerError, match="is not the teacher that this run began with"):
        open_teacher(other)
    assert open_teacher(config).sampling.guidance_scale == 3.0
    stronger = build("distill.guidance_scale=5")
    assert open_teacher(stronger).sampling.guidance_scale == 5.0
    assert open_teacher(stronger).fingerprint != config.distill.fingerprint


def test_a_damaged_trajectory_is_listed_and_the_next_one_stands_in(build: Build) -> None:
    run = Trainer(build()).run
    assert run.inputs.trajectories is not None
    own = run.inputs.trajectories[0]
    pairs = TrajectoryPairs(own, run.inputs.words, run.config)
    number = pairs.order.position(5)
    states = own.states

    class Damaged(Trajectories):
        def states(self, which: int) -> torch.Tensor:
            if which == number:
                raise ImageError("damaged")
            return states(which)

    damaged = Damaged(own.store, own.drawings, own.timesteps)
    example = TrajectoryPairs(damaged, run.inputs.words, run.config)[5]
    assert [refused.key for refused in example.refused] == [f"trajectory {number}"]
    assert torch.isfinite(example.image).all()


# The command


def test_it_ends_with_teacher_and_student_side_by_side(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], quick_end: None
) -> None:
    words = ["distill", str(trained / "outputs"), "--output", str(tmp_path / "s"), "--minutes", "1"]
    words += [f"cache.folder={tmp_path / 'cache'}", f"distill.num_trajectories={COUNT}"]
    assert main([*words, "training.max_steps=4"]) == 0
    said = capsys.readouterr().out
    assert "teacher, dpmsolver++, 2 steps, guidance 3: 4 evaluations" in said
    for line in ("student, 1 step: 1 evaluation of", "student, 2 steps: 2 evaluations of"):
        assert line in said
    assert "randomly initialised" not in said
    assert "added, to draw in few steps: denoiser.span_embedding, denoiser.input_paths\n" in said
    assert said.index("comparing the student with its teacher:") < said.index("teacher, dpm")
    (store,) = (tmp_path / "cache").glob("trajectories-*")
    size = in_units(sum(path.stat().st_size for path in store.rglob("*")))
    assert f"{store} ({size}) has what the teacher drew" in said
    written = json.loads((tmp_path / "s" / "comparison.json").read_text("utf-8"))
    assert [way["evaluations"] for way in written] == [4, 8, 1, 2, 4]
    with Image.open(tmp_path / "s" / "comparison.png") as sheet:
        assert sheet.width > 300
    page = (tmp_path / "s" / "report.html").read_text("utf-8")
    assert "distilled from" in page
    assert "difference from the teacher's images" in page
    assert "by noise level" not in page
    assert main(["distill", str(tmp_path / "s"), "--output", str(tmp_path / "t")]) != 0
    outputs = str(trained / "outputs")
    assert main(["distill", outputs, "--output", outputs]) != 0
    assert "the teacher's own folder" in capsys.readouterr().err


def test_each_way_of_drawing_is_told_when_it_is_measured(
    trained: Path, distilled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    @contextlib.contextmanager
    def shown(log: object, what: str) -> Iterator[Callable[[float, int], None]]:
        yield lambda done, total: told.append(f"{done:g} of {total} {what}")

    monkeypatch.setattr(distill_module, "progress_shown", shown)
    opened = Checkpoint.open(distilled)
    ways = compare(str(trained / "outputs"), distilled, opened.config, open_data(opened.config, 4))
    assert told == []
    assert next(ways).name.startswith("teacher")
    assert told[-1] == "24 of 24 images drawn to compare"
    first = len(told)
    next(ways)
    assert len(told) > first


def test_it_says_where_the_student_falls_short() -> None:
    def way(name: str, trained: float, held_out: float) -> Way:
        return Way(name, 1, 1.0, [], {"trained": trained, "held out": held_out})

    teacher = way("teacher", 0.97, 0.95)
    students = [way("student, 1 step", 0.96, 0.6), way("student, 2 steps", 0.98, 0.93)]
    (said,) = shortfalls(teacher, students)
    assert said.startswith(
        "student, 1 step: 35% of the held-out prompts are right with the teacher"
    )
    assert "--minutes" in said
    assert shortfalls(Way("teacher", 1, 1.0, [], {}), students) == []  # nobody knows what is right


def test_objective_of_the_student_is_its_teachers(build: Build, trained: Path) -> None:
    config = build()
    teacher = load_config(trained / "outputs" / "checkpoint-6" / "config.yaml")
    assert build_objective(config) == build_objective(teacher)
    assert config.scheduler.level_balance == 0
    assert config.sampling.shift == teacher.sampling.shift
