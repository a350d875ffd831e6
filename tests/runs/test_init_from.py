"""Fine-tuning: what a run that starts from another model takes from it, and what it says."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.inherit import load_run_config
from limner.cli import main
from limner.config import Config
from limner.errors import LimnerError
from limner.training.trainer import Trainer

SMALL_RUN = [
    *("data.dataset_name=shapes", "data.num_samples=24", "data.image_size=16"),
    *("training.device=cpu", "training.batch_size=4", "training.max_steps=4"),
    *("training.save_steps=2", "training.logging_steps=1", "training.heldout_steps=2"),
    *("training.heldout_pictures=4", "training.preview_prompts=[a red circle]"),
    *("training.mixed_precision=no", "training.num_workers=0", "training.compile_model=false"),
    *("training.trackers=[none]", "lr_scheduler.warmup_steps=1"),
    "sampling.num_inference_steps=2",
]


@pytest.fixture
def tuned(trained: Path, tmp_path: Path, quick_end: None) -> Callable[..., Config]:
    """A configuration without a model section, that starts from the trained one."""

    def build(*more: str) -> Config:
        origin = f"training.init_from='{trained / 'outputs'}'"
        output = f"training.output_dir='{tmp_path / 'tuned'}'"
        return load_run_config(None, [*SMALL_RUN, origin, output, *more])

    return build


def averaged(trained: Path) -> dict[str, torch.Tensor]:
    return Checkpoint.open(trained / "outputs").tensors()


def test_a_configuration_without_a_model_starts_as_the_other_ended(
    tuned: Callable[..., Config], trained: Path
) -> None:
    trainer = Trainer(tuned("data.image_size=32"))
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, averaged(trained)[name]), name
    assert trainer.config.model == Checkpoint.open(trained / "outputs").config.model
    assert trainer.state.step == 0
    assert any("initialised from" in sentence for sentence in trainer.run.events.waiting)


def test_the_words_are_kept_and_read_any_language(
    tuned: Callable[..., Config], trained: Path
) -> None:
    tokenizer = Trainer(tuned()).run.tokenizer
    earlier = Checkpoint.open(trained / "outputs").tokenizer
    assert tokenizer is not None
    assert earlier is not None
    assert torch.equal(tokenizer("a red circle"), earlier("a red circle"))
    assert tokenizer.length("红苹果") > 1


def test_more_layers_are_new_and_said(tuned: Callable[..., Config], trained: Path) -> None:
    trainer = Trainer(tuned("model.num_layers=3"))
    weights, there = trainer.model.state_dict(), averaged(trained)
    assert all(torch.equal(weights[name], tensor) for name, tensor in there.items())
    (said,) = [s for s in trainer.run.events.waiting if "initialised from" in s]
    assert "randomly initialised: denoiser.blocks.2 (not in that model)" in said


def test_another_patch_size_makes_first_and_last_layer_new(
    tuned: Callable[..., Config], trained: Path
) -> None:
    trainer = Trainer(tuned("model.patch_size=2"))
    (said,) = [s for s in trainer.run.events.waiting if "initialised from" in s]
    new = said.split("randomly initialised: ")[1]
    assert "denoiser.patch_embedding (64 x 12 in this model, 64 x 48 in the other)" in new
    assert "denoiser.final_layer" in new
    assert "blocks" not in new
    bias = trainer.model.state_dict()["denoiser.final_layer.linear.bias"]
    assert not bias.any()  # half a layer is not taken


def test_of_another_vocabulary_known_words_keep_their_rows(
    tuned: Callable[..., Config], trained: Path
) -> None:
    trainer = Trainer(tuned("text_encoder.vocab_size=320", "text_encoder.max_length=30"))
    earlier = Checkpoint.open(trained / "outputs").tokenizer
    assert trainer.run.tokenizer is not None
    assert earlier is not None
    known = earlier.tokenizer.get_vocab()
    rows, there = trainer.model.text_encoder.embedding.weight, averaged(trained)
    shared = {w: i for w, i in trainer.run.tokenizer.tokenizer.get_vocab().items() if w in known}
    assert len(shared) >= 256
    for word, i in shared.items():
        assert torch.equal(rows[i], there["text_encoder.embedding.weight"][known[word]])
    positions = trainer.model.text_encoder.positions
    assert torch.equal(positions[:24], there["text_encoder.positions"])


def test_another_width_that_fits_nowhere_is_refused(tuned: Callable[..., Config]) -> None:
    with pytest.raises(LimnerError, match=r"no weights of .* fit this model"):
        Trainer(tuned("model.hidden_size=128", "text_encoder.hidden_size=128"))


def test_a_model_that_is_not_there_is_said(tuned: Callable[..., Config]) -> None:
    with pytest.raises(LimnerError, match=r"training\.init_from: no model found at"):
        tuned("training.init_from=nowhere")


def test_resume_needs_the_first_model_no_more(
    tuned: Callable[..., Config], trained: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained / "outputs", copy)
    there = f"training.init_from='{copy}'"
    whole = Trainer(tuned(there))
    whole.train()
    shutil.rmtree(tmp_path / "tuned" / "checkpoint-4")
    shutil.rmtree(copy)
    again = Trainer(tuned(there))  # the same command
    assert again.state.step == 2
    again.train()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_what_fits_and_means_something_else_is_said(tuned: Callable[..., Config]) -> None:
    heads = tuned().model.num_heads
    (said,) = [
        s
        for s in Trainer(tuned(f"model.num_heads={2 * heads}")).run.events.waiting
        if "fit, but" in s
    ]
    assert f"model.num_heads: {heads} in that model, {2 * heads} in this run" in said
    (said,) = [
        s
        for s in Trainer(tuned("scheduler.prediction_type=sample")).run.events.waiting
        if "fit, but" in s
    ]
    assert "scheduler.prediction_type: velocity in that model, sample in this run" in said
    assert not [s for s in Trainer(tuned()).run.events.waiting if "fit, but" in s]
    with pytest.raises(LimnerError, match=r"lora\.rank.*model\.num_heads"):
        Trainer(tuned("lora.rank=2", f"model.num_heads={2 * heads}"))


def test_an_exported_file_is_a_model_to_start_from(
    tuned: Callable[..., Config], trained: Path, tmp_path: Path
) -> None:
    file = tmp_path / "painter.safetensors"
    assert main(["export", str(trained / "outputs"), "--output", str(file)]) == 0
    trainer = Trainer(tuned(f"training.init_from='{file}'"))
    assert trainer.config.model == Checkpoint.open(trained / "outputs").config.model
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, averaged(trained)[name]), name
    (tmp_path / "other.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(LimnerError, match="not written by limner export"):
        tuned(f"training.init_from='{tmp_path / 'other.safetensors'}'")
