"""The figures of docs/how-it-works.md, computed by the code that they are about.

    limner train --config configs/shapes.yaml training.max_minutes=null training.max_steps=1800
    python docs/figures/make.py outputs/shapes

The second takes a few minutes on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from plot import Axis, Line, plot
from torch import Tensor

from limner import ImageGenerator
from limner.checkpoint.folder import load_tensors
from limner.checkpoint.locate import find_checkpoint
from limner.config import load_config
from limner.data.builtin.emoji import EmojiImages
from limner.data.images import to_pil, to_tensor
from limner.data.open import open_data
from limner.data.order import evenly_spaced, seeded_generator
from limner.diffusion.noise_schedule import FlowMatchingSchedule
from limner.diffusion.objective import build_objective
from limner.diffusion.solvers import SOLVERS
from limner.training.lr_schedule import decay_progress, ema_decay, learning_rate_share
from limner.training.monitor.run_log import read_log
from limner.training.muon import orthogonalise

TO = Path(__file__).parents[1] / "images" / "how"


def main(run: Path) -> None:
    TO.mkdir(parents=True, exist_ok=True)
    noise_levels()
    training_times()
    over_the_run()
    loss_by_level(run)
    muon(run)
    guidance(run)
    drawing(run)
    solvers(run)


def noise_levels() -> None:
    """One picture at times from 0 to 1000, on the straight path."""
    images = EmojiImages("demo", ("en",))
    row = next(row for row in images.rows if row.captions[0] == "red apple")
    x0 = to_tensor(torch.from_numpy(images.load(row, 96)))
    noise = torch.randn(x0.shape, generator=seeded_generator(0, "figure"))
    path, times = FlowMatchingSchedule(), (0, 100, 300, 500, 700, 900, 1000)
    tiles = []
    for time in times:
        t = torch.tensor([float(time)])
        tiles.append(path.alpha(t) * x0 + path.sigma(t) * noise)
    sheet([(to_pil(torch.stack(tiles)), [f"t = {time}" for time in times])], "noise-levels.png", 96)


def training_times() -> None:
    """Densities of the times that are trained, at the start and at the end of a run."""
    config = load_config({})
    path = build_objective(config).noise_schedule
    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    lines = []
    for name, moved in (("start of the run", 0.0), ("middle", 0.5), ("end", 1.0)):
        times = path.training_timesteps(u, moved)
        counts = torch.histc(times, bins=50, min=0, max=1000) / len(u) * 50
        middles = [20.0 * i + 10 for i in range(50)]
        lines.append(Line(name, list(zip(middles, counts.tolist(), strict=True))))
    x = Axis("timestep (0: clean, 1000: noise)", 0, 1000, (0, 200, 400, 600, 800, 1000))
    save("training-times.svg", plot(x, Axis("density", 0, 5, (0, 1, 2, 3, 4, 5)), lines))


def over_the_run() -> None:
    """Learning rate, and how far the times have moved, over a run of 10,000 updates."""
    settings, total = load_config({}).lr_scheduler, 10_000
    start = round(total * (1 - settings.decay_share))
    steps = range(0, total + 1, 25)
    rate = [(s, learning_rate_share(settings, s, total, start)) for s in steps]
    moved = [(s, decay_progress(settings, s, total, start)) for s in steps]
    lines = [Line("learning rate", rate), Line("times moved", moved)]
    x = Axis("update", 0, total, (0, 2000, 4000, 6000, 8000, 10_000))
    y = Axis("share of the whole", 0, 1.05, (0, 0.25, 0.5, 0.75, 1))
    save("over-the-run.svg", plot(x, y, lines))
    # The average: its half-life in updates of 32 pictures.
    half = [(s, 0.6931 / -torch.log(torch.tensor(ema_decay(32 * s, 32, 0.9999, 0.05))).item())
            for s in (round(100 * 3000 ** (i / 120)) for i in range(121))]  # fmt: skip
    x = Axis("update", 100, 300_000, (100, 1000, 10_000, 100_000), logarithmic=True)
    y = Axis("half-life of the average, updates", 4, 10_000, (10, 100, 1000, 10_000), True)
    save("average.svg", plot(x, y, [Line("", half)]))


def loss_by_level(run: Path) -> None:
    """The held-out loss of the run at each level of noise."""
    measured = [e for e in read_log(run / "log.jsonl") if e["kind"] == "heldout" and "loss" in e]
    levels = list(measured[0]["loss_by_level"])
    lines = [
        Line(f"t = {level}", [(e["step"], e["loss_by_level"][level]) for e in measured], dots=True)
        for level in levels
    ]
    last = measured[-1]["step"]
    x = Axis("update", 0, last, range(0, last + 1, 300))
    y = Axis("held-out loss", 0.003, 3, (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3), logarithmic=True)
    save("loss-by-level.svg", plot(x, y, lines))


def muon(run: Path) -> None:
    """Singular values of a momentum of the run, before and after."""
    saved = load_tensors(find_checkpoint(run) / "optimizer.pt")
    states = saved["muon"]["state"].values()
    momentum = next(s["momentum"] for s in states if s["momentum"].shape == (256, 256))
    before = torch.linalg.svdvals(momentum.double())
    after = torch.linalg.svdvals(orthogonalise(momentum[None])[0].double())
    lines = [
        Line(name, [(i, v) for i, v in enumerate(values.tolist()) if v >= 0.001])
        for name, values in (("momentum", before / before[0]), ("orthogonalised", after))
    ]
    x = Axis("singular value, by size", 0, 255, (0, 50, 100, 150, 200, 250))
    y = Axis("size", 0.001, 2, (0.001, 0.01, 0.1, 1), logarithmic=True)
    save("muon.svg", plot(x, y, lines))


def held_out(generator: ImageGenerator, count: int) -> list[str]:
    """Captions that the run never saw, evenly spread over them."""
    rows = open_data(generator.config).held_out.rows
    return [rows[i].captions[0] for i in evenly_spaced(len(rows), count)]


def guidance(run: Path) -> None:
    """The same prompts and noise at several scales."""
    generator = ImageGenerator(run, device="cpu")
    rows = []
    prompts = held_out(generator, 4)
    print(prompts)
    for prompt in prompts:
        scales = (1.0, 2.0, 4.0, 8.0, 16.0)
        drawn = [
            generator.generate(prompt, seed=7, guidance_scale=scale, num_inference_steps=20)
            for scale in scales
        ]
        rows.append((drawn, [f"scale {scale:g}" for scale in scales]))
    sheet(rows, "guidance.png", 96)


def drawing(run: Path) -> None:
    """What the solver holds on its way, and the picture it is told that will become."""
    generator = ImageGenerator(run, device="cpu")
    objective, steps = generator.objective, 8
    times = objective.noise_schedule.inference_timesteps(steps)
    text = generator.model.text_encoder(generator.words.encode(held_out(generator, 4)[1:2]))
    held: list[Tensor] = []
    told: list[Tensor] = []

    @torch.no_grad()
    def denoise(x: Tensor, timestep: float) -> Tensor:
        t = torch.tensor([timestep], dtype=torch.float32)
        x0 = objective.to_x0(generator.model(x, t, text), x, t)
        held.append(x)
        told.append(x0)
        return x0

    with torch.no_grad():
        x = torch.randn(1, 3, 32, 32, generator=seeded_generator(7, "figure"))
        end = SOLVERS["dpmsolver++"](denoise, x, times, objective.noise_schedule)
    labels = [f"t = {time:g}" for time in times.tolist()]
    above = to_pil(torch.cat([*held, end]))
    below = to_pil(torch.cat([*told, end]))
    sheet([(above, labels), (below, [""] * len(below))], "drawing.png", 72)


def solvers(run: Path) -> None:
    """How far each solver is from where it would end with 1,000 steps."""
    generator = ImageGenerator(run, device="cpu")
    objective = generator.objective
    prompts = held_out(generator, 8)
    text = generator.model.text_encoder(generator.words.encode(prompts))
    text = generator.model.denoiser.prepare(text)
    calls = 0

    @torch.no_grad()
    def denoise(x: Tensor, timestep: float) -> Tensor:
        nonlocal calls
        calls += 1
        t = torch.full((len(x),), timestep, dtype=torch.float32)
        return objective.to_x0(generator.model(x, t, text), x, t)

    with torch.no_grad():
        noise = torch.randn(len(prompts), 3, 32, 32, generator=seeded_generator(11, "figure"))
        path = objective.noise_schedule
        end = SOLVERS["heun"](denoise, noise, path.inference_timesteps(500), path)
        lines = []
        for name in ("ddim", "heun", "dpmsolver++", "unipc"):
            points = []
            for steps in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64):
                calls = 0
                drawn = SOLVERS[name](denoise, noise, path.inference_timesteps(steps), path)
                if calls <= 64:
                    points.append((calls, float((drawn - end).square().mean().sqrt())))
            lines.append(Line(name, points, dots=True))
    x = Axis("evaluations of the network", 2, 64, (2, 4, 8, 16, 32, 64), logarithmic=True)
    y = Axis("root mean square error", 0.002, 0.3, (0.003, 0.01, 0.03, 0.1, 0.3), True)
    save("solvers.svg", plot(x, y, lines))
    for line in lines:
        print(line.name, [(a, round(b, 4)) for a, b in line.points])


def sheet(rows: list[tuple[list[Image.Image], list[str]]], name: str, size: int) -> None:
    """Rows of pictures, each with its label under it."""
    gap, below = 8, 16
    width = max(len(images) for images, _ in rows) * (size + gap) + gap
    height = sum(size + gap + (below if any(labels) else 0) for _, labels in rows) + gap
    whole = Image.new("RGB", (width, height), "white")
    pen, top = ImageDraw.Draw(whole), gap
    for images, labels in rows:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            left = gap + i * (size + gap)
            enlarged = image.resize((size, size), Image.Resampling.NEAREST)
            whole.paste(enlarged, (left, top))
            pen.text((left + size / 2, top + size + 2), label, "black", anchor="ma")
        top += size + gap + (below if any(labels) else 0)
    whole.save(TO / name, optimize=True)


def save(name: str, text: str) -> None:
    (TO / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
