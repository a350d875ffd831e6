"""Distillation: the student of a teacher, from its trajectories to its pictures."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import events, messages

from limner.apps.distill import Way, distill, distill_config, shortfalls
from limner.apps.play.painter import Painter
from limner.apps.sweep import sweep as sweeping
from limner.apps.sweep.store_settings import store_sampling
from limner.checkpoint.folder import load_tensors
from limner.checkpoint.lineage import read_lineage
from limner.checkpoint.open_model import open_model
from limner.cli import main
from limner.config import Config, load_config
from limner.data.dataset import ImageError
from limner.data.open import open_data
from limner.diffusion.flow_map import HUBER
from limner.diffusion.guidance import guided_denoiser
from limner.diffusion.objective import build_objective
from limner.diffusion.solvers import SOLVERS
from limner.errors import LimnerError
from limner.inference.generator import ImageGenerator
from limner.inference.sampling import read
from limner.inference.sampling_settings import inference_timesteps
from limner.text.tokenizer import CaptionTokenizer
from limner.training.batches import load_batches
from limner.training.distillation import flow_map_step, trajectories
from limner.training.distillation.pairs import TrajectoryPairs
from limner.training.distillation.teacher import open_teacher
from limner.training.distillation.trajectories import (
    Trajectories,
    draw_trajectories,
    held_out_drawings,
    stored_trajectories,
    trained_drawings,
)
from limner.training.precompute import check_cache_folder
from limner.training.trainer import Trainer

Build = Callable[..., Config]
COUNT = 24


@pytest.fixture
def build(trained: Path, tmp_path: Path, quick_end: None) -> Build:
    """The configuration of a student of the tiny run."""

    def build(*overrides: str, name: str = "student") -> Config:
        return distill_config(
            str(trained / "outputs"),
            str(tmp_path / name),
            None,
            [
                f"cache.folder='{tmp_path / 'cache'}'",
                f"distill.num_trajectories={COUNT}",
                "training.max_steps=6",
                *overrides,
            ],
        )

    return build


@pytest.fixture(scope="module")
def distilled(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of a student in it; only to be read."""
    folder = tmp_path_factory.mktemp("distilled")
    words = [f"cache.folder='{folder / 'cache'}'", f"distill.num_trajectories={COUNT}"]
    words += ["training.max_steps=6", "training.preview_steps=6"]
    config = distill_config(str(trained / "outputs"), str(folder / "run"), None, words)
    Trainer(config).train()
    return folder / "run"


def weights(folder: Path, name: str = "model.pt") -> dict[str, torch.Tensor]:
    return load_tensors(folder / name)


# What it learns from


def test_held_out_captions_are_never_among_what_it_learns_from(build: Build) -> None:
    config = build(
        "data.dataset_name=emoji",
        "data.subset=demo",
        "data.num_samples=null",
        "distill.num_trajectories=1000",
        "training.heldout_pictures=100",
    )
    data = open_data(config)
    held_out = {caption for row in data.held_out.rows for caption in row.captions}
    learned = [drawing.caption for drawing in trained_drawings(config, data.trained.rows)]
    measured = [drawing.caption for drawing in held_out_drawings(config, data)]
    assert len(held_out) > 30
    assert held_out.isdisjoint(learned)
    assert set(measured) == {row.captions[0] for row in data.held_out.rows}
    assert 50 < learned.count("") < 150  # training.caption_dropout is 0.1
    others = {caption for row in data.trained.rows for caption in row.captions[1:]}
    assert len(others & set(learned)) > 50  # paraphrases, too
    everything = trained_drawings(config, data.trained.rows) + held_out_drawings(config, data)
    assert len({drawing.seed for drawing in everything}) == len(everything)


def test_few_trajectories_are_of_all_kinds_of_captions(build: Build) -> None:
    """The rows of emoji are sorted by group: the first of them are faces and hands."""
    config = build(
        "data.dataset_name=emoji",
        "data.subset=all",
        "data.num_samples=null",
        "distill.num_trajectories=300",
    )
    rows = open_data(config).trained.rows
    chosen = {d.caption for d in trained_drawings(config, rows) if d.caption}
    places = [i for i, row in enumerate(rows) if chosen & set(row.captions)]
    share = sum(place < len(rows) / 3 for place in places) / len(places)
    assert 0.25 < share < 0.42
    of_everything = config.model_copy(
        update={"distill": config.distill.model_copy(update={"num_trajectories": len(rows)})}
    )
    assert len({d.seed for d in trained_drawings(of_everything, rows)}) == len(rows)


