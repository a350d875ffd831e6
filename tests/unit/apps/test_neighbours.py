"""Flags that people know from other trainers."""

import argparse
import shlex

import pytest

from limner.apps.own_pictures.request import Request
from limner.apps.own_pictures.start import Start
from limner.checkpoint.inherit import load_run_config
from limner.cli import main
from limner.commands.common import as_overrides
from limner.commands.neighbours import ANSWERS, FOLDER_FLAGS, KEYS, NOT_NEEDED
from limner.commands.train import settings
from limner.config import Config, known_keys
from limner.errors import LimnerError

DIFFUSERS = (
    "--train_data_dir photos --resolution 96 --train_batch_size 16 --gradient_accumulation_steps 2 "
    "--gradient_checkpointing --max_train_steps 1000 --learning_rate 1e-4 --lr_scheduler cosine "
    "--lr_warmup_steps 20 --mixed_precision bf16 --output_dir outputs/x --checkpointing_steps 500 "
    "--report_to wandb --seed 3 --random_flip --validation_prompt 'a cat, on a chair' "
    "--dataloader_num_workers 4 --max_grad_norm 0.5 --max_train_samples 100 --adam_weight_decay 0.1"
)
KOHYA = (
    "--train_data_dir=photos --output_dir=out --max_train_epochs=20 --network_dim=8 "
    "--network_alpha=4 --optimizer_type=AdamW --save_every_n_steps=100 --enable_bucket "
    "--caption_dropout_rate=0.05 --sample_every_n_steps=200 --max_data_loader_n_workers=1 "
    "--log_with=tensorboard"
)


def read(line: str) -> Config:
    return load_run_config(None, [o for o in as_overrides(shlex.split(line)) if "lora" not in o])


def test_a_line_of_diffusers_examples_is_understood() -> None:
    config = read(DIFFUSERS)
    training = config.training
    assert (config.data.dataset_path, config.data.image_size) == ("photos", 96)
    assert (training.batch_size, training.gradient_accumulation_steps) == (16, 2)
    assert training.gradient_checkpointing
    assert (training.max_steps, training.learning_rate, training.save_steps) == (1000, 1e-4, 500)
    assert (config.lr_scheduler.type, config.lr_scheduler.warmup_steps) == ("cosine", 20)
    assert (training.mixed_precision, training.output_dir) == ("bf16", "outputs/x")
    assert (training.trackers, training.seed, training.num_workers) == (("wandb",), 3, 4)
    assert config.data.horizontal_flip == 0.5
    assert training.preview_prompts == ("a cat, on a chair",)
    assert (training.max_grad_norm, config.data.num_samples) == (0.5, 100)
    assert config.optimizer.weight_decay == 0.1


def test_a_line_of_kohyas_scripts_is_understood() -> None:
    config = read(KOHYA)
    assert (config.data.buckets, config.training.num_epochs) == ("auto", 20)
    assert (config.optimizer.type, config.training.caption_dropout) == ("adamw", 0.05)
    assert config.training.trackers == ("tensorboard",)
    assert "lora.rank=8" in as_overrides(["--network_dim=8"])


