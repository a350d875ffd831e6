"""Drawing: the same picture from the same words and seed, whatever is drawn beside it."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY

from limner.checkpoint.inherit import load_run_config
from limner.config import Config
from limner.diffusion.objective import build_objective
from limner.diffusion.solvers import SOLVERS
from limner.errors import LimnerError
from limner.inference.generator import ImageGenerator
from limner.inference.sampling import draw
from limner.training.monitor import throughput
from limner.training.trainer import Trainer

OBJECTIVES = {
    "flow": ["scheduler.objective=flow_matching"],
    "flow, velocity": ["scheduler.prediction_type=velocity", "model.architecture=dit"],
    "diffusion": ["scheduler.objective=diffusion"],
    "diffusion, cosine": [
        "scheduler.beta_schedule=squaredcos_cap_v2",
        "scheduler.prediction_type=v_prediction",
        "model.architecture=dit",
    ],
}
PROMPTS = ["a large red square", "", "红苹果", "two small blue circles", "a large red square"]
SEEDS = [3, 3, 0, 11, 4]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs with a few updates, so that their pictures depend on their words and noise."""

    @functools.cache
    def run(objective: str) -> Path:
        folder = tmp_path_factory.mktemp("learned") / "run"
        settings = (
            "model.dropout=0.1",
            "training.max_steps=60",
            "training.learning_rate=5e-3",
            "training.heldout_steps=1000",
            "training.save_steps=1000",
            "sampling.num_inference_steps=6",
        )
        place = f"training.output_dir='{folder}'"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(throughput, "matmul_peak", lambda device, dtype: 1e12)
            Trainer(
                load_run_config(None, [*TINY, *OBJECTIVES[objective], *settings, place])
            ).train()
        return folder

    return run


@pytest.fixture
def generator(learned: Callable[[str], Path]) -> Callable[..., ImageGenerator]:
    def build(objective: str = "flow", scheduler_type: str | None = None) -> ImageGenerator:
        return ImageGenerator(learned(objective), scheduler_type=scheduler_type, device="cpu")

    return build


