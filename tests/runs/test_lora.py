"""Adapters: only they learn, the checkpoint needs no peft to draw, and a run goes on to the bit."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from PIL import ImageChops
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from limner.apps.publishing.export import export
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.inherit import load_run_config
from limner.config import Config
from limner.errors import LimnerError
from limner.inference.generator import ImageGenerator
from limner.models.text_to_image import build_model
from limner.training.lora import merged
from limner.training.optimizer import TEXT_SHARE
from limner.training.trainer import Trainer

SHORT = [
    *("data.dataset_name=shapes", "data.num_samples=24", "data.image_size=16"),
    *("training.device=cpu", "training.batch_size=4", "training.max_steps=4"),
    *("training.save_steps=2", "training.logging_steps=1", "training.heldout_steps=2"),
    *("training.heldout_pictures=4", "training.preview_prompts=[a red circle]"),
    *("training.mixed_precision=no", "training.num_workers=0", "training.compile_model=false"),
    *("training.trackers=[none]", "lr_scheduler.warmup_steps=1", "training.learning_rate=0.01"),
    *("sampling.num_inference_steps=2", "lora.rank=3"),
]
FROZEN_TEXT = "lora.train_text_encoder=false"


@pytest.fixture
def adapted(trained: Path, tmp_path: Path, quick_end: None) -> Callable[..., Config]:
    """A configuration that learns adapters of the trained model."""

    def build(*more: str) -> Config:
        origin = f"training.init_from='{trained / 'outputs'}'"
        return load_run_config(
            None, [*SHORT, origin, f"training.output_dir='{tmp_path / 'l'}'", *more]
        )

    return build


def inputs(trainer: Trainer) -> tuple[Tensor, Tensor, Tensor]:
    assert trainer.run.tokenizer
    generator = torch.Generator().manual_seed(1)
    text = torch.stack([trainer.run.tokenizer(c) for c in ("a red circle", "a blue square")])
    return torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([300.0, 800.0]), text


@torch.no_grad()
def computed_by_the_merged(trainer: Trainer) -> list[Tensor]:
    """By the average and the model that a run's checkpoint holds: what those with adapters do."""
    saved, computed = Checkpoint.open(trainer.folder), list[Tensor]()
    for network, averaged in ((trainer.averaged, True), (trainer.model, False)):
        plain = build_model(saved.config, trainer.run.reader.text_size).eval()
        saved.load_weights(plain, averaged)
        computed.append(plain(*inputs(trainer)))
        expected = network.eval()(*inputs(trainer))
        torch.testing.assert_close(computed[-1], expected, rtol=1e-4, atol=1e-5)
    return computed


def test_at_first_it_draws_as_the_model_does(adapted: Callable[..., Config], trained: Path) -> None:
    trainer = Trainer(adapted())
    there = Checkpoint.open(trained / "outputs").tensors()
    assert merged(trainer.model).keys() == there.keys()
    assert all(torch.equal(t, there[name]) for name, t in merged(trainer.model).items())
    (said,) = [s for s in trainer.run.events.waiting if "LoRA" in s]
    learn = [p for p in trainer.model.parameters() if p.requires_grad]
    assert f"{sum(p.numel() for p in learn):,} parameters are trained" in said
    owned = [
        p for o in trainer.run.optimizers.values() for g in o.param_groups for p in g["params"]
    ]
    assert {id(p) for p in owned} == {id(p) for p in learn}


def test_the_text_encoder_learns_along(adapted: Callable[..., Config], trained: Path) -> None:
    trainer = Trainer(adapted())
    rates = {
        name: group["rate_share"]
        for optimizer in trainer.run.optimizers.values()
        for group in optimizer.param_groups
        for name, p in trainer.model.named_parameters()
        if any(p is own for own in group["params"])
    }
    text = {name for name, _ in trainer.model.named_parameters() if name.startswith("text_encoder")}
    assert {rates[name] for name in text} == {TEXT_SHARE}
    assert {rate for name, rate in rates.items() if name not in text} == {1.0}
    assert {name for name in rates if ".lora_" not in name} == text
    trainer.train()
    there = Checkpoint.open(trained / "outputs").tensors()
    state = trainer.model.state_dict()
    for name, tensor in there.items():
        now = state[name] if name in state else state[name.replace(".w", ".base_layer.w")]
        assert torch.equal(now, tensor) == (name not in text), name
    computed_by_the_merged(trainer)
    saved = Checkpoint.open(trainer.folder)
    assert not torch.equal(
        saved.tensors(True)["text_encoder.embedding.weight"],
        saved.tensors(False)["text_encoder.embedding.weight"],
    )


@pytest.mark.parametrize("ema", ["true", "false"])
def test_only_adapters_learn_and_the_merged_model_computes_the_same(
    adapted: Callable[..., Config], trained: Path, ema: str
) -> None:
    trainer = Trainer(adapted(FROZEN_TEXT, f"training.use_ema={ema}"))
    trainer.train()
    there = Checkpoint.open(trained / "outputs").tensors()
    for name, tensor in trainer.model.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(tensor, there[name.replace(".base_layer.", ".")]), name
    before = build_model(trainer.config, trainer.run.reader.text_size).eval()
    before.load_state_dict(there)
    with torch.no_grad():
        for now in computed_by_the_merged(trainer):
            assert (before(*inputs(trainer)) - now).abs().max() > 1e-3  # it did learn


