"""`limner train FOLDER`: what is chosen, and that it is chosen once."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import photo_folders
import pytest
import yaml
from PIL import Image
from tiny import TINY

from limner.apps.own_pictures import start as own_pictures
from limner.apps.own_pictures.choose import (
    MODEL_SIZES,
    Choice,
    choose,
    rounded_side,
)
from limner.apps.own_pictures.expected import LEAST_IMAGES, if_too_few
from limner.apps.own_pictures.machine import Machine, measure, training_cost
from limner.apps.own_pictures.request import Request
from limner.apps.own_pictures.settings_file import read_request, write
from limner.apps.own_pictures.start import Start, in_words, planned, start
from limner.apps.own_pictures.survey import Survey, survey
from limner.checkpoint.state import TrainingState
from limner.config import Config, load_config
from limner.config.loading import Sections, read_sections
from limner.errors import LimnerError
from limner.messages import parameters_in_words
from limner.models.size import count_parameters
from limner.training import budget
from limner.training.budget import Budget
from limner.training.folder import CHOSEN
from limner.training.trainer import Trainer

GIB = 2**30
TWO_CORES = Machine("cpu", "two cores", 0.5 * 446e9, 20 * GIB)
TWO_GIB = Machine("cpu", "two cores", 0.5 * 446e9, 2 * GIB)
GPU = Machine("cuda", "a GPU", 0.3 * 160e12, 22 * GIB)


def chosen(
    pictures: int,
    machine: Machine = TWO_CORES,
    minutes: float | None = 10,
    own: Sequence[str] = (),
    side: int | None = 512,
    tokens: int | None = 14,
    origin: Config | None = None,
) -> Choice:
    def build(sections: Sections) -> Config:
        return load_config(json.loads(json.dumps(sections)), own)

    found, given = Survey(pictures, 1, 0, side, tokens), read_sections(None, own)[1]
    return choose(found, machine, build, minutes, origin, given)


def request(data: str, output: Path | None = None, *own: str, minutes: float | None = None):
    where = None if output is None else str(output)
    return Request(data, minutes, None, None, where, own)


# What is chosen


def test_300_pictures_and_ten_minutes_on_two_cores_get_the_demos_model() -> None:
    config = chosen(300, side=96).config
    model = config.model
    assert (model.hidden_size, model.num_layers, model.num_heads) == (256, 6, 4)
    assert (config.data.image_size, model.patch_size) == (96, 12)
    assert config.scheduler.prediction_type == "sample"
    assert config.training.max_minutes == 10


def test_more_time_gives_a_larger_model_and_more_patches() -> None:
    costs = [training_cost(chosen(300, minutes=minutes).config).flops for minutes in (10, 60, 600)]
    assert costs == sorted(costs)
    assert costs[0] < costs[1] < costs[2]


def test_no_larger_model_is_chosen_than_learns_enough_in_the_time() -> None:
    for machine in (TWO_CORES, GPU):
        for pictures in (20, 300, 3_000, 30_000, 1_000_000):
            choice = chosen(pictures, machine, minutes=30)
            smallest = choice.config.model.hidden_size == MODEL_SIZES[0].hidden_size
            assert choice.images >= choice.wanted or smallest


def test_without_minutes_they_follow_from_the_number_of_pictures() -> None:
    minutes = [chosen(n, minutes=None).config.training.max_minutes for n in (20, 3_000, 10**6)]
    assert minutes == [10, 50, 60]


def test_few_pictures_get_no_huge_model_however_fast_the_machine_is() -> None:
    assert chosen(300, GPU, minutes=600).config.model.hidden_size == 384
    assert chosen(100_000, GPU, minutes=6_000).config.model.hidden_size == 768


def test_pictures_are_not_made_larger_than_they_are_and_patches_divide_them() -> None:
    for side in (20, 33, 70, 96, 100, 3_000):
        config = chosen(300, side=side).config
        assert config.data.image_size <= max(side, 16)
        assert config.data.image_size % (config.model.patch_size or 0) == 0


def test_with_little_memory_the_batch_is_divided_and_the_update_stays_the_same() -> None:
    training = chosen(300, TWO_GIB, own=["model.patch_size=4"]).config.training
    assert training.micro_batch_size < 32
    assert training.micro_batch_size * training.gradient_accumulation_steps == 32


def test_with_no_memory_at_all_it_is_said() -> None:
    with pytest.raises(LimnerError, match="of memory are free"):
        chosen(300, Machine("cpu", "a toaster", 1e9, GIB // 2))


def test_captions_fit_into_the_text_encoder() -> None:
    for tokens, length in ((3, 16), (16, 16), (17, 24), (100, 104)):
        assert chosen(300, tokens=tokens).config.text_encoder.max_length == length


def test_what_the_user_set_wins_and_the_rest_follows_from_it() -> None:
    own = ("model.hidden_size=128", "data.image_size=32", "training.max_minutes=3")
    config = chosen(300, minutes=None, own=own).config
    assert (config.model.hidden_size, config.data.image_size) == (128, 32)
    assert config.training.max_minutes == 3


def test_another_model_keeps_its_shape_and_needs_less() -> None:
    origin = load_config({"data": {"image_size": 64}, "model": {"patch_size": 8}})
    choice = chosen(300, own=["model.patch_size=8"], origin=origin)
    assert choice.config.data.image_size == 64
    assert "model" not in choice.sections
    assert choice.wanted < chosen(300).wanted


def test_a_checkpoint_is_saved_about_every_ten_minutes() -> None:
    choice = chosen(3_000, minutes=60)
    training = choice.config.training
    every = training.save_steps * training.micro_batch_size / choice.rate / 60
    assert 8 < every < 12


def test_expectations_fall_with_the_number_of_pictures() -> None:
    def hope(pictures: int) -> str:
        found = Survey(pictures, 1, 0, 96, 14)
        return " ".join(in_words(found, TWO_CORES, chosen(pictures)))

    assert "most captions" in hope(300)
    assert "rough shapes" in hope(3_000)
    assert "blots" in hope(100_000)
    assert "--from" in hope(20)
    assert "--from" not in hope(300)


def test_steps_that_the_user_set_are_not_cut_off() -> None:
    choice = chosen(300, minutes=None, own=["training.max_steps=20000"])
    assert choice.config.training.max_minutes is None
    assert choice.images == 20_000 * 32
    assert chosen(300, minutes=None, own=["training.num_epochs=7"]).images == 2_100
    both = chosen(300, own=["training.max_steps=20000", "training.max_minutes=5"])
    assert both.config.training.max_minutes == 5


@pytest.mark.parametrize(
    "own", ["training.batch_size=auto", "training.effective_batch_size=64", "training.batch_size=3"]
)
def test_a_batch_that_the_user_set_stays(own: str) -> None:
    for pictures in (300, 3_000):
        training = chosen(pictures, GPU, own=[own]).config.training
        key, value = own.removeprefix("training.").split("=")
        assert str(getattr(training, key)) == value
        assert training.gradient_accumulation_steps == 1


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_settings_of_drawing_that_do_not_fit_are_not_chosen(kind: str) -> None:
    config = chosen(300, own=[f"scheduler.prediction_type={kind}"]).config
    assert config.scheduler.objective == "diffusion"


def test_a_model_in_latents_is_sized_by_its_latents() -> None:
    sections = {
        "data": {"image_size": 256},
        "model": {"hidden_size": 384, "num_layers": 8, "num_heads": 6, "in_channels": 4},
        "vae": {"pretrained_model_name": "there"},
    }
    sections["model"]["patch_size"] = 2
    config = load_config(sections)
    own = [f"model.{k}={v}" for k, v in sections["model"].items()]
    choice = chosen(300, own=[*own, "vae.pretrained_model_name=there"], origin=config)
    assert choice.config.training.batch_size == 32


@pytest.mark.parametrize("width", [64, 96, 128, 300, 320, 384, 1024])
def test_heads_fit_any_width(width: int) -> None:
    if width == 300:  # no heads of a multiple of 4 fit: one
        assert chosen(300, own=[f"model.hidden_size={width}"]).config.model.num_heads == 1
        return
    model = chosen(300, own=[f"model.hidden_size={width}"]).config.model
    assert width % (4 * model.num_heads) == 0


def test_a_size_that_no_good_patch_divides_is_rounded() -> None:
    expected = {61: 64, 65: 64, 97: 96, 125: 128, 17: 16}
    kept = {side: side for side in (8, 16, 24, 32, 56, 60, 64, 96, 100, 128, 200, 256, 333, 500)}
    assert {side: rounded_side(side) for side in expected} == expected
    assert {side: rounded_side(side) for side in kept} == kept


def test_a_near_size_that_is_faster_is_found() -> None:
    for side in (64, 96, 128):
        assert chosen(300, own=[f"data.image_size={side}"]).faster is None
    choice = chosen(300, own=["data.image_size=65"])
    assert choice.config.data.image_size == 65
    assert choice.faster is not None
    near, times = choice.faster
    assert near == 64
    fewer = load_config({"data": {"image_size": 64}, "model": {"patch_size": 8}})
    model = choice.config.model.model_copy(update={"patch_size": 8})
    other = choice.config.model_copy(update={"data": fewer.data, "model": model})
    flops = training_cost(choice.config).flops, training_cost(other).flops
    assert times == pytest.approx(flops[0] / flops[1])
    assert times > 2
    own = ["data.image_size=65", "model.patch_size=5"]  # somebody wants just that
    assert chosen(300, own=own).faster is None


# What is looked at


def test_the_data_are_looked_at_with_their_odd_files(tmp_path: Path) -> None:
    folder = photo_folders.photos(tmp_path / "photos")
    (folder / "notes.md").write_text("mine", encoding="utf-8")
    photo_folders.image().save(folder / "alone.png")
    found = survey(load_config({"data": {"dataset_path": str(folder)}}))
    assert found.trained + found.held_out == 3
    assert found.refused == 1
    assert found.side == 8
    assert found.tokens is not None
    assert 3 <= found.tokens <= 16


def test_the_machine_is_measured() -> None:
    found = measure(load_config({"training": {"device": "cpu"}}))
    assert found.kind == "cpu"
    assert found.flops > 1e8
    assert found.memory > 0


def test_the_parameters_that_are_promised_are_those_that_are_trained(tmp_path: Path) -> None:
    folder = photo_folders.photos(tmp_path / "photos")
    asked = request(str(folder), tmp_path / "run", "model.num_layers=1", minutes=3)
    began = start(asked)
    (said,) = [sentence for sentence in began.said if sentence.startswith("model: ")]
    run = Trainer(began.config).run
    assert said.startswith(f"model: {parameters_in_words(count_parameters(run.model))} parameters,")
    found = survey(began.config)
    cost = training_cost(began.config, found.vocabulary)
    assert cost.parameters == count_parameters(run.model)


# The file and the same command again


def test_the_file_says_what_it_was_chosen_for_and_is_a_configuration(tmp_path: Path) -> None:
    folder = photo_folders.photos(tmp_path / "photos")
    asked = request(str(folder), tmp_path / "run", "model.hidden_size=128", minutes=3)
    began = start(asked)
    path = tmp_path / "run" / CHOSEN
    assert read_request(path) == asked.as_kept()
    assert began.config == load_config(path)
    assert began.config.model.hidden_size == 128
    assert began.config.training.max_minutes == 3
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["dataset_path"] == str(folder)
    assert any("patches" in sentence for sentence in began.said)


def test_what_is_planned_is_what_is_trained_and_writes_nothing(tmp_path: Path) -> None:
    folder = photo_folders.photos(tmp_path / "photos")
    asked = request(str(folder), tmp_path / "run", "model.hidden_size=128", minutes=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_pictures, "measure", lambda config: TWO_CORES)
        before = planned(asked)
        assert not (tmp_path / "run").exists()
        began = start(asked)
    assert before.config == began.config
    assert before.said == began.said[: len(before.said)]
    path = tmp_path / "run" / CHOSEN
    path.write_text(path.read_text("utf-8").replace("num_layers: 6", "num_layers: 2"), "utf-8")
    assert planned(asked).config.model.num_layers == 2  # what was changed counts here, too


def sized(folder: Path, output: Path, size: int | None, *own: str) -> Start:
    return start(Request(str(folder), 3, size, None, str(output), own))


def test_a_size_is_rounded_with_a_word_and_its_key_is_not(tmp_path: Path) -> None:
    folder = photo_folders.photos(tmp_path / "photos")
    began = sized(folder, tmp_path / "rounded", 61)
    assert began.config.data.image_size == 64
    said = " ".join(began.said)
    assert "size: 64 pixels, as 61 can only be cut into" in said
    assert "data.image_size=61 keeps it" in said
    again = sized(folder, tmp_path / "rounded", 61)  # the same request
    assert again.said[0].startswith("settings as chosen before")
    assert again.config.data.image_size == 64
    kept = sized(folder, tmp_path / "kept", None, "data.image_size=61", "model.hidden_size=64")
    assert kept.config.data.image_size == 61
    assert "size: 61 pixels are cut into 61 x 61 patches; data.image_size=64 would be about" in (
        " ".join(kept.said)
    )
    good = sized(folder, tmp_path / "good", 64)
    assert good.config.data.image_size == 64
    assert not any(sentence.startswith("size:") for sentence in good.said)


def test_a_size_that_wastes_the_patches_of_the_chosen_model_is_rounded(tmp_path: Path) -> None:
    folder = photo_folders.photos(tmp_path / "photos")
    with pytest.MonkeyPatch.context() as patch:  # as many minutes as a grid of 16 needs
        patch.setattr(own_pictures, "measure", lambda config: GPU)
        began = sized(folder, tmp_path / "run", 70)
    config = began.config
    assert (config.data.image_size, config.model.patch_size) == (64, 4)
    assert any("size: 64 pixels, as 70 can only" in sentence for sentence in began.said)


def test_the_same_command_uses_what_was_chosen_and_changed(tmp_path: Path) -> None:
    folder = photo_folders.photos(tmp_path / "photos")
    asked = request(str(folder), tmp_path / "run", minutes=3)
    start(asked)
    path = tmp_path / "run" / CHOSEN
    text = path.read_text(encoding="utf-8").replace("hidden_size: 256", "hidden_size: 64")
    path.write_text(text, encoding="utf-8")
    assert start(asked).config.model.hidden_size == 64


def test_other_minutes_are_chosen_for_anew_while_nothing_was_trained(tmp_path: Path) -> None:
    folder = photo_folders.photos(tmp_path / "photos")
    for minutes, grid in ((3, 8), (6_000, 16)):
        config = start(request(str(folder), tmp_path / "run", minutes=minutes)).config
        assert config.data.image_size // (config.model.patch_size or 0) == grid
    assert (tmp_path / "run" / "train-before.yaml").is_file()


def test_the_folder_may_be_spelled_in_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo_folders.photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    start(request("photos", minutes=3))
    path = tmp_path / "outputs" / "photos" / CHOSEN
    written = path.read_bytes()
    for other in ("photos/", "./photos", str(tmp_path / "photos")):
        assert start(request(other, minutes=3)).said[0].startswith("settings as chosen before")
    assert path.read_bytes() == written


def test_an_output_folder_among_the_settings_is_the_runs(tmp_path: Path) -> None:
    folder = photo_folders.photos(tmp_path / "photos")
    own = f"training.output_dir={tmp_path / 'mine'}"
    config = start(request(str(folder), None, own, minutes=3)).config
    assert config.training.output_dir == str(tmp_path / "mine")
    assert (tmp_path / "mine" / CHOSEN).is_file()


def test_a_run_goes_on_with_more_minutes_and_not_with_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, count = 0.0, Budget.step_done

    def step_done(self: Budget, seconds: float) -> None:  # a step takes as long on any machine
        nonlocal now
        now += 0.1
        count(self, 0.1)

    monkeypatch.setattr(budget, "clock", lambda: now)
    monkeypatch.setattr(Budget, "step_done", step_done)
    folder = photo_folders.photos(tmp_path / "photos")
    own = [word for word in TINY if word.startswith(("training.", "model."))]
    own += ["data.image_size=16", "training.max_steps=null", "training.preview_prompts=[a]"]
    own += ["text_encoder.vocab_size=300", "text_encoder.num_layers=1"]

    def train(minutes: float | None) -> Trainer:
        began = start(request(str(folder), tmp_path / "run", *own, minutes=minutes))
        trainer = Trainer(began.config, resume=began.resume)
        trainer.train()
        return trainer

    first = train(0.03).state
    assert first.step == 18
    assert train(None).state.step == first.step
    longer = train(0.08).state
    assert longer.step == 48
    assert train(None).state.step == longer.step
    with pytest.raises(LimnerError, match="has trained for"):
        start(request(str(folder), tmp_path / "run", *own, minutes=0.0001))


def test_another_model_among_the_settings_is_begun_with(tmp_path: Path, trained: Path) -> None:
    folder = photo_folders.photos(tmp_path / "photos")
    own = f"training.init_from={trained / 'outputs'}"
    config = start(request(str(folder), tmp_path / "run", own, minutes=3)).config
    assert (config.model.hidden_size, config.data.image_size) == (64, 16)
    assert yaml.safe_load((tmp_path / "run" / CHOSEN).read_text("utf-8")).get("model") is None


def test_a_student_is_no_beginning(tmp_path: Path, distilled: Path) -> None:
    folder = photo_folders.photos(tmp_path / "photos")
    asked = Request(str(folder), 3, None, str(distilled), str(tmp_path / "run"), ())
    with pytest.raises(LimnerError, match="is a distilled model, which cannot be trained further"):
        start(asked)


def test_another_request_is_chosen_anew_while_nothing_was_trained(tmp_path: Path) -> None:
    folder = photo_folders.photos(tmp_path / "photos")
    start(request(str(folder), tmp_path / "run", minutes=3))
    again = start(request(str(folder), tmp_path / "run", "model.hidden_size=128", minutes=3))
    assert again.config.model.hidden_size == 128


def test_a_run_of_something_else_is_not_touched(tmp_path: Path, trained: Path) -> None:
    folder = photo_folders.photos(tmp_path / "photos")
    with pytest.raises(LimnerError, match=r"holds another run.*--output"):
        start(request(str(folder), trained / "outputs"))


def test_another_request_for_a_begun_run_names_the_command_that_goes_on(
    tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    folder, run = photo_folders.photos(tmp_path / "photos"), tmp_path / "run"
    start(request(str(folder), run, "model.hidden_size=64", minutes=3))
    Trainer(photo_folders.of(tiny_config, folder, run, "training.max_steps=1")).train()
    with pytest.raises(LimnerError) as caught:
        start(request(str(folder), run))
    way = f"(limner train {folder.as_posix()} --output {run.as_posix()} model.hidden_size=64)"
    assert way in str(caught.value)


def test_what_a_square_leaves_out_is_said(tmp_path: Path) -> None:
    folder = photo_folders.photos(tmp_path / "photos")
    said = start(request(str(folder), tmp_path / "squares", minutes=3)).said
    assert not any("cropped" in sentence for sentence in said)
    for name in "abc":
        Image.new("RGB", (300, 200), "red").save(folder / f"{name}.png")
    (said,) = [s for s in start(request(str(folder), tmp_path / "run")).said if "cropped" in s]
    assert "33% of a picture is cropped on average" in said
    kept = start(request(str(folder), tmp_path / "shapes", "data.buckets=auto")).said
    assert not any("cropped" in sentence for sentence in kept)


def test_a_run_of_few_images_says_how_to_go_on(tmp_path: Path) -> None:
    folder, run = photo_folders.photos(tmp_path / "photos"), tmp_path / "run"
    config = start(request(str(folder), run, minutes=3)).config
    few = TrainingState(step=6, images=192, seconds=30.0)
    said = if_too_few(run, config, few, 300)
    assert said is not None
    assert "192 images (0.64 times each of its pictures), too few" in said
    minutes = round(30 / 60 * LEAST_IMAGES / 192)
    command = f"limner train {folder.as_posix()} --output {run.as_posix()} --minutes {minutes}"
    assert said.endswith(command)
    main_settings = start(Request(str(folder), minutes, None, None, str(run), ())).config
    assert main_settings.training.max_minutes == minutes
    assert (
        if_too_few(run, config, TrainingState(step=400, images=12_800, seconds=300.0), 300) is None
    )


def test_a_run_of_few_steps_by_a_configuration_says_how_to_go_on(
    tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config("training.max_steps=6")
    said = if_too_few(tmp_path, config, TrainingState(step=6, images=24, seconds=1.0), 8)
    assert said is not None
    steps = round(6 * LEAST_IMAGES / 24)
    assert said.endswith(f"training.output_dir={tmp_path.as_posix()} training.max_steps={steps}")


def test_nothing_is_written_into_the_data(tmp_path: Path) -> None:
    folder = photo_folders.photos(tmp_path / "photos")
    before = photo_folders.files(folder)
    with pytest.raises(LimnerError, match="inside the data folder"):
        start(request(str(folder), folder / "run"))
    assert photo_folders.files(folder) == before


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LimnerError, match=r"no folder or file .*nowhere"):
        start(request(str(tmp_path / "nowhere"), tmp_path / "run"))


def test_sets_and_shards_are_told_from_folders(tmp_path: Path) -> None:
    for data, key in (
        ("emoji", "dataset_name"),
        ("nobody-org/name", "dataset_name"),
        ("https://example.org/{000..009}.tar", "dataset_path"),
        (str(tmp_path), "dataset_path"),
    ):
        assert request(data).settings()[0] == f"data.{key}={json.dumps(data)}"


def test_the_run_is_named_after_the_data() -> None:
    names = {
        "photos": "photos",
        "my pictures/": "my-pictures",
        "captions.csv": "captions",
        "org/name": "name",
    }
    assert {data: request(data).folder.name for data in names} == names


@pytest.mark.parametrize("text", ["", "# chosen for: {", "# chosen for: [1]", "\0"])
def test_a_spoilt_file_is_no_request(tmp_path: Path, text: str) -> None:
    path = tmp_path / CHOSEN
    path.write_text(text, encoding="utf-8")
    assert read_request(path) is None


def test_words_in_the_file_cannot_become_keys(tmp_path: Path) -> None:
    path = tmp_path / CHOSEN
    write(path, {"data": {"dataset_path": "a # b: {c}"}}, ["two\nlines"], {}, 101.25)
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == {
        "data": {"dataset_path": "a # b: {c}"}
    }


def test_somebodys_own_file_is_not_replaced(tmp_path: Path) -> None:
    folder, run = photo_folders.photos(tmp_path / "photos"), tmp_path / "run"
    run.mkdir()
    (run / CHOSEN).write_text("mine: 1", encoding="utf-8")
    with pytest.raises(LimnerError, match="was not written by limner train FOLDER"):
        start(request(str(folder), run))
    (run / CHOSEN).unlink()
    (run / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(LimnerError, match=r"not a Limner run \(it contains thesis.txt\)"):
        start(request(str(folder), run))
    assert (run / "thesis.txt").read_text(encoding="utf-8") == "mine"
