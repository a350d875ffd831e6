"""Trackers: what each is told, that none needs an account, and that none can end a run."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_trackers import Calls
from runs import trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from limner.config import Config
from limner.errors import LimnerError
from limner.training.monitor.run_log import read_log
from limner.training.trainer import Trainer


def logged(folder: Path) -> list[tuple[int, float]]:
    return [(e["step"], e["loss"]) for e in read_log(folder / "log.jsonl") if e["kind"] == "train"]


def scalars(calls: Calls, name: str) -> list[tuple[int, float]]:
    return [
        (kwargs["step"], args[0]["train/loss"])
        for called, args, kwargs in calls
        if called == name and "train/loss" in args[0]
    ]


def test_tensorboard_has_the_figures_the_previews_and_the_configuration(
    tiny_config: Callable[..., Config],
) -> None:
    config = tiny_config("training.trackers=tensorboard", "training.preview_steps=3")
    folder = trained(config).folder
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    found = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert [s for s, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [v for _, v in found] == pytest.approx([v for _, v in logged(folder)], rel=1e-6)
    assert [e.step for e in events.Images("preview")] == [3, 6]
    assert events.Images("preview")[0].width > 16
    (text,) = events.Tensors("config/text_summary")
    assert b"hidden_size: 64" in text.tensor_proto.string_val[0]
    assert "heldout/loss" in events.Tags()["scalars"]


def test_wandb_is_told_all_offline_and_goes_on_where_it_was(
    tiny_config: Callable[..., Config], fake: Callable[..., Calls]
) -> None:
    calls = fake("wandb")
    more = "training.trackers=[wandb]", "training.preview_steps=3", "training.tracker_project=fruit"
    folder = trained(tiny_config(*more)).folder
    first = next(kwargs for name, _, kwargs in calls if name == "init")
    assert first["project"] == "fruit"
    assert first["name"] == "run"
    assert first["mode"] == "offline"
    assert scalars(calls, "run.log") == logged(folder)
    (values,) = next(args for name, args, _ in calls if name == "config.update")
    assert values["model.hidden_size"] == 64
    assert [
        kwargs["step"]
        for _, args, kwargs in calls
        if args and isinstance(args[0], dict) and "preview" in args[0]
    ] == [3, 6]
    assert calls[-1][0] == "run.finish"
    calls.clear()
    Trainer(tiny_config(*more), resume=folder / "checkpoint-3").train()
    again = next(kwargs for name, _, kwargs in calls if name == "init")
    assert (again["id"], again["resume"]) == (first["id"], "allow")
    assert [step for step, _ in scalars(calls, "run.log")] == [4, 5, 6]


@pytest.mark.parametrize("how", ["variable", "file", "mode"])
def test_wandb_with_a_login_is_not_offline(
    tiny_config: Callable[..., Config],
    fake: Callable[..., Calls],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    how: str,
) -> None:
    calls = fake("wandb")
    if how == "variable":
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    elif how == "mode":
        monkeypatch.setenv("WANDB_MODE", "online")
    else:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / ".netrc").write_text("machine api.wandb.ai\n  login user\n", "utf-8")
    trained(tiny_config("training.trackers=wandb", "training.max_steps=1"))
    assert "mode" not in next(kwargs for name, _, kwargs in calls if name == "init")


def test_trackio_is_told_all(
    tiny_config: Callable[..., Config], fake: Callable[..., Calls]
) -> None:
    calls = fake("trackio")
    more = "training.trackers=trackio", "training.preview_steps=3", "training.run_name=apples"
    folder = trained(tiny_config(*more)).folder
    first = next(kwargs for name, _, kwargs in calls if name == "init")
    assert first["project"] == "limner"
    assert first["name"].startswith("apples-")
    assert scalars(calls, "run.log") == logged(folder)
    assert [args[0][-10:] for name, args, _ in calls if name == "Image"] == [
        "000003.png",
        "000006.png",
    ]
    calls.clear()
    Trainer(tiny_config(*more), resume=folder / "checkpoint-3").train()
    assert next(kwargs for name, _, kwargs in calls if name == "init")["name"] == first["name"]


def test_comet_is_offline_without_a_key(
    tiny_config: Callable[..., Config], fake: Callable[..., Calls]
) -> None:
    calls = fake("comet_ml", __version__="3.50.0", get_config=lambda key: None)
    folder = trained(tiny_config("training.trackers=comet_ml")).folder
    start = next(kwargs for name, _, kwargs in calls if name == "start")
    assert start["online"] is False
    assert start["project_name"] == "limner"
    found = [
        (k["step"], a[1])
        for name, a, k in calls
        if name == "start.log_metric" and a[0] == "train/loss"
    ]
    assert found == logged(folder)
    assert any(name == "start.log_image" for name, _, _ in calls)
    assert any(name == "start.log_parameters" for name, _, _ in calls)


def test_what_is_not_installed_is_said_before_the_run(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "comet_ml", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = tiny_config("training.trackers=[tensorboard, comet_ml]")
    with pytest.raises(LimnerError, match=r"comet_ml is not installed; run pip install comet-ml"):
        Trainer(config)
    assert not Path(config.training.output_dir).exists()


def test_one_that_fails_is_left_out_and_the_others_go_on(
    tiny_config: Callable[..., Config],
    fake: Callable[..., Calls],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("no such server")

    fake("swanlab", init=refuse)
    calls = fake("wandb")
    folder = trained(tiny_config("training.trackers=[swanlab, wandb]")).folder
    assert scalars(calls, "run.log") == logged(folder)
    said = capsys.readouterr().err
    assert said.count("the tracker swanlab failed and is disabled: no such server") == 1


def test_any_other_of_accelerates_is_told_the_figures_and_pictures(
    tiny_config: Callable[..., Config], fake: Callable[..., Calls]
) -> None:
    calls = fake("swanlab", config=types.SimpleNamespace())
    sys.modules["swanlab"].config = type(  # type: ignore[attr-defined]
        "C", (dict,), {"update": lambda self, *_, **__: None}
    )()
    folder = trained(tiny_config("training.trackers=swanlab")).folder
    assert scalars(calls, "run.log") == logged(folder)
    assert any(name == "Image" for name, _, _ in calls)