@pytest.mark.parametrize(
    "more",
    [
        ("lora.dropout=0.2",),
        ("training.use_ema=false",),
        (FROZEN_TEXT,),
        (FROZEN_TEXT, "training.use_ema=false"),
    ],
)
def test_a_run_goes_on_to_the_bit(
    adapted: Callable[..., Config], trained: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained / "outputs", copy)
    config = adapted(*more, f"training.init_from='{copy}'")
    whole = Trainer(config)
    whole.train()
    shutil.rmtree(whole.folder / "checkpoint-4")
    shutil.rmtree(copy)  # a run that has begun does not need it
    again = Trainer(adapted(*more, f"training.init_from='{copy}'"))
    assert again.state.step == 2
    again.train()
    for one, other in ((whole.model, again.model), (whole.averaged, again.averaged)):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_peft_reads_the_adapter(adapted: Callable[..., Config], trained: Path) -> None:
    trainer = Trainer(adapted("lora.alpha=6", "lora.target_modules=[qkv, out]"))
    trainer.train()
    newest = trainer.folder / "checkpoint-4"
    assert json.loads((newest / "adapter" / "adapter_config.json").read_text("utf-8"))["r"] == 3
    plain = build_model(trainer.config, trainer.run.reader.text_size).eval()
    Checkpoint.open(trained / "outputs").load_weights(plain, averaged=True)
    x, t, ids = inputs(trainer)
    with torch.no_grad():
        kept = Checkpoint.open(newest).tensors()
        learned = {n: t for n, t in kept.items() if n.startswith("text_encoder.")}
        plain.load_state_dict(learned, strict=False)  # as docs/finetuning.md has it
        text = plain.text_encoder(ids)
        theirs = peft.PeftModel.from_pretrained(plain.denoiser, str(newest / "adapter")).eval()
        expected = trainer.averaged(x, t, ids)
        torch.testing.assert_close(theirs(x, t, text), expected, rtol=1e-4, atol=1e-5)
    names = load_file(newest / "adapter" / "adapter_model.safetensors")
    assert not any("gate_and_value" in name or "text_kv" in name for name in names)


def test_drawing_and_sharing_need_no_peft(
    adapted: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(adapted())
    trainer.train()
    monkeypatch.setitem(sys.modules, "peft", None)
    drawn = ImageGenerator(trainer.folder, device="cpu").generate("a red circle", seed=1)
    file = export(trainer.folder, tmp_path / "m.safetensors")
    shared_config = load_run_config(json.loads(header(file)["config"]))
    assert shared_config.lora.rank is None
    assert str(trainer.config.training.init_from) not in header(file)["config"]
    shared = ImageGenerator(file, device="cpu").generate("a red circle", seed=1)
    assert ImageChops.difference(drawn, shared).getbbox() is None
    with pytest.raises(LimnerError, match=r"pip install \"limner\[lora\]\""):
        Trainer(adapted())


def header(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def test_dit_as_published_has_adapters_in_its_blocks_alone(
    tiny_config: Callable[..., Config], adapted: Callable[..., Config]
) -> None:
    base = Trainer(tiny_config("model.architecture=dit"))
    base.train()
    trainer = Trainer(adapted(f"training.init_from='{base.folder}'"))
    every = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    learn = {n for n in every if not n.startswith("text_encoder.")}
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in learn} == {"qkv", "proj", "fc1", "fc2"}
    assert all(n.startswith("denoiser.blocks.") for n in learn)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.num_layers=3"], r"would stay random: denoiser\.blocks\.2"),
        (
            ["lora.target_modules=[query]"],
            r"no layer 'query'; choose from gate_and_value, out, qkv",
        ),
        (["optimizer.type=muon"], "are trained with AdamW"),
        (["training.init_from=null"], r"set training\.init_from to"),
        (["lora.rank=null", "lora.alpha=2"], r"lora\.alpha: has no effect without lora\.rank"),
        (["lora.rank=null", FROZEN_TEXT], r"lora\.train_text_encoder: has no effect without lora"),
    ],
)
def test_what_cannot_be_is_said(
    adapted: Callable[..., Config], overrides: list[str], sentence: str
) -> None:
    with pytest.raises(LimnerError, match=sentence):
        Trainer(adapted(*overrides))


def test_other_adapters_do_not_go_on(adapted: Callable[..., Config]) -> None:
    Trainer(adapted("training.max_steps=2")).train()
    with pytest.raises(LimnerError, match=r"lora\.rank: 3 in the checkpoint, 4 in the"):
        Trainer(adapted("lora.rank=4"), resume="latest")


def test_the_default_rate_is_what_adapters_need(adapted: Callable[..., Config]) -> None:
    def rate(*more: str) -> float | None:
        return adapted("training.learning_rate=null", *more).training.learning_rate

    assert rate() == 0.01
    assert rate("lora.rank=16") == 0.01
    assert rate("lora.rank=64") == 0.005
    assert rate("lora.rank=null") == 0.004