def typed(line: str, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What `limner train` is called with."""
    found: list[argparse.Namespace] = []
    monkeypatch.setattr("limner.commands.train.run", found.append)
    assert main(["train", *shlex.split(line)]) == 0
    return found[0]


def test_no_value_of_a_flag_is_taken_for_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    options = typed(DIFFUSERS, monkeypatch)
    assert (options.where, options.train_data_dir) == (None, "photos")
    assert options.overrides == as_overrides(shlex.split(DIFFUSERS))[1:]
    options = typed("--training.batch_size 16 --config a.yaml --seed 3", monkeypatch)
    assert (options.where, str(options.config)) == (None, "a.yaml")
    assert options.overrides == ["training.batch_size=16", "training.seed=3"]
    for line in (
        "photos --learning_rate 1e-4 --gradient_checkpointing --minutes 3",
        "--learning_rate 1e-4 photos --minutes 3 --gradient_checkpointing",
        "--minutes 3 --learning_rate=1e-4 --gradient_checkpointing photos",
        "--xformers photos --caption_extension .txt --minutes 3 --learning_rate=1e-4",
        "--bf16 photos --minutes 3 --cache_latents --learning_rate=1e-4",
        "--enable_bucket photos --minutes 3 training.learning_rate=1e-4",
    ):
        options = typed(line, monkeypatch)
        assert (options.where, options.minutes) == ("photos", 3)
        assert any("learning_rate=1e-4" in word for word in options.overrides)


def test_a_switch_leaves_the_setting_after_it_alone() -> None:
    words = ["--enable_bucket", "model.num_layers=2"]
    assert as_overrides(words) == ["data.buckets=true", "model.num_layers=2"]


def test_a_commands_own_section_comes_first() -> None:
    assert as_overrides(["--guidance_scale", "3"], "distill") == ["distill.guidance_scale=3"]
    assert as_overrides(["--guidance_scale", "3"], "train") == ["sampling.guidance_scale=3"]


def test_what_is_answered_is_answered_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "photos", "--push_to_hub"]) == 2
    assert "limner publish" in capsys.readouterr().err


def test_hyphens_and_keys_without_their_section() -> None:
    assert as_overrides(["--learning-rate", "1e-3"]) == ["training.learning_rate=1e-3"]
    assert as_overrides(["--patch_size=8"]) == ["model.patch_size=8"]
    assert as_overrides(["--num_inference_steps", "8"]) == ["sampling.num_inference_steps=8"]
    assert as_overrides(["--train_split", "0.9"]) == ["data.train_split=0.9"]


def test_switches_do_not_eat_the_next_flag() -> None:
    assert as_overrides(["--use_ema", "--seed", "1"]) == [
        "training.use_ema=true",
        "training.seed=1",
    ]
    assert as_overrides(["--random_flip=false"]) == ["data.horizontal_flip=0.0"]
    assert as_overrides(["--horizontal_flip", "0.2"]) == ["data.horizontal_flip=0.2"]


@pytest.mark.parametrize("flag", sorted(ANSWERS))
def test_what_has_no_key_is_answered(flag: str) -> None:
    with pytest.raises(LimnerError, match=f"--{flag} is a flag of other trainers; here: "):
        as_overrides([f"--{flag}", "value"])


def test_every_key_that_is_meant_exists() -> None:
    known = set(known_keys())
    assert set(KEYS.values()) <= known
    names = {key.partition(".")[2] for key in known}
    assert not names & {*KEYS, *ANSWERS, *NOT_NEEDED} - {"output_dir", "type"}
    assert not (set(KEYS) & set(ANSWERS))
    assert not ({*KEYS, *ANSWERS} & set(NOT_NEEDED))


def test_what_nobody_knows_is_still_an_error() -> None:
    with pytest.raises(LimnerError, match="unrecognized argument '--magic'"):
        as_overrides(["--magic", "1"])


def test_settings_with_their_section_are_as_before() -> None:
    rest = ["--training.batch_size", "4", "data.image_size=32", "--model.num_layers=2"]
    assert as_overrides(rest) == [
        "training.batch_size=4",
        "data.image_size=32",
        "model.num_layers=2",
    ]
    with pytest.raises(LimnerError, match="needs a value"):
        as_overrides(["--training.batch_size"])


@pytest.mark.parametrize("flag", sorted(NOT_NEEDED))
def test_what_is_done_anyway_is_passed_over_with_a_word(
    flag: str, caplog: pytest.LogCaptureFixture
) -> None:
    value = ["txt"] if flag == "caption_extension" else []
    with caplog.at_level("INFO"):
        assert as_overrides([f"--{flag}", *value, "--seed", "3"]) == ["training.seed=3"]
    assert f"--{flag} is not needed: {NOT_NEEDED[flag]}" in caplog.text


def test_other_files_of_captions_are_answered() -> None:
    assert as_overrides(["--caption-extension=.caption"]) == []
    with pytest.raises(LimnerError, match=r"--caption_extension \.tags: .*rename the files"):
        as_overrides(["--caption_extension", ".tags"])


def test_a_size_of_two_equal_sides_is_its_side() -> None:
    for size in ("512,512", "512x512", "(512, 512)", "512"):
        assert as_overrides(["--resolution", size]) == ["data.image_size=512"]
    with pytest.raises(LimnerError, match=r"--resolution 768,512: .*data\.buckets=auto"):
        as_overrides(["--resolution=768,512"])


def test_switches_that_name_a_precision() -> None:
    assert as_overrides(["--bf16", "--seed", "1"])[0] == "training.mixed_precision=bf16"
    assert as_overrides(["--fp16=false"]) == ["training.mixed_precision=no"]


def test_a_file_of_another_trainer_is_no_name_of_a_configuration() -> None:
    assert as_overrides(["--dataset_config", "plain_text"]) == ["data.dataset_config=plain_text"]
    with pytest.raises(LimnerError, match=r"--dataset_config set\.toml: .*limner train FOLDER"):
        as_overrides(["--dataset_config", "set.toml"])


@pytest.mark.parametrize("flag", FOLDER_FLAGS)
def test_a_folder_by_a_flag_of_other_trainers_gets_a_choice(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def start(request: Request) -> Start:
        asked.append(request)
        return Start(load_run_config(None, []), None, [])

    monkeypatch.setattr("limner.apps.own_pictures.start.start", start)
    options = typed(f"--{flag} emoji --resolution 96", monkeypatch)
    settings(options)
    assert (asked[0].data, asked[0].overrides) == ("emoji", ["data.image_size=96"])
    with_a_file = typed(f"--{flag} emoji --config shapes", monkeypatch)
    config, _ = settings(with_a_file)
    assert len(asked) == 1
    name, path = config.data.dataset_name, config.data.dataset_path
    assert (name if flag == "dataset_name" else path) == "emoji"