def levels(images: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_picture_depends_on_its_prompt_and_seed_alone(
    objective: str, generator: Callable[..., ImageGenerator]
) -> None:
    drawer = generator(objective)
    for name in SOLVERS:
        drawer.sampling = drawer.sampling.model_copy(update={"scheduler_type": name})
        together = levels(drawer.generate_batch(PROMPTS, seeds=SEEDS))
        torch.manual_seed(99)  # what else happens in the program does not matter
        assert np.array_equal(levels(drawer.generate_batch(PROMPTS, seeds=SEEDS)), together)
        for batch_size in (1, 2, 3):
            drawn = levels(drawer.generate_batch(PROMPTS, seeds=SEEDS, batch_size=batch_size))
            assert abs(drawn - together).max() <= 1
        turned = levels(drawer.generate_batch(PROMPTS[::-1], seeds=SEEDS[::-1]))[::-1]
        assert abs(turned - together).max() <= 1
        alone = levels([drawer.generate(PROMPTS[3], seed=SEEDS[3])])[0]
        assert abs(alone - together[3]).max() <= 1

        # There is something to see, and it does depend on words and seeds.
        assert together.std(axis=(1, 2, 3)).min() > 4
        for other in range(1, 5):
            assert abs(together[0] - together[other]).mean() > 0.5


def test_solvers_differ_and_ddim_is_euler(generator: Callable[..., ImageGenerator]) -> None:
    drawer = generator()
    drawn = {}
    for name in SOLVERS:
        drawer.sampling = drawer.sampling.model_copy(update={"scheduler_type": name})
        drawn[name] = levels([drawer.generate("a red circle", seed=1)])[0]
    assert np.array_equal(drawn["ddim"], drawn["euler"])
    for a, b in (("ddim", "heun"), ("ddim", "dpmsolver++"), ("ddim", "ddpm")):
        assert abs(drawn[a] - drawn[b]).mean() > 0.3


@pytest.mark.usefixtures("float16_here")
def test_the_generator_takes_the_names_of_the_faq(generator: Callable[..., ImageGenerator]) -> None:
    folder = generator().config.training.output_dir
    drawer = ImageGenerator(folder, scheduler_type="ddim", device=torch.device("cpu"))
    image = drawer.generate("a red circle", num_inference_steps=3, guidance_scale=2.0, seed=42)
    assert image.size == (16, 16)
    assert image.mode == "RGB"
    assert drawer.generate("", height=24, width=8).size == (8, 24)
    one_seed = levels(drawer.generate_batch(["a red circle"] * 2, seeds=42))
    assert np.array_equal(one_seed[0], one_seed[1])

    plain, guided = (drawer.generate("a red circle", guidance_scale=g) for g in (1.0, 6.0))
    assert abs(levels([plain]) - levels([guided])).mean() > 1
    fast = ImageGenerator(folder, "ddim", "cpu", dtype="bfloat16").generate("a red circle")
    slow = drawer.generate("a red circle")
    assert 0 < abs(levels([fast]) - levels([slow])).mean() < 10


def test_what_cannot_be_drawn_says_why(generator: Callable[..., ImageGenerator]) -> None:
    drawer = generator()
    folder = drawer.config.training.output_dir
    with pytest.raises(LimnerError, match=r"'plms' is not known; use one of ddpm, ddim, "):
        ImageGenerator(folder, scheduler_type="plms")
    with pytest.raises(LimnerError, match="num_inference_steps is 0; it must be at least 1"):
        drawer.generate("a red circle", num_inference_steps=0)
    with pytest.raises(LimnerError, match=r"--height 18 is not a multiple of 4, .*; use 16"):
        drawer.generate("a red circle", height=18)
    with pytest.raises(LimnerError, match="2 prompts need one seed, or one each; got 3"):
        drawer.generate_batch(["a", "b"], seeds=[1, 2, 3])
    with pytest.raises(LimnerError, match="unknown dtype 'int8'; use one of float32, bfloat16, "):
        ImageGenerator(folder, dtype="int8")
    if not torch.cuda.is_available():
        with pytest.raises(LimnerError, match=r"device cuda: torch .* finds none"):
            ImageGenerator(folder, device="cuda")


def test_each_picture_starts_from_the_noise_of_its_seed(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    trainer = Trainer(config)
    seen: list[torch.Tensor] = []

    def solver(denoise: object, x: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(x)
        return x

    monkeypatch.setitem(SOLVERS, config.sampling.scheduler_type, solver)
    draw(
        trainer.averaged,
        build_objective(config),
        trainer.run.tokenizer,
        ["a", "b", "c"],
        [5, 6, 5],
        config.sampling,
        8,
        16,
    )
    for noise, seed in zip(seen[0], (5, 6, 5), strict=True):
        expected = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(noise, expected)


@pytest.mark.parametrize("architecture", ["modern", "dit"])
def test_the_text_is_read_once_and_the_picture_is_that_of_reading_it_at_each_step(
    architecture: str, tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(f"model.architecture={architecture}", "sampling.num_inference_steps=5")
    trainer = Trainer(config)
    for parameter in trainer.averaged.parameters():  # freshly initialised, the blocks add nothing
        torch.nn.init.normal_(parameter, std=0.1)
    reads: list[int] = []
    for name, module in trainer.averaged.denoiser.named_modules():
        if "text" in name and name != "text_vector":
            module.register_forward_hook(lambda *_: reads.append(1))

    def drawn() -> torch.Tensor:
        reads.clear()
        objective, words = build_objective(config), trainer.run.tokenizer
        given = (PROMPTS, SEEDS, config.sampling, 16, 16)
        return draw(trainer.averaged, objective, words, *given)

    once = drawn()
    blocks = config.model.num_layers if architecture == "modern" else 0
    assert len(reads) == 2 * blocks  # the prompts, and the empty one
    monkeypatch.setattr(type(trainer.averaged.denoiser), "prepare", lambda self, y: y)
    each_step = drawn()
    assert len(reads) == 5 * blocks
    assert once.std() > 0.1
    torch.testing.assert_close(once, each_step, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("float16_here")
def test_matrices_cast_once_draw_what_autocast_draws_to_the_bit(
    generator: Callable[..., ImageGenerator],
) -> None:
    drawer = generator("flow")
    folder = drawer.config.training.output_dir
    fast = ImageGenerator(folder, device="cpu", dtype="bfloat16")
    assert fast.model.denoiser.final_layer.linear.weight.dtype == torch.bfloat16
    assert fast.model.text_encoder.embedding.weight.dtype == torch.float32
    drawer.dtype = torch.bfloat16  # matrices in float32, which autocast casts at each step
    assert np.array_equal(
        levels(fast.generate_batch(PROMPTS, seeds=SEEDS)),
        levels(drawer.generate_batch(PROMPTS, seeds=SEEDS)),
    )
