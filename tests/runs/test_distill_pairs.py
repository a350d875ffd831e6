"""What a student learns from: trajectories of its teacher, pairs of their states, and its loss."""

from pathlib import Path

import numpy as np
import pytest
import torch
from students import COUNT, Build

from limner.data.dataset import ImageError
from limner.data.open import open_data
from limner.diffusion.flow_map import HUBER
from limner.diffusion.guidance import guided_denoiser
from limner.diffusion.solvers import SOLVERS
from limner.inference.generator import ImageGenerator
from limner.inference.sampling import read
from limner.inference.sampling_settings import inference_timesteps
from limner.text.tokenizer import CaptionTokenizer
from limner.training.batches import load_batches
from limner.training.distillation import flow_map_step, trajectories
from limner.training.distillation.pairs import TrajectoryPairs
from limner.training.distillation.teacher import open_teacher
from limner.training.distillation.trajectories import (
    draw_trajectories,
    held_out_drawings,
    stored_trajectories,
    trained_drawings,
)
from limner.training.trainer import Trainer


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
