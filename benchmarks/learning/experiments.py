"""Experiments that need a change of code: each function patches it in the process of one run.

Successful experiments move into src/limner; the others stay here, so that their results can be
reproduced.
"""

# mypy: ignore-errors
# Methods are replaced here, which no type says.
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from optimizer_experiments import (
    cautious,
    muon_3_iterations,
    normuon,
    polar_express_4,
    schedule_free,
)
from torch import Tensor, nn
from torch.nn import functional as F

from limner.data import examples
from limner.data.order import seeded_generator
from limner.diffusion.noise_schedule import FlowMatchingSchedule
from limner.diffusion.objective import Objective
from limner.models import modern
from limner.models.layers import patchify, run_blocks, unpatchify
from limner.text.conditioning import TextConditioning
from limner.training import train_step, trainer
from limner.training.batches import Batches
from limner.training.run import Run

# With the functions below, what a recipe can name.
__all__ = [
    "cautious",
    "muon_3_iterations",
    "normuon",
    "polar_express_4",
    "schedule_free",
]


def preconditioned() -> None:
    """The network puts out F, and x_0 = c_skip x_t + c_out F with the coefficients of Karras et al.
    2022 (equation 7, table 1) for the straight path: F's target has variance 1 at every noise."""
    data = 0.5  # standard deviation of pictures

    def coefficients(self: Objective, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self._alpha_sigma(t)
        square = (alpha * data) ** 2 + sigma**2
        return alpha * data**2 / square, sigma * data / square.sqrt()

    def to_x0(self: Objective, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        skip, out = coefficients(self, t)
        return skip * x_t.float() + out * output.float()

    def loss(self: Objective, output: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        skip, out = coefficients(self, t)
        target = (x0.float() - skip * self.add_noise(x0, noise, t)) / out
        return (output.float() - target).square().mean(dim=(1, 2, 3))

    Objective.to_x0, Objective.loss = to_x0, loss


def independent_times() -> None:
    """Each picture's time of noise is drawn by itself, and not spread over the batch."""

    def alone(count: int, seed: int) -> float:
        return float(torch.rand((), generator=seeded_generator(seed, "time", count)))

    examples.spread_evenly = alone


def contrastive() -> None:
    """Stoica et al. 2025 (arXiv 2506.05350): away from another picture's target, at 0.05."""
    before = Objective.loss

    def loss(self: Objective, output: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        other = before(self, output, x0.roll(1, 0), noise.roll(1, 0), t)
        if not output.requires_grad:
            return before(self, output, x0, noise, t)
        return before(self, output, x0, noise, t) - 0.05 * other

    Objective.loss = loss


def small_batches_first() -> None:
    """Half the batch in the first 40 % of the minutes: more updates while they are coarse."""
    before = Batches.of_next_update

    def of_next_update(self: Batches) -> list[Any]:
        batches = before(self)
        minutes = self.run.config.training.max_minutes or 0
        if self.run.state.seconds < 0.4 * 60 * minutes:
            batches = [next(iter(batch.pieces(2))) for batch in batches]
        return batches

    Batches.of_next_update = of_next_update


def coarse_first() -> None:
    """Pictures of half the side, a quarter of the tokens, in the first quarter of the minutes."""
    before = Batches.of_next_update

    def of_next_update(self: Batches) -> list[Any]:
        batches = before(self)
        coarse = self.run.state.seconds < 0.25 * 60 * (self.run.config.training.max_minutes or 0)
        # Not compiled while coarse: compiling for another size would cost more than it saves.
        torch.compiler.set_stance("force_eager" if coarse else "default")
        if coarse:
            batches = [
                dataclasses.replace(
                    batch,
                    image=F.avg_pool2d(batch.image, 2),
                    noise=batch.noise[:, :, ::2, ::2].contiguous(),
                )
                for batch in batches
            ]
        return batches

    Batches.of_next_update = of_next_update


def moving_times() -> None:
    """The mean of the times' logit moves from -1.2 (where is what?) to 0.3 (fine texture)."""

    def mean(run: Run) -> float:
        minutes = run.config.training.max_minutes or 1
        return -1.2 + 1.5 * min(1.0, run.state.seconds / (60 * minutes))

    _times(mean)


def times_jump() -> None:
    """-0.8 until the learning rate begins to fall, then 0.2."""
    _times(lambda run: 0.2 if run.decay_progress else -0.8)


def _times(mean: Callable[[Run], float]) -> None:
    plain, build = FlowMatchingSchedule.training_timesteps, trainer.Trainer.__init__
    place: list[Run] = []

    def init(self: trainer.Trainer, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        place.append(self.run)

    def training_timesteps(self: FlowMatchingSchedule, u: Tensor, moved: float = 0.0) -> Tensor:
        return plain(dataclasses.replace(self, logit_mean=mean(place[0])), u)

    trainer.Trainer.__init__ = init
    FlowMatchingSchedule.training_timesteps = training_timesteps


def augmented() -> None:
    """Non-leaky augmentation (Karras et al. 2022, appendix F): at 0.15, pictures are mirrored,
    scaled, turned, or shifted, and the model is told how; at sampling it is told nothing."""
    told: dict[str, Tensor] = {}
    build = modern.ModernDiT.__init__
    embed = modern.ModernDiT.forward
    before = train_step.TrainStep.loss

    def init(self: modern.ModernDiT, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        self.told = nn.Linear(6, self.hidden_size, bias=False)
        nn.init.zeros_(self.told.weight)

    def forward(self: modern.ModernDiT, x: Tensor, t: Tensor, y: TextConditioning) -> Tensor:
        how = told.get("how")
        if how is None or len(how) != len(x) or not self.training:
            return embed(self, x, t, y)
        hook = self.time_embedding.register_forward_hook(lambda _m, _i, out: out + self.told(how))
        try:
            return embed(self, x, t, y)
        finally:
            hook.remove()

    def loss(self: train_step.TrainStep, batch: Any, timesteps: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(int(batch.dropout_seed[0]) & 0x7FFFFFFF)
        image, told["how"] = transformed(batch.image, generator)
        object.__setattr__(batch, "picture", image)
        return before(self, batch, timesteps)

    modern.ModernDiT.__init__ = init
    modern.ModernDiT.forward = forward
    train_step.TrainStep.loss = loss


def transformed(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    count = len(images)
    on = (torch.rand(count, 4, generator=generator) < 0.15).float()
    normal = torch.randn(count, 4, generator=generator)
    flip = 1 - 2 * on[:, 0]
    scale = 2 ** (0.2 * normal[:, 0] * on[:, 1])
    angle = torch.pi * 0.15 * normal[:, 1] * on[:, 2]
    shift = 0.125 * normal[:, 2:4] * on[:, 3:]
    cos, sin = angle.cos() / scale, angle.sin() / scale
    matrix = torch.stack(
        [
            torch.stack([cos * flip, -sin, shift[:, 0]], -1),
            torch.stack([sin * flip, cos, shift[:, 1]], -1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images - 1, grid, align_corners=False) + 1  # white outside
    changed = (on.sum(dim=1) > 0)[:, None, None, None]
    how = torch.stack(
        [
            on[:, 0],
            scale.log2() * 5,
            angle.cos() - 1,
            angle.sin(),
            shift[:, 0] * 8,
            shift[:, 1] * 8,
        ],
        -1,
    )
    return torch.where(changed, moved, images), how


def two_noise_levels() -> None:
    """A quarter of the tokens at another noise level, each modulated by its own (Self-Flow, 2026,
    without its teacher)."""
    plain = modern.ModernDiT.forward
    second: dict[str, Tensor] = {}

    def loss(self: train_step.TrainStep, batch: Any, timesteps: Tensor) -> Tensor:
        path = self.objective.noise_schedule
        generator = torch.Generator().manual_seed(int(batch.dropout_seed[0]) & 0x7FFFFFFF)
        u = torch.rand(len(batch.u), generator=generator).clamp(1e-6, 1 - 1e-6)
        t, other = path.training_timesteps(batch.u), path.training_timesteps(u)
        patch = self.model.denoiser.patch_size
        side = batch.image.shape[-1] // patch
        chosen = torch.rand(len(u), side * side, generator=generator) < 0.25
        pixels = (
            chosen.view(-1, 1, side, side).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        )
        add = self.objective.add_noise
        x_t = torch.where(
            pixels, add(batch.image, batch.noise, other), add(batch.image, batch.noise, t)
        )
        second.update(t=other, chosen=chosen)
        with self.autocast():
            output = self.model(x_t, t, batch.text)
        second.clear()
        velocity = batch.noise - batch.image
        return (output.float() - velocity).square().mean(dim=(1, 2, 3))

    def forward(self: modern.ModernDiT, x: Tensor, t: Tensor, y: TextConditioning) -> Tensor:
        if not second:
            return plain(self, x, t, y)
        height, width = x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size
        positions, rotation = self.positions(height, width, x.device)
        tokens = self.patch_embedding(patchify(x, self.patch_size)) + positions
        conditions = [
            F.silu(self.time_embedding(time) + self.text_vector(y.pooled()))
            for time in (t, second["t"])
        ]
        chosen = second["chosen"][:, :, None]
        a, b = (self.modulation(c).unflatten(-1, (6, -1)) for c in conditions)
        modulation = torch.where(chosen[:, None], b[:, :, None], a[:, :, None])  # [B, 6, N, D]
        mask = F.pad(y.mask, (0, height * width), value=True)[:, None, None]
        tokens = run_blocks(
            self.blocks, *(tokens, modulation, y.tokens, mask, rotation), recompute=False
        )
        last = self.final_layer
        a, b = (last.modulation(c)[:, None] for c in conditions)
        shift, scale = torch.where(chosen, b, a).chunk(2, dim=-1)
        return unpatchify(
            last.linear(last.norm(tokens) * (1 + scale) + shift), self.patch_size, *x.shape[-2:]
        )

    def block(
        self: modern.ModernBlock,
        x: Tensor,
        modulation: Tensor,
        text: Tensor,
        mask: Tensor,
        rotation: Tensor,
    ) -> Tensor:
        table = self.modulation[:, None] if modulation.ndim == 4 else self.modulation
        m = modulation + table
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            m.unbind(1) if modulation.ndim == 4 else m[:, :, None].unbind(1)
        )
        x = x + gate1 * self.attention(
            self.norm_attention(x) * (1 + scale1) + shift1, text, mask, rotation
        )
        return x + gate2 * self.mlp(self.norm_mlp(x) * (1 + scale2) + shift2)

    train_step.TrainStep.loss = loss
    modern.ModernDiT.forward = forward
    modern.ModernBlock.forward = block


def self_alignment() -> None:
    """SRA (2025, arXiv 2505.02831): the second block's tokens, through a small head, resemble the
    fourth block's of the averaged model at less noise; weight 0.2, one more forward pass."""
    before = train_step.TrainStep.loss
    build = trainer.Trainer.__init__
    seen: dict[str, Tensor] = {}
    teacher: list[Any] = []

    def init(self: trainer.Trainer, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        teacher.append(self.averaged)
        hidden = self.model.denoiser.hidden_size
        head = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        teacher.append(head)
        self.run.optimizers["adamw"].add_param_group({"params": list(head.parameters())})
        blocks = self.model.denoiser.blocks

        def watched(given: nn.ModuleList, x: Tensor, *others: Tensor, recompute: bool) -> Tensor:
            student = given is blocks
            for i, one in enumerate(given):
                x = one(x, *others)
                if i == (1 if student else 3):
                    seen["student" if student else "teacher"] = x
            return x

        modern.run_blocks = watched

    def loss(self: train_step.TrainStep, batch: Any, timesteps: Tensor) -> Tensor:
        main = before(self, batch, timesteps)
        path = self.objective.noise_schedule
        t = path.training_timesteps(batch.u)
        less = (t - 0.1 * path.num_train_timesteps).clamp(min=1.0)
        x = self.objective.add_noise(batch.image, batch.noise, less)
        with torch.no_grad(), self.autocast():
            teacher[0](x, less, batch.text)
        with self.autocast():
            guess = teacher[1](seen["student"])
        alike = F.cosine_similarity(guess.float(), seen["teacher"].float(), dim=-1)
        return main + 0.2 * (1 - alike).mean(dim=1)

    trainer.Trainer.__init__ = init
    train_step.TrainStep.loss = loss


def routed() -> None:
    """TREAD (Krause et al. 2025, arXiv 2501.04765): half of the tokens pass by the middle blocks,
    except in the last tenth of the minutes."""
    torch._dynamo.config.automatic_dynamic_shapes = False
    plain = modern.run_blocks
    place: list[Run] = []
    build = trainer.Trainer.__init__

    def init(self: trainer.Trainer, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        place.append(self.run)

    def run(blocks: nn.ModuleList, x: Tensor, *others: Tensor, recompute: bool) -> Tensor:
        state, minutes = place[0].state, place[0].config.training.max_minutes or 0
        if not blocks.training or state.seconds > 0.9 * 60 * minutes:
            return plain(blocks, x, *others, recompute=recompute)
        modulation, text, mask, rotation = others
        count = x.shape[1]
        generator = torch.Generator().manual_seed(state.step)
        kept = torch.randperm(count, generator=generator)[: count // 2].sort().values
        x = plain(blocks[:1], x, *others, recompute=recompute)
        fewer = mask[..., : mask.shape[-1] - count // 2], rotation[:, kept]
        some = plain(blocks[1:-1], x[:, kept], modulation, text, *fewer, recompute=recompute)
        x = x.index_copy(1, kept, some)
        return plain(blocks[-1:], x, *others, recompute=recompute)

    trainer.Trainer.__init__ = init
    modern.run_blocks = run


def detail_head() -> None:
    """Two convolutions over [noisy picture ; prediction], steered by the tokens, add detail that
    patches are coarse for (in the manner of DiP, 2025, arXiv 2511.18822, and its like)."""
    build, plain = modern.ModernDiT.__init__, modern.ModernDiT.forward
    hidden, fold = 32, 2

    def init(self: modern.ModernDiT, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        seen = self.in_channels * fold**2
        self.steer = nn.Linear(self.hidden_size, 2 * hidden)
        self.first = nn.Conv2d(2 * seen, hidden, 3, padding=1)
        self.last = nn.Conv2d(hidden, seen, 3, padding=1)
        for layer in (self.steer, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self: modern.ModernDiT, x: Tensor, t: Tensor, y: TextConditioning) -> Tensor:
        at_last: list[Tensor] = []
        last = self.final_layer
        hook = last.register_forward_pre_hook(lambda _m, given: at_last.append(given[0]))
        coarse = plain(self, x, t, y)
        hook.remove()
        rows, columns = x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size
        steering = self.steer(last.norm(at_last[0])).mT.unflatten(-1, (rows, columns))
        scale, shift = steering[:, :, :, None, :, None].chunk(2, dim=1)
        h = self.first(F.pixel_unshuffle(torch.cat([x.to(coarse.dtype), coarse], dim=1), fold))
        patches = h.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))
        h = F.silu(patches * (1 + scale) + shift).view_as(h)
        return coarse + F.pixel_shuffle(self.last(h), fold)

    modern.ModernDiT.__init__, modern.ModernDiT.forward = init, forward


def open_gates() -> None:
    """Blocks start as the identity by the zeros of their last matrices, which Muon moves at once,
    and not by closed gates."""
    build = modern.ModernBlock.__init__

    def init(self: modern.ModernBlock, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        with torch.no_grad():
            self.modulation[[2, 5]] = 1.0
            self.out.weight.zero_()
            self.mlp.out.weight.zero_()

    modern.ModernBlock.__init__ = init


def long_skips() -> None:
    """U-ViT (Bao et al. 2022, arXiv 2209.12152), with sums: what leaves the first two blocks enters
    the last two as well, through a matrix each."""
    build = modern.ModernDiT.__init__

    def init(self: modern.ModernDiT, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        for block in self.blocks[-2:]:
            block.skip = nn.Linear(self.hidden_size, self.hidden_size, bias=False)
            nn.init.zeros_(block.skip.weight)

    def run(blocks: nn.ModuleList, x: Tensor, *others: Tensor, recompute: bool) -> Tensor:
        left: list[Tensor] = []
        for i, block in enumerate(blocks):
            if i >= len(blocks) - 2:
                x = x + block.skip(left[len(blocks) - 1 - i])
            x = block(x, *others)
            left.append(x)
        return x

    modern.ModernDiT.__init__ = init
    modern.run_blocks = run


def value_residual() -> None:
    """Zhou et al. 2024 (arXiv 2410.17897): each block's values are mixed half with the first's."""
    first: list[Tensor] = []

    def mixed(
        self: modern.ModernBlock, x: Tensor, text: Tensor, mask: Tensor, rotation: Tensor
    ) -> Tensor:
        b, n, width = x.shape
        q, k, v = (self.heads(part) for part in self.qkv(x).chunk(3, dim=-1))
        if self.is_first:
            first[:] = [v]
        else:
            v = 0.5 * (v + first[0])
        text_k, text_v = (self.heads(part) for part in self.text_kv(text).chunk(2, dim=-1))
        q, k = modern.rotate(self.norm_q(q), rotation), modern.rotate(self.norm_k(k), rotation)
        k = torch.cat([self.norm_k(text_k).to(k.dtype), k], dim=2)
        v = torch.cat([text_v, v], dim=2)
        attended = modern.attend(q.to(v.dtype), k.to(v.dtype), v, mask)
        return self.out(attended.transpose(1, 2).reshape(b, n, width))

    build = modern.ModernDiT.__init__

    def init(self: modern.ModernDiT, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        for i, one in enumerate(self.blocks):
            one.is_first = i == 0

    modern.ModernDiT.__init__ = init
    modern.ModernBlock.attention = mixed


def text_as_vector() -> None:
    """The words reach the picture only as one vector, as a class does."""
    forward = modern.ModernDiT.forward

    def pooled(self: modern.ModernDiT, x: Tensor, t: Tensor, y: TextConditioning) -> Tensor:
        one = y.pooled()
        alone = TextConditioning(
            torch.zeros_like(y.tokens[:, :1]), torch.ones_like(y.mask[:, :1]), one
        )
        return forward(self, x, t, alone)

    modern.ModernDiT.forward = pooled


def text_as_tokens() -> None:
    """The words reach the picture only as tokens that it attends to."""
    build = modern.ModernDiT.__init__

    def init(self: modern.ModernDiT, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        nn.init.zeros_(self.text_vector.weight)
        nn.init.zeros_(self.text_vector.bias)
        self.text_vector.requires_grad_(False)

    modern.ModernDiT.__init__ = init