@pytest.mark.parametrize(
    ("images", "minutes", "count"),
    [
        (300, 3.0, 1536),  # 512 for each minute
        (300, 8.0, 4096),
        (3500, 0.5, 1024),
        (10, None, 1024),
        (3500, None, 14_000),  # 4 for each image
        (1_000_000, 600.0, 16_384),
    ],
)
def test_how_many_trajectories_are_drawn(images: int, minutes: float | None, count: int) -> None:
    assert trajectories.usual_count(images, minutes) == count


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmsolver++", "unipc"])
@pytest.mark.parametrize("zero", [0, 2])
def test_a_trajectory_begins_at_its_noise_and_ends_at_the_picture(
    solver: str, zero: int, trained: Path
) -> None:
    generator = ImageGenerator(trained / "outputs", device="cpu")
    sampling = generator.sampling.model_copy(
        update={"scheduler_type": solver, "num_inference_steps": 4, "zero_init_steps": zero}
    )
    drawings = [trajectories.Drawing("a red circle", 7), trajectories.Drawing("", 8)]
    states = draw_trajectories(
        generator.model, generator.objective, generator.words, drawings, sampling, (3, 16, 16),
        torch.float32,
    )  # fmt: skip
    assert states.shape == (2, 5, 3, 16, 16)
    noise = torch.randn((3, 16, 16), generator=torch.Generator().manual_seed(7))
    for waiting in range(zero + 1):
        assert torch.equal(states[0, waiting], noise)
    drawn = generator.generate_batch(["a red circle", ""], seeds=[7, 8], **sampling.model_dump())
    for state, image in zip(states[:, -1], drawn, strict=True):
        pixels = (state.permute(1, 2, 0) + 1) * 127.5
        shown = torch.from_numpy(np.array(image)).float()
        assert (pixels.clamp(0, 255) - shown).abs().max() <= 1
    assert (states[:, 1 + zero] - states[:, zero]).abs().max() > 0.01


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_every_state_is_one_step_after_the_one_before(solver: str, build: Build) -> None:
    """Also where a solver evaluates the network at guesses which it then corrects."""
    config = build()
    run = Trainer(config).run
    teacher = open_teacher(run.config)
    sampling = teacher.sampling.model_copy(
        update={"scheduler_type": solver, "num_inference_steps": 4, "zero_init_steps": 0}
    )
    model = teacher.model(run.reader.text_size, torch.device("cpu"), torch.float32)
    drawings, words = trained_drawings(run.config, run.data.trained.rows)[:2], run.reader
    assert isinstance(words, CaptionTokenizer)
    rest = (sampling, (3, 16, 16), torch.float32)
    states = draw_trajectories(model, run.objective, words, drawings, *rest)
    text, null = read(model, words, [d.caption for d in drawings], "", None, torch.float32)
    denoise = guided_denoiser(model, run.objective, text, null, sampling, torch.float32)
    schedule = run.objective.noise_schedule
    times = inference_timesteps(sampling, schedule)
    with torch.no_grad():
        for k in range(4):
            ended = SOLVERS[solver](denoise, states[:, k], times[k : k + 2], schedule)
            torch.testing.assert_close(ended, states[:, k + 1], atol=1e-4, rtol=1e-4)


