"""Settings: read, overridden, checked as a whole, resolved; what is wrong is named with its fix."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from limner.config import Config, known_keys, load_config
from limner.errors import LimnerError

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


def problems(source: Any, *overrides: str) -> list[str]:
    """The sentences of the error that a configuration gives, one for each key that is wrong."""
    with pytest.raises(LimnerError) as error:
        load_config(source, overrides)
    first, *sentences = str(error.value).splitlines()
    assert first.endswith("is not valid:")
    return [sentence.removeprefix("  - ") for sentence in sentences]


def problem(*overrides: str) -> str:
    (sentence,) = problems(None, *overrides)
    return sentence


def test_defaults_are_those_of_the_contract() -> None:
    model = load_config().model
    assert (model.hidden_size, model.num_layers, model.num_heads) == (384, 8, 6)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_of_the_repository_loads(path: Path) -> None:
    config = load_config(path)
    assert config.model.patch_size
    smaller = {"latents.yaml": 8, "emoji_latents.yaml": 4}.get(path.name, 1)  # autoencoder's part
    side = config.data.image_size // smaller
    assert (side // config.model.patch_size) ** 2 <= 256  # tokens


def test_every_key_has_a_description_and_is_listed() -> None:
    keys = known_keys()
    undescribed = [
        f"{section}.{key}"
        for section, field in Config.model_fields.items()
        for key, inner in field.annotation.model_fields.items()  # type: ignore[union-attr]
        if not inner.description
    ]
    assert undescribed == []
    dumped = load_config().model_dump()
    assert keys == [f"{section}.{key}" for section, inner in dumped.items() for key in inner]
    assert len(keys) == len(set(keys))


# What is written is what is read


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["scheduler.prediction_type=epsilon", "optimizer.betas=[0.9, 0.999]"],
        ["scheduler.objective=flow_matching", "scheduler.prediction_type=epsilon"],
        ["model.architecture=dit", "training.preview_prompts=[红苹果, 'no: yes']"],
        ["data.image_size=48", "model.patch_size=6", "training.mixed_precision=no"],
        ["training.max_minutes=2.5", "training.trackers=[]", "data.dataset_path=C:\\数据"],
    ],
)
def test_a_resolved_configuration_is_the_same_after_writing_and_reading(
    overrides: list[str], tmp_path: Path
) -> None:
    config = load_config(None, overrides)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(path) == config
    assert load_config(yaml.safe_load(config.to_yaml())) == config
    assert load_config(path).to_yaml() == config.to_yaml()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_configs_are_the_same_after_writing_and_reading(path: Path) -> None:
    config = load_config(path)
    assert load_config(yaml.safe_load(config.to_yaml())) == config


def test_overrides_are_yaml_and_the_last_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: {hidden_size: 64, num_heads: 2}\n", encoding="utf-8")
    config = load_config(
        path,
        [
            "model.num_heads=4",
            "model.num_heads=1",
            "training.learning_rate=1e-4",  # YAML reads this as words
            "training.mixed_precision=no",  # and this as false
            "training.use_ema=off",
            "data.num_samples=null",
            "optimizer.betas=[0.8, 0.95]",
            "training.output_dir=a=b",
            "training.preview_prompts=['a: b', '#c']",
        ],
    )
    assert (config.model.hidden_size, config.model.num_heads) == (64, 1)
    assert config.training.learning_rate == 1e-4
    assert config.training.mixed_precision == "no"
    assert config.training.use_ema is False
    assert config.data.num_samples is None
    assert config.optimizer.betas == (0.8, 0.95)
    assert config.training.output_dir == "a=b"
    assert config.training.preview_prompts == ("a: b", "#c")


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("shots/Roll #3", "shots/Roll #3"),
        (" #3 ", "#3"),
        ("20: 30", "20: 30"),
        ("2026-11-29", "2026-11-29"),
        ("007", "007"),
        ("yes", "yes"),
        ("&a b", "&a b"),
        ("*.tar", "*.tar"),
        ("'a #3'  # with a comment", "a #3"),
        ('"a b"', "a b"),
    ],
)
def test_a_text_on_the_command_line_is_taken_as_it_was_typed(typed: str, text: str) -> None:
    keys = ("data.dataset_path", "training.output_dir", "training.run_name", "data.allowed_paths")
    for key in keys:
        section, _, name = key.partition(".")
        assert getattr(getattr(load_config(None, [f"{key}={typed}"]), section), name) == text
    config = load_config(None, ["training.run_name=null", "data.allowed_paths=[a, 'b #1']"])
    assert config.training.run_name is None
    assert config.data.allowed_paths == ("a", "b #1")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    keys = (
        *("training.output_dir", "training.init_from", "cache.folder"),
        *("evaluation.reference", "evaluation.inception", "evaluation.clip"),
    )
    (tmp_path / "my.yaml").write_text("training: {output_dir: ~/runs/a}", encoding="utf-8")
    config = load_config("~/my.yaml")
    assert Path(config.training.output_dir) == tmp_path / "runs" / "a"
    for key in keys:
        section, _, name = key.partition(".")
        found = getattr(getattr(load_config(None, [f"{key}=~/a/b"]), section), name)
        assert Path(found) == tmp_path / "a" / "b"
    assert load_config(None, ["data.dataset_path=~/a"]).data.dataset_path == "~/a"


def test_a_dictionary_that_was_given_is_left_as_it_was() -> None:
    mine: dict[str, Any] = {"model": {"hidden_size": 64, "num_heads": 2}}
    load_config(mine, ["model.num_heads=1", "training.seed=3"])
    assert mine == {"model": {"hidden_size": 64, "num_heads": 2}}


def test_a_section_without_keys_and_an_empty_file_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for text in ("", "vae:\ntext_encoder:\n  # pretrained_model_name: clip\n", "model: {}"):
        path.write_text(text, encoding="utf-8")
        assert load_config(path) == load_config()
    assert load_config(path, ["vae.use_slicing=true"]).vae.use_slicing


def test_a_configuration_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config().training.seed = 3  # type: ignore[misc]


# What is left open is chosen


@pytest.mark.parametrize(
    ("overrides", "rate"),
    [
        ([], 4e-3),
        (["model.hidden_size=64", "model.num_heads=1"], 4e-3),
        (["model.hidden_size=1024", "model.num_heads=16"], 2e-3),
        (["optimizer.type=adamw"], 1e-3),
        (["optimizer.type=adamw", "model.hidden_size=1024", "model.num_heads=16"], 5e-4),
        (["training.learning_rate=3e-2", "model.hidden_size=1024", "model.num_heads=16"], 3e-2),
    ],
)
def test_the_learning_rate_follows_the_optimizer_and_the_width(
    overrides: list[str], rate: float
) -> None:
    base = {"model": {"hidden_size": 256, "num_heads": 4}}
    assert load_config(base, overrides).training.learning_rate == rate


def test_a_mean_of_the_times_that_is_set_stays_unless_its_end_is_set_too() -> None:
    for given, end in (({"logit_mean": 0.5}, 0.5), ({"logit_mean": 0.5, "logit_mean_end": 2}, 2)):
        scheduler = load_config({"scheduler": given}).scheduler
        assert (scheduler.logit_mean, scheduler.logit_mean_end) == (0.5, end)
    scheduler = load_config({}).scheduler
    assert scheduler.logit_mean is not None
    assert scheduler.logit_mean_end is not None
    assert scheduler.logit_mean_end > scheduler.logit_mean


@pytest.mark.parametrize(
    ("data", "times"),
    [
        ({"image_size": 32}, (-1, 2)),
        ({"image_size": 64}, (-1, 2)),
        ({"image_size": 128}, (-1.69, 1.58)),
        ({"image_size": 256}, (-2.39, 1.17)),
        ({"image_size": 512}, (-3.08, 0.75)),
    ],
)
def test_larger_pictures_are_trained_in_more_noise(
    data: dict[str, int], times: tuple[float, float]
) -> None:
    scheduler = load_config({"data": data}).scheduler
    assert (scheduler.logit_mean, scheduler.logit_mean_end) == times
    kept = load_config({"data": data, "scheduler": {"logit_mean": -0.123}}).scheduler
    assert (kept.logit_mean, kept.logit_mean_end) == (-0.123, -0.123)


@pytest.mark.parametrize(
    ("given", "objective", "prediction"),
    [
        ({}, "flow_matching", "velocity"),
        ({"prediction_type": "sample"}, "flow_matching", "sample"),
        ({"prediction_type": "velocity"}, "flow_matching", "velocity"),
        ({"objective": "flow_matching", "prediction_type": "Epsilon"}, "flow_matching", "epsilon"),
        ({"objective": "diffusion"}, "diffusion", "epsilon"),
        ({"prediction_type": "epsilon"}, "diffusion", "epsilon"),
        ({"prediction_type": "v_prediction"}, "diffusion", "v_prediction"),
        ({"beta_start": 0.001}, "diffusion", "epsilon"),
        ({"beta_end": 0.01, "prediction_type": "sample"}, "diffusion", "sample"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "diffusion", "epsilon"),
    ],
)
def test_the_objective_follows_from_the_keys_that_are_there(
    given: dict[str, Any], objective: str, prediction: str
) -> None:
    scheduler = load_config({"scheduler": given}).scheduler
    assert (scheduler.objective, scheduler.prediction_type) == (objective, prediction)
    assert (scheduler.logit_mean is None) == (objective == "diffusion")
    assert (scheduler.logit_mean_end is None) == (objective == "diffusion")
    betas = (scheduler.beta_start, scheduler.beta_end, scheduler.beta_schedule)
    if objective == "diffusion":
        default = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
        assert betas == tuple(given.get(key, value) for key, value in default.items())
    else:
        assert betas == (None, None, None)


@pytest.mark.parametrize(("image_size", "patch"), [(16, 1), (32, 2), (64, 4), (256, 16), (8, 1)])
def test_open_sizes_follow_the_picture(image_size: int, patch: int) -> None:
    config = load_config({"data": {"image_size": image_size}})
    assert config.model.patch_size == patch
    assert config.model.in_channels == config.model.out_channels == 3


@pytest.mark.parametrize(
    ("width", "text"), [(32, 64), (64, 64), (320, 320), (384, 384), (768, 384)]
)
def test_the_text_encoder_is_as_wide_as_the_model_in_whole_heads(width: int, text: int) -> None:
    config = load_config({"model": {"hidden_size": width, "num_heads": 1}})
    assert config.text_encoder.hidden_size == text
    assert config.text_encoder.hidden_size % 64 == 0


# What is wrong is named


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("training.batchsize", "training.batch_size"),
        ("training.hidden_size", "model.hidden_size"),
        ("optimizer.learning_rate", "training.learning_rate"),
        ("model.num_head", "model.num_heads"),
        ("data.image_sise", "data.image_size"),
        ("lr_scheduler.warmup", "lr_scheduler.warmup_steps"),
        ("scheduler.beta_begin", "scheduler.beta_end"),
        ("vae.slicing", "vae.use_slicing"),
        ("dataset.image_size", "data.image_size"),
        ("trainin.batch_size", "training.batch_size"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(key: str, meant: str) -> None:
    sentence = problem(f"{key}=1")
    if sentence.startswith(key):
        assert sentence == f"{key} is not a known key; did you mean {meant}?"
    else:  # the section is not known; its name is what has to be mended
        section, wanted = key.partition(".")[0], meant.partition(".")[0]
        assert sentence == f"{section} is not a known key; did you mean {wanted}?"


def test_a_key_outside_of_its_section_is_shown_its_place() -> None:
    (sentence,) = problems({"learning_rate": 1e-4})
    assert sentence == "learning_rate is not a known key; did you mean training.learning_rate?"


@pytest.mark.parametrize("key", known_keys())
def test_a_misspelt_key_of_any_name_is_refused_with_its_own_name(key: str) -> None:
    assert problem(f"{key}x=1") == f"{key}x is not a known key; did you mean {key}?"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.batch_size=true", "must be a number, got True"),
        ("training.learning_rate=yes", "must be a number, got True"),
        ("optimizer.betas=[0.9, on]", "must be a number, got True"),
        ("data.num_samples=false", "must be a number, got False"),
        ("scheduler.logit_mean=false", "must be a number, got False"),
        ("model.num_heads=six", "must be a whole number, got 'six'"),
        ("data.image_size=64.5", "must be a whole number, got 64.5"),
        ("training.learning_rate=fast", "must be a number, got 'fast'"),
        ("training.learning_rate=.nan", "must be a finite number, got nan"),
        ("training.learning_rate=0", "must be greater than 0, got 0"),
        ("training.use_ema=perhaps", "must be true or false, got 'perhaps'"),
        ("training.output_dir=[3]", "must be text, got [3]"),
        ("data.languages=zh", "must be a list, got 'zh'"),
        ("optimizer.betas=[0.9]", "must be a list with more values, got [0.9]"),
        ("optimizer.betas=[0.9, 0.99, 1]", "must be a list with fewer values, got [0.9, 0.99, 1]"),
        ("optimizer.betas=[0.9, 1.0]", "must be less than 1, got 1.0"),
        ("scheduler.beta_end=1.5", "must be less than 1, got 1.5"),
        ("optimizer.type=sgd", "must be 'muon' or 'adamw', got 'sgd'"),
        ("training.mixed_precision=fp8", "must be 'auto', 'no', 'fp16' or 'bf16', got 'fp8'"),
        ("sampling.scheduler_type=dpm", "'dpmsolver++' or 'unipc', got 'dpm'"),
        ("training.seed=-1", "must be greater than or equal to 0, got -1"),
        ("data.train_split=0", "must be greater than 0, got 0"),
        ("model.dropout=1", "must be less than 1, got 1"),
    ],
)
def test_a_value_of_the_wrong_kind_names_the_key_and_what_is_expected(
    override: str, said: str
) -> None:
    sentence = problem(override)
    assert sentence.startswith(override.partition("=")[0] + ": ")
    assert sentence.endswith(said)


@pytest.mark.parametrize(
    ("overrides", "key", "fix"),
    [
        (["model.num_heads=7"], "model.num_heads", "use 6 or 8"),
        (["model.hidden_size=60", "model.num_heads=6"], "model.num_heads", "divisible by 4"),
        (
            ["model.architecture=dit", "model.hidden_size=66"],
            "model.hidden_size",
            "divisible by 4",
        ),
        (["data.image_size=30", "model.patch_size=4"], "data.image_size", "use 28 or 32"),
        (["data.image_size=2", "model.patch_size=4"], "data.image_size", "use 4 or 4"),
        (["model.in_channels=4"], "model.in_channels", "vae.pretrained_model_name"),
        (["model.out_channels=6"], "model.out_channels", "remove it"),
        (
            ["scheduler.objective=flow_matching", "scheduler.prediction_type=v_prediction"],
            "scheduler.prediction_type",
            "flow_matching supports velocity, sample, and epsilon",
        ),
        (
            ["scheduler.objective=diffusion", "scheduler.prediction_type=velocity"],
            "scheduler.prediction_type",
            "diffusion supports epsilon, v_prediction, and sample",
        ),
        (
            ["scheduler.beta_start=0.01", "scheduler.beta_end=0.001"],
            "scheduler.beta_start",
            "0.01 must be below scheduler.beta_end 0.001",
        ),
        (["scheduler.beta_start=0.05"], "scheduler.beta_start", "scheduler.beta_end 0.02"),
        (
            ["scheduler.objective=flow_matching", "scheduler.beta_start=0.001"],
            "scheduler.beta_start",
            "remove one of the two",
        ),
        (
            ["scheduler.objective=diffusion", "scheduler.logit_mean=1"],
            "scheduler.logit_mean",
            "remove it",
        ),
        (["sampling.guidance_interval=[0.9, 0.1]"], "sampling.guidance_interval", "[0.1, 0.9]"),
        (
            ["scheduler.objective=diffusion", "sampling.shift=3"],
            "sampling.shift",
            "leave it at 1, or set scheduler.objective=flow_matching",
        ),
        (
            ["scheduler.objective=diffusion", "scheduler.num_train_timesteps=10"],
            "sampling.num_inference_steps",
            "use fewer",
        ),
        (
            ["training.max_minutes=5", "lr_scheduler.type=cosine"],
            "lr_scheduler.type",
            "wsd or constant",
        ),
        (
            ["training.max_minutes=5", "lr_scheduler.type=linear"],
            "lr_scheduler.type",
            "training.max_steps or training.num_epochs",
        ),
    ],
)
def test_an_impossible_combination_names_the_key_and_the_fix(
    overrides: list[str], key: str, fix: str
) -> None:
    sentence = problem(*overrides)
    assert sentence.startswith(f"{key}: ")
    assert fix in sentence


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.max_minutes=5", "lr_scheduler.type=cosine", "training.max_steps=10"],
        ["training.max_minutes=5", "lr_scheduler.type=linear", "training.num_epochs=1"],
        ["training.max_minutes=5", "lr_scheduler.type=constant"],
        ["training.num_epochs=5", "lr_scheduler.type=cosine"],
        ["scheduler.objective=flow_matching", "sampling.shift=3"],
        ["model.architecture=dit", "model.hidden_size=60", "model.num_heads=6"],
        ["model.in_channels=4", "vae.pretrained_model_name=some/vae"],
    ],
)
def test_what_is_possible_is_not_refused(overrides: list[str]) -> None:
    load_config(None, overrides)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    kinds = problems({"training": {"lr": 1, "seed": -1}, "model": {"num_heads": "six"}})
    assert [sentence.split(" ")[0] for sentence in kinds] == [
        "model.num_heads:",
        "training.seed:",
        "training.lr",
    ]
    wrong_together = ["model.num_heads=7", "data.image_size=30", "model.patch_size=4"]
    combinations = problems(None, *wrong_together, "sampling.guidance_interval=[1, 0]")
    assert len(combinations) == 3
    assert all(
        any(key in sentence for sentence in combinations)
        for key in ("model.num_heads", "data.image_size", "sampling.guidance_interval")
    )


# Files


def test_a_missing_file_is_named_with_its_whole_path(tmp_path: Path) -> None:
    with pytest.raises(LimnerError, match=r"configuration file not found: .*nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(LimnerError, match="configuration file not found"):
        load_config(tmp_path)


CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.iterdir()))
def test_a_configuration_that_comes_with_limner_is_called_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == load_config(CONFIGS / f"{name}.yaml")
    assert load_config(f"configs/{name}.yaml") == load_config(name)


def test_a_file_or_folder_here_comes_before_the_configuration_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shapes").write_text("model: {num_layers: 3}", encoding="utf-8")
    assert load_config("shapes").model.num_layers == 3
    Path("tiny").mkdir()
    with pytest.raises(LimnerError, match=r"is a folder.*configs/tiny\.yaml comes with"):
        load_config("tiny")
    Path("configs").mkdir()
    Path("configs/tiny.yaml").write_text("model: {num_layers: 5}", encoding="utf-8")
    assert load_config("configs/tiny.yaml").model.num_layers == 5


@pytest.mark.parametrize("name", ["shaps", "shapes.yaml", "configs/shapes"])
def test_a_name_that_is_nearly_one_of_limners_is_told_it_and_all_of_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LimnerError, match="did you mean --config shapes") as refused:
        load_config(name)
    assert "emoji, emoji_gpu, emoji_latents, latents, shapes, tiny, train_config" in str(refused)
    with pytest.raises(LimnerError, match="comes with Limner: emoji, ") as refused:
        load_config("cats")
    assert "did you mean" not in str(refused)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"model: [1, 2", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid UTF-8: byte 0 is 0xff"),
        (b"- a\n- b\n", "holds a list; expected sections with keys"),
        (b"just words", "holds a str; expected sections with keys"),
        (b"model: 5", "model: must be a section with keys, got 5"),
        (b"3: {a: 1}", "3: must be a section whose keys are text"),
        (b"model: {3: 1}", "model.3: must be a section whose keys are text"),
        (b"!!python/object/apply:os.system [exit]", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(
    content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(LimnerError) as error:
        load_config(path)
    assert str(path) in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["foo", "model=3", "=3", "model.=3", "model.num_heads"])
def test_words_that_are_no_override_are_refused(text: str) -> None:
    with pytest.raises(LimnerError, match=r"is not a valid override; use section\.key=value"):
        load_config(None, [text])
