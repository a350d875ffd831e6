"""Variations of a picture, and what lies between prompts and between seeds."""

import re
from pathlib import Path

import numpy as np
import pretrained
import pytest
import torch
from PIL import Image
from tiny import TINY

from limner.config import load_config
from limner.data.images import decode, to_pil, to_tensor
from limner.diffusion.noise_schedule import FlowMatchingSchedule, VPSchedule
from limner.errors import LimnerError
from limner.inference.generator import ImageGenerator
from limner.inference.saving import how_drawn
from limner.inference.variations import between, fitted, slerp
from limner.models.modern import ModernDiT
from limner.text.conditioning import TextConditioning
from limner.training.monitor import throughput
from limner.training.trainer import Trainer

LEARNING = [
    "training.max_steps=60",
    "training.learning_rate=5e-3",
    "training.heldout_steps=1000",
    "training.save_steps=30",
    "sampling.num_inference_steps=6",
]
MODELS = {
    "modern": [],
    "dit, diffusion": ["model.architecture=dit", "scheduler.objective=diffusion"],
    "latents": ["text_encoder.pretrained_model_name='{text}'", "vae.pretrained_model_name='{vae}'"],
}
PROMPTS = ["a large red square", "two small blue circles", "", "a green cross", "红苹果"]
SEEDS = [3, 4, 5, 6, 3]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints whose pictures depend on their words and noise; only to be read."""
    folder = tmp_path_factory.mktemp("variations")
    parts = {
        "vae": pretrained.tiny_autoencoder(folder / "vae"),
        "text": pretrained.tiny_clip(folder / "clip"),
    }
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "matmul_peak", lambda device, dtype: 1e12)
        for number, (name, overrides) in enumerate(MODELS.items()):
            found[name] = folder / str(number)
            places = [f"training.output_dir='{found[name]}'", f"cache.folder='{folder / 'cache'}'"]
            own = [override.format(**parts) for override in overrides]
            Trainer(load_config(None, [*TINY, *LEARNING, *places, *own])).train()
    return found


@pytest.fixture(params=MODELS)
def generator(request: pytest.FixtureRequest, folders: dict[str, Path]) -> ImageGenerator:
    return ImageGenerator(folders[request.param], device="cpu")


@pytest.fixture(scope="module")
def modern(folders: dict[str, Path]) -> ImageGenerator:
    return ImageGenerator(folders["modern"], device="cpu")


def levels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def some_picture(width: int = 16, height: int = 16) -> Image.Image:
    """A smooth one."""
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 3, height))
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=-1)
    return Image.fromarray(np.uint8(127 + 120 * waves))


# Whatever the batch


@pytest.mark.parametrize(
    "asked",
    [
        {"negative_prompt": "a blue square"},
        {"init_image": some_picture(), "strength": 0.7},
        {"guidance_type": "apg", "apg_threshold": 0.1},
        {"guidance_rescale": 0.5, "guidance_interval": (0.2, 0.9)},
        {"guidance_type": "cfg_zero_star", "zero_init_steps": 1, "shift": 2.0},
        {"scheduler_type": "ddpm", "init_image": some_picture(), "strength": 0.5},
    ],
    ids=lambda asked: ",".join(asked),
)
def test_a_picture_does_not_depend_on_its_batch(asked: dict, generator: ImageGenerator) -> None:
    if generator.config.scheduler.objective == "diffusion" and "shift" in asked:
        asked = {"shift": 1.0}
    together = levels(generator.generate_batch(PROMPTS, seeds=SEEDS, **asked))
    assert np.array_equal(levels(generator.generate_batch(PROMPTS, seeds=SEEDS, **asked)), together)
    for batch_size in (1, 2):
        drawn = generator.generate_batch(PROMPTS, seeds=SEEDS, batch_size=batch_size, **asked)
        assert abs(levels(drawn) - together).max() <= 1
    alone = generator.generate(PROMPTS[3], seed=SEEDS[3], **asked)
    assert abs(levels([alone])[0] - together[3]).max() <= 1
    plain = levels(generator.generate_batch(PROMPTS, seeds=SEEDS))
    if asked != {"shift": 1.0}:
        assert abs(plain - together).mean() > 0.2  # what was asked for does something


def test_what_lies_between_does_not_depend_on_the_batch(generator: ImageGenerator) -> None:
    asked = {"count": 5, "seed": 3, "end_seed": 9, "num_inference_steps": 4}
    together = levels(generator.interpolate(PROMPTS[0], PROMPTS[1], **asked))
    for batch_size in (1, 2):
        drawn = generator.interpolate(PROMPTS[0], PROMPTS[1], batch_size=batch_size, **asked)
        assert abs(levels(drawn) - together).max() <= 1


# Negative prompts


def test_the_empty_negative_prompt_is_none(generator: ImageGenerator) -> None:
    plain = levels(generator.generate_batch(PROMPTS, seeds=SEEDS))
    same = levels(generator.generate_batch(PROMPTS, seeds=SEEDS, negative_prompt=""))
    assert np.array_equal(same, plain)


def test_a_negative_prompt_that_is_the_prompt_leaves_no_guidance(modern: ImageGenerator) -> None:
    prompt = "a large red square"
    unguided = levels([modern.generate(prompt, guidance_scale=1.0)])
    for scale in (0.0, 3.0, 8.0):
        against = modern.generate(prompt, guidance_scale=scale, negative_prompt=prompt)
        assert abs(levels([against]) - unguided).max() <= 1
    # With a scale of 0 it is the other one that is drawn.
    other = modern.generate(prompt, guidance_scale=0.0, negative_prompt="a green cross", seed=4)
    drawn = modern.generate("a green cross", guidance_scale=1.0, seed=4)
    assert abs(levels([other]) - levels([drawn])).max() <= 1


# Autoguidance


def test_a_checkpoint_that_guides_itself_draws_as_without_guidance(
    folders: dict[str, Path],
) -> None:
    for name in MODELS:
        own = ImageGenerator(folders[name], device="cpu", guide=folders[name])
        plain = ImageGenerator(folders[name], device="cpu")
        expected = levels(plain.generate_batch(PROMPTS, seeds=SEEDS, guidance_scale=1.0))
        for scale in (0.0, 2.5):
            drawn = own.generate_batch(PROMPTS, seeds=SEEDS, guidance_scale=scale)
            assert abs(levels(drawn) - expected).max() <= 1


def test_an_earlier_checkpoint_guides(folders: dict[str, Path]) -> None:
    earlier = folders["modern"] / "checkpoint-30"
    guided = ImageGenerator(folders["modern"], device="cpu", guide=earlier)
    plain = ImageGenerator(folders["modern"], device="cpu")
    together = levels(guided.generate_batch(PROMPTS, seeds=SEEDS))
    assert abs(together - levels(plain.generate_batch(PROMPTS, seeds=SEEDS))).mean() > 0.5
    for batch_size in (1, 2):
        drawn = levels(guided.generate_batch(PROMPTS, seeds=SEEDS, batch_size=batch_size))
        assert abs(drawn - together).max() <= 1
    # With a scale of 0 it is the guide that draws.
    at_zero = levels(guided.generate_batch(PROMPTS, seeds=SEEDS, guidance_scale=0.0))
    weaker = ImageGenerator(earlier, device="cpu")
    drawn = weaker.generate_batch(PROMPTS, seeds=SEEDS, guidance_scale=1.0)
    assert abs(at_zero - levels(drawn)).max() <= 1
    # With a negative prompt the guide reads that.
    at_zero = levels([guided.generate("a", guidance_scale=0.0, negative_prompt=PROMPTS[0])])
    drawn = [weaker.generate(PROMPTS[0], guidance_scale=1.0)]
    assert abs(at_zero - levels(drawn)).max() <= 1


def test_a_guide_of_another_space_is_refused(folders: dict[str, Path], trained: Path) -> None:
    with pytest.raises(LimnerError, match="cannot guide this model") as error:
        ImageGenerator(folders["modern"], guide=folders["latents"])
    assert "model.in_channels: 4 in the guide, 3 in the model" in str(error.value)
    assert "vae.fingerprint" in str(error.value)
    with pytest.raises(LimnerError, match=r"scheduler\.objective: 'diffusion' in the guide"):
        ImageGenerator(folders["modern"], guide=folders["dit, diffusion"])
    with pytest.raises(LimnerError, match="no checkpoint at"):
        ImageGenerator(folders["modern"], guide=folders["modern"] / "checkpoint-7")
    # Another architecture, text encoder, or patch size is no obstacle.
    ImageGenerator(folders["modern"], guide=trained / "outputs").generate("a")


# From a picture


def half(width: int = 16, height: int = 16) -> Image.Image:
    """A mask whose right half is white."""
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[:, width // 2 :] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmsolver++", "unipc", "ddpm"])
def test_outside_of_the_mask_every_pixel_stays(solver: str, generator: ImageGenerator) -> None:
    image = some_picture()
    asked = {"init_image": image, "mask": half(), "scheduler_type": solver}
    drawn = levels(generator.generate_batch(PROMPTS[:2], seeds=SEEDS[:2], **asked))
    picture = np.asarray(image).astype(int)
    assert np.array_equal(drawn[:, :, :8], np.stack([picture[:, :8]] * 2))
    assert abs(drawn[:, :, 8:] - picture[:, 8:]).mean() > 1
    alone = levels([generator.generate(PROMPTS[1], seed=SEEDS[1], **asked)])
    assert abs(alone[0] - drawn[1]).max() <= 1


def test_what_is_drawn_follows_from_what_is_kept(modern: ImageGenerator) -> None:
    """The model sees the kept half: another one gives another drawing of the other."""
    drawn = [
        levels([modern.generate("a red circle", seed=2, init_image=image, mask=half())])
        for image in (some_picture(), Image.new("RGB", (16, 16), "black"))
    ]
    assert abs(drawn[0][:, :, 8:] - drawn[1][:, :, 8:]).mean() > 0.1


def test_a_mask_of_the_whole_picture_is_a_drawing_from_words_alone(modern: ImageGenerator) -> None:
    asked = {"init_image": some_picture(), "mask": Image.new("L", (16, 16), 255)}
    drawn = levels([modern.generate("a red circle", seed=2, **asked)])
    assert np.array_equal(drawn, levels([modern.generate("a red circle", seed=2)]))


def test_masks_as_programs_write_them(modern: ImageGenerator, tmp_path: Path) -> None:
    """White, or a hole in the picture itself, turned as its EXIF says; larger than the drawing."""
    image, mask = some_picture(48, 32), half(48, 32)
    expected = levels([modern.generate("a", init_image=image, mask=mask)])
    hole = image.convert("RGBA")
    hole.putalpha(mask.point(lambda value: 255 - value))
    hole.save(tmp_path / "hole.png")
    image.save(tmp_path / "picture.png")
    mask.convert("1").save(tmp_path / "bits.png")
    for name in ("hole.png", "bits.png"):
        asked = {"init_image": tmp_path / "picture.png", "mask": tmp_path / name}
        assert np.array_equal(levels([modern.generate("a", **asked)]), expected)
    turned = {"init_image": image.rotate(90, expand=True), "mask": mask.rotate(90, expand=True)}
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    for key, one in turned.items():
        one.save(tmp_path / f"{key}.png", exif=exif)
    asked = {key: tmp_path / f"{key}.png" for key in turned}
    assert np.array_equal(levels([modern.generate("a", **asked)]), expected)


def test_outpainting_keeps_the_picture_in_its_place(modern: ImageGenerator) -> None:
    image = some_picture()
    wide = modern.generate("a", init_image=image, outpaint=(8, 0, 16, 4))
    assert wide.size == (40, 20)
    assert np.array_equal(np.asarray(wide.crop((8, 0, 24, 16))), np.asarray(image))
    assert how_drawn(wide)["inpainted"] is True
    small = modern.generate("a", init_image=image, outpaint=(16, 16, 16, 16), height=16, width=16)
    assert small.size == (16, 16)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"mask": half()}, "--mask requires --init_image"),
        ({"outpaint": (1, 1, 1, 1)}, "--outpaint requires --init_image"),
        (
            {"init_image": some_picture(), "mask": half(17)},
            "17 x 16 pixels and the picture 16 x 16",
        ),
        ({"init_image": some_picture(), "mask": b"no picture"}, "the picture"),
        ({"init_image": some_picture(), "mask": Image.new("L", (16, 16))}, "keeps the whole"),
        ({"init_image": some_picture(), "outpaint": (0, 0, 0, 0)}, "--outpaint 0,0,0,0: must be"),
        ({"init_image": some_picture(), "outpaint": (4, 0, -4, 0)}, "--outpaint 4,0,-4,0"),
        ({"init_image": some_picture(), "outpaint": (4, 0)}, "left, top, right, and bottom"),
        (
            {"init_image": some_picture(), "outpaint": (4, 0, 0, 0), "mask": half()},
            "cannot be combined with --mask",
        ),
    ],
)
def test_masks_that_cannot_be_used_say_why(asked: dict, said: str, modern: ImageGenerator) -> None:
    with pytest.raises(LimnerError, match=re.escape(said)):
        modern.generate("a", **asked)


def test_strength_0_is_the_picture_and_strength_1_is_none_of_it(generator: ImageGenerator) -> None:
    image = some_picture()
    kept = levels([generator.generate("a red circle", init_image=image, strength=0.0)])
    x0 = generator.autoencoder.encode(to_tensor(np.array(image))[None])
    assert np.array_equal(kept, levels(to_pil(generator.autoencoder.decode(x0))))
    if generator.autoencoder.downsampling == 1:
        assert np.array_equal(kept[0], np.asarray(image))
    drawn = levels([generator.generate("a red circle", seed=2)])
    asked = {"init_image": image, "strength": 1.0}
    assert np.array_equal(levels([generator.generate("a red circle", seed=2, **asked)]), drawn)


def test_more_strength_moves_further_from_the_picture(modern: ImageGenerator) -> None:
    image = some_picture()
    asked = {"init_image": image, "num_inference_steps": 12, "guidance_scale": 1.0}
    moved = [
        abs(levels([modern.generate("a red circle", strength=s, **asked)])[0] - image).mean()
        for s in (0.0, 0.05, 0.3, 0.6, 1.0)
    ]
    assert moved == sorted(moved)
    assert moved[0] == 0
    usual = levels([modern.generate("a red circle", strength=0.6, **asked)])
    assert np.array_equal(usual, levels([modern.generate("a red circle", **asked)]))


@pytest.mark.parametrize("path", [FlowMatchingSchedule(), VPSchedule()])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_strength_names_the_time_to_begin_at(
    path: FlowMatchingSchedule | VPSchedule, steps: int
) -> None:
    last = 0 if isinstance(path, FlowMatchingSchedule) else -1
    whole = path.inference_timesteps(steps)
    assert torch.equal(path.inference_timesteps(steps, strength=1.0), whole)
    assert path.inference_timesteps(steps, strength=0.0).tolist() == [last]
    for strength in (1e-4, 0.05, 0.3, 0.55, 0.61, 0.9999):
        times = path.inference_timesteps(steps, strength=strength)
        assert times[0] - last == pytest.approx(1000 * strength, abs=0.51 if last else 1e-9)
        assert times[-1] == last
        assert (times.diff() < 0).all()
        assert len(times) - 1 <= int(np.ceil(strength * steps))
        assert len(times) == 1 or times.diff().min() >= whole.diff().min() - 1  # no longer steps


def test_a_shift_spends_the_steps_of_a_part_as_those_of_the_whole() -> None:
    whole = FlowMatchingSchedule().inference_timesteps(12, shift=3.0)
    for first in (1, 5, 11):
        strength = float(whole[first]) / 1000
        part = FlowMatchingSchedule().inference_timesteps(12, shift=3.0, strength=strength)
        torch.testing.assert_close(part, whole[first:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(16, 16), (20, 12), (12, 40), (100, 37)])
def test_a_picture_is_fitted_as_training_does(size: tuple[int, int], tmp_path: Path) -> None:
    image = some_picture(*size)
    image.save(tmp_path / "a.png")
    expected = to_tensor(decode(tmp_path / "a.png", 16))[None]
    data = (tmp_path / "a.png").read_bytes()
    for given in (image, tmp_path / "a.png", str(tmp_path / "a.png"), data):
        assert torch.equal(fitted(given, 16, 16), expected)
    # Another shape: the middle that has this shape, scaled.
    wide = fitted(image, 8, 24)
    assert wide.shape == (1, 3, 8, 24)
    width, height = size
    part = (width, width / 3) if width <= 3 * height else (3 * height, height)
    left, top = (width - part[0]) / 2, (height - part[1]) / 2
    box = (left, top, left + part[0], top + part[1])
    cut = image.resize((24, 8), Image.Resampling.LANCZOS, box=box)
    assert abs(wide - to_tensor(np.array(cut))[None]).max() < 2.5 / 127.5


def test_a_picture_of_any_kind_and_any_size_is_a_start(modern: ImageGenerator) -> None:
    clear = some_picture().convert("RGBA")
    clear.putalpha(0)
    kept = modern.generate("a", init_image=clear, strength=0.0, height=8, width=32)
    assert kept.size == (32, 8)
    assert (np.asarray(kept) == 255).all()  # on white, where it is transparent


# Between prompts and seeds


def test_noise_between_seeds_is_on_the_arc() -> None:
    a, b = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    assert torch.equal(slerp(a, a, 0.3), a)
    p, q = a.double().numpy().ravel(), b.double().numpy().ravel()
    angle = np.arccos(p @ q / np.linalg.norm(p) / np.linalg.norm(q))
    for weight in (0.25, 0.5, 0.9):
        expected = (np.sin((1 - weight) * angle) * p + np.sin(weight * angle) * q) / np.sin(angle)
        found = slerp(a, b, weight).numpy().ravel()
        np.testing.assert_allclose(found, expected, atol=1e-6)
        turned = found @ p / np.linalg.norm(found) / np.linalg.norm(p)
        if weight == 0.5 or abs(np.linalg.norm(p) - np.linalg.norm(q)) < 1e-6:
            assert np.arccos(turned) == pytest.approx(weight * angle, rel=0.05)
        assert np.linalg.norm(found) > 0.95 * min(np.linalg.norm(p), np.linalg.norm(q))


def test_texts_of_one_length_are_interpolated_state_by_state() -> None:
    a, b = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(6) < torch.tensor([[3], [4], [6]])
    vectors = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(2))
    text = between(
        TextConditioning(a, mask, vectors[0]), TextConditioning(b, mask, vectors[1]), [0, 0.5, 1]
    )
    for i, weight in enumerate((0, 0.5, 1)):
        expected = (1 - weight) * a[i] + weight * b[i]
        torch.testing.assert_close(text.tokens[i][mask[i]], expected[mask[i]])
        assert text.vector is not None
        torch.testing.assert_close(
            text.vector[i], (1 - weight) * vectors[0][i] + weight * vectors[1][i]
        )
    assert torch.equal(text.mask, mask)
    assert text.log_weight is not None
    assert not text.log_weight[mask].any()


def test_texts_of_different_lengths_pass_into_each_other_without_a_jump() -> None:
    torch.manual_seed(0)
    model = ModernDiT(3, 4, 32, 2, 2, 4.0, 0.0, text_width=24).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    a, b = torch.randn(2, 1, 6, 24)
    short, long = (
        TextConditioning(a, torch.arange(6)[None] < 2),
        TextConditioning(b, torch.arange(6)[None] < 5),
    )
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([400.0])

    def drawn(weight: float) -> torch.Tensor:
        with torch.no_grad():
            return model(x, t, model.prepare(between(short, long, [weight])))

    with torch.no_grad():
        ends = model(x, t, short), model(x, t, long)
    torch.testing.assert_close(drawn(0.0), ends[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(drawn(1.0), ends[1], atol=1e-5, rtol=1e-5)
    whole = (ends[1] - ends[0]).abs().mean()
    for weight in np.linspace(0, 0.98, 50):
        step = (drawn(float(weight) + 0.02) - drawn(float(weight))).abs().mean()
        assert step < 0.15 * whole
    assert (drawn(1e-4) - ends[0]).abs().mean() < 0.01 * whole
    assert (drawn(1 - 1e-4) - ends[1]).abs().mean() < 0.01 * whole
    assert (drawn(0.5) - ends[0]).abs().mean() > 0.1 * whole


def test_the_ends_of_an_interpolation_are_the_plain_pictures(generator: ImageGenerator) -> None:
    for first, last, seeds in (
        ("a large red square", "two small blue circles", (3, 3)),
        ("a large red square", "a", (3, 8)),
        ("a green cross", None, (3, 8)),
    ):
        drawn = levels(generator.interpolate(first, last, 4, seeds[0], seeds[1]))
        ends = [
            generator.generate(first, seed=seeds[0]),
            generator.generate(first if last is None else last, seed=seeds[1]),
        ]
        assert abs(drawn[[0, -1]] - levels(ends)).max() <= 1
        steps = abs(np.diff(drawn, axis=0)).mean(axis=(1, 2, 3))
        assert (steps > 0.05).all()  # each picture lies further on


# What cannot be done


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"strength": 0.5}, "--strength requires --init_image"),
        ({"init_image": "nowhere.png"}, "nowhere.png: the picture file is not there. Put it back."),
        ({"init_image": b"text"}, "the file is text, not a picture"),
        ({"init_image": some_picture(), "strength": 1.5}, "--strength 1.5: must be between 0"),
        ({"init_image": some_picture(), "strength": float("nan")}, "--strength nan"),
        ({"guidance_interval": (0.9, 0.1)}, "the first must be below the second"),
        ({"guidance_intervall": (0.1, 0.9)}, "did you mean sampling.guidance_interval?"),
        ({"shift": 0}, "sampling.shift: "),
        ({"shift": "much"}, "sampling.shift: must be a number, got 'much'"),
        ({"zero_init_steps": 6}, "must be below sampling.num_inference_steps"),
    ],
)
def test_what_cannot_be_varied_says_why(asked: dict, said: str, modern: ImageGenerator) -> None:
    with pytest.raises(LimnerError) as error:
        modern.generate("a", **asked)
    assert said in str(error.value)


def test_what_a_schedule_of_betas_cannot_do_is_refused(folders: dict[str, Path]) -> None:
    generator = ImageGenerator(folders["dit, diffusion"], device="cpu")
    for asked in ({"shift": 2.0}, {"guidance_type": "cfg_zero_star"}, {"zero_init_steps": 1}):
        with pytest.raises(LimnerError, match="flow_matching"):
            generator.generate("a", **asked)
    with pytest.raises(LimnerError, match="must be at least 2, since both ends are drawn"):
        generator.interpolate("a", "b", count=1)