def test_short_memory_makes_fewer_drawings_at_once(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, whole = list[int](), trajectories.draw_trajectories

    def short(model: object, objective: object, words: object, drawings: list[object],
              *rest: object) -> torch.Tensor:  # fmt: skip
        sizes.append(len(drawings))
        if len(drawings) > 8:
            raise MemoryError
        return whole(model, objective, words, drawings, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(trajectories, "draw_trajectories", short)
    run = Trainer(build()).run
    assert run.inputs.trajectories is not None
    assert max(sizes) > 8
    assert sum(size for size in sizes if size <= 8) == COUNT + 1
    assert all(map(torch.is_tensor, map(run.inputs.trajectories[0].states, range(COUNT))))


def test_a_caption_that_cannot_be_read_costs_its_own_drawings(build: Build) -> None:
    run = Trainer(build("data.num_samples=8", "training.caption_dropout=0.0")).run
    tokenizer = run.reader
    assert isinstance(tokenizer, CaptionTokenizer)
    unread = run.data.trained.rows[0].captions[0]

    class Words:
        def encode(self, captions: list[str]) -> torch.Tensor:
            if unread in captions:
                raise ImageError("its embedding is damaged")
            return tokenizer.encode(captions)

    device = torch.device("cpu")
    drawn, _ = stored_trajectories(
        run.config, run.data, Words(), tokenizer.text_size, 1, device, torch.float32
    )
    lost = [i for i, drawing in enumerate(drawn.drawings) if drawing.caption == unread]
    assert 0 < len(lost) < COUNT
    for i in range(COUNT):
        if i in lost:
            with pytest.raises(ImageError, match="its embedding is damaged"):
                drawn.states(i)
        else:
            assert torch.isfinite(drawn.states(i)).all()


def test_every_pair_is_a_step_of_a_drawing_in_1_2_4_or_8_steps(build: Build) -> None:
    run = Trainer(build()).run
    assert run.inputs.trajectories is not None
    own = run.inputs.trajectories[0]
    pairs = TrajectoryPairs(own, run.inputs.words, run.config)
    times, spans = own.timesteps.float(), list[int]()
    for count in range(400):
        example = pairs[count]
        s, r = example.u.tolist()
        i, j = times.tolist().index(s), times.tolist().index(r)
        spans.append(j - i)
        assert i % (j - i) == 0
        number = pairs.order.position(count)
        assert torch.equal(example.noise, own.states(number)[i])
        assert torch.equal(example.image, own.states(number)[j])
    shares = [spans.count(span) / len(spans) for span in (8, 4, 2, 1)]
    assert shares == pytest.approx([0.3, 0.3, 0.3, 0.1], abs=0.06)
    assert torch.equal(pairs[17].image, pairs[17].image)
    edge = 1 - 2**-24
    found = {pairs.pair(kind, which) for kind in (0.0, 0.5, edge) for which in (0.0, 0.6, edge)}
    assert found <= {(n * k, n * (k + 1)) for n in (1, 2, 4, 8) for k in range(8 // n)}
    assert {(0, 8), (7, 8)} <= found


def test_pairs_of_a_trajectory_of_another_number_of_steps(build: Build) -> None:
    run = Trainer(build("distill.num_inference_steps=12")).run
    assert run.inputs.trajectories is not None
    pairs = TrajectoryPairs(run.inputs.trajectories[0], run.inputs.words, run.config)
    found = {pairs.pair(k / 40, w / 40) for k in range(40) for w in range(40)}
    assert found == {(n * k, n * (k + 1)) for n in (1, 2, 3, 4, 6, 12) for k in range(12 // n)}


def test_drawings_in_any_number_of_steps_count_the_same(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of n steps each is chosen with 1/n, so that misses that add up to the same weigh the same."""
    monkeypatch.setattr(flow_map_step, "SEEN", 0.0)
    run = Trainer(build()).run
    batch = next(load_batches(run))
    spans = (batch.u[:, 0] - batch.u[:, 1])[:, None, None, None] / 1000
    assert len(spans.unique()) > 1
    missing = lambda *_: (batch.noise - batch.image) / spans + 50.0  # noqa: E731
    monkeypatch.setattr(run.model.denoiser, "forward", missing)
    found = run.train_step.loss(batch, batch.u[:, 0])
    assert torch.allclose(found, torch.full_like(found, 2 * HUBER * 50), rtol=0.02)


def test_what_the_teacher_sees_of_a_finished_image_is_part_of_the_loss(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where a step ends at one, and of an image that is the teacher's own nothing."""
    run = Trainer(build("training.batch_size=16")).run
    batch = next(load_batches(run))
    spans = (batch.u[:, 0] - batch.u[:, 1])[:, None, None, None] / 1000
    last = batch.u[:, 1] < 1
    assert last.any()
    assert not last.all()

    def loss(weight: float, miss: float) -> torch.Tensor:
        monkeypatch.setattr(flow_map_step, "SEEN", weight)
        found = lambda *_: (batch.noise - batch.image) / spans + miss / spans  # noqa: E731
        with monkeypatch.context() as here:
            here.setattr(run.model.denoiser, "forward", found)
            return run.train_step.loss(batch, batch.u[:, 0]).detach()

    assert torch.allclose(loss(1.0, 0.0), torch.zeros(len(spans)), atol=1e-5)
    seen = loss(1.0, 0.3) - loss(0.0, 0.3)
    assert (seen[last] > 1e-3).all()
    assert torch.equal(seen[~last], torch.zeros_like(seen[~last]))


def test_what_the_teacher_sees_teaches_the_student_and_never_the_teacher(build: Build) -> None:
    run = Trainer(build("training.batch_size=16")).run
    batch = next(load_batches(run))
    run.train_step.loss(batch, batch.u[:, 0]).sum().backward()
    step = run.train_step
    assert isinstance(step, flow_map_step.FlowMapStep)
    assert step.teacher is not None
    assert all(p.grad is None and not p.requires_grad for p in step.teacher.parameters())
    assert any(p.grad is not None for p in run.model.denoiser.parameters())


# Training


def test_what_was_drawn_before_a_kill_is_kept_and_the_run_is_the_same(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = build(f"cache.folder='{tmp_path / 'other'}'", name="whole")
    Trainer(whole).train()

    monkeypatch.setattr(trajectories, "AT_ONCE", 4)
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

    def counted(x: torch.Tensor, t: torch.Tensor, y: object, span: torch.Tensor) -> torch.Tensor:
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
        ("scheduler.objective=diffusion scheduler.prediction_type=epsilon", "says next to nothing"),
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
